//! Does a viewer get the pictures that were published, bit for bit, in order, and decodable? Not
//! the decoding: which picture needs which is known from the ledger. Invariant: a picture counts
//! as verified only if the hash of its whole access unit is that of a published one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use fanlight_wire::pack::Depacketizer;

use super::reassembly::Piece;
use crate::{ledger::Entry, publish::Device, source::hash};

/// The pictures of a stream that count, `from..to`; shared by all of its viewers.
#[derive(Debug)]
pub struct Window {
    from: AtomicU64,
    to: AtomicU64,
}

impl Default for Window {
    fn default() -> Self {
        Self { from: AtomicU64::new(u64::MAX), to: AtomicU64::new(u64::MAX) }
    }
}

impl Window {
    /// Opens it at a picture that is still to come.
    pub fn open(&self, from: u64) {
        self.to.store(u64::MAX, Ordering::Relaxed);
        self.from.store(from, Ordering::Relaxed);
    }

    /// Closes it at a picture that is still to come.
    pub fn close(&self, to: u64) {
        self.to.store(to, Ordering::Relaxed);
    }

    /// First picture in it and the first behind it.
    pub fn bounds(&self) -> (u64, u64) {
        (self.from.load(Ordering::Relaxed), self.to.load(Ordering::Relaxed))
    }

    fn holds(&self, number: u64) -> bool {
        let (from, to) = self.bounds();
        (from..to).contains(&number)
    }
}

/// What a viewer has seen of its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Pictures whose content is right.
    pub frames: u64,
    /// Of these, those that could be decoded: what they need was shown before.
    pub decodable: u64,
    /// Pictures that are none of the published ones, or came apart.
    pub corrupt: u64,
    /// Pictures that came although a later one had been seen.
    pub backwards: u64,
    /// Right pictures of the window, each once.
    pub window_frames: u64,
    /// RTP packets of these.
    pub window_packets: u64,
}

/// A right picture.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// What was published.
    pub entry: Entry,
    /// It could be decoded.
    pub decodable: bool,
    /// It is of the window and came for the first time.
    pub in_window: bool,
}

/// The check of one viewer.
#[derive(Debug)]
pub struct Verifier {
    device: Arc<Device>,
    window: Arc<Window>,
    depacketizer: Depacketizer,
    packets: u32,
    last: Option<u64>,
    last_reference: Option<u64>,
    next_counted: u64,
    newest: Option<Instant>,
    seen: Seen,
}

impl Verifier {
    /// For a viewer of this device's stream.
    pub fn new(device: Arc<Device>, window: Arc<Window>) -> Self {
        Self {
            device,
            window,
            depacketizer: Depacketizer::new(),
            packets: 0,
            last: None,
            last_reference: None,
            next_counted: 0,
            newest: None,
            seen: Seen::default(),
        }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// When the newest decodable picture was published.
    pub fn newest_published(&self) -> Option<Instant> {
        self.newest
    }

    /// The stream that is watched.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Takes the next packet in order; gives a picture when one is whole and right.
    pub fn push(&mut self, piece: &Piece) -> Option<Shown> {
        if piece.after_gap {
            match piece.key_start {
                true => self.depacketizer.reset(),
                false => self.depacketizer.lose(),
            }
            self.packets = 0;
        }
        if piece.payload.is_empty() {
            return None;
        }
        self.packets += 1;
        let pushed = self.depacketizer.push(&piece.payload, piece.marker);
        let packets = if piece.marker { std::mem::take(&mut self.packets) } else { 0 };
        match pushed {
            Ok(Some(unit)) => self.picture(&unit, packets),
            Ok(None) => None,
            // After a gap the rest of a torn picture is no news.
            Err(_) => {
                self.seen.corrupt += 1;
                None
            }
        }
    }

    fn picture(&mut self, unit: &[u8], packets: u32) -> Option<Shown> {
        let expected = self.last.map(|last| last + 1);
        let found = self.device.ledger.find(hash(unit), expected);
        // Of a clip that somebody else packs, the number of packets is not known.
        let whole = |entry: &Entry| entry.packets == 0 || entry.packets == packets;
        let Some(entry) = found.filter(whole) else {
            self.seen.corrupt += 1;
            return None;
        };
        if self.last.is_some_and(|last| entry.number <= last) {
            self.seen.backwards += 1;
        }
        self.last = Some(entry.number);
        self.seen.frames += 1;
        let decodable = entry.key || self.last_reference == Some(entry.needs);
        if decodable {
            self.seen.decodable += 1;
            self.newest = Some(entry.published);
            if !entry.discardable {
                self.last_reference = Some(entry.number);
            }
        }
        // A picture that is replayed counts once.
        let in_window = self.window.holds(entry.number) && entry.number >= self.next_counted;
        if in_window {
            self.next_counted = entry.number + 1;
            self.seen.window_frames += 1;
            self.seen.window_packets += u64::from(packets);
        }
        Some(Shown { entry, decodable, in_window })
    }
}

#[cfg(test)]
mod tests {
    use fanlight_wire::pack::Packetizer;

    use super::*;
    use crate::{
        ledger::Leaving,
        source::{Picture, Shape, Source},
    };

    struct Rig {
        source: Source,
        device: Arc<Device>,
        verifier: Verifier,
        window: Arc<Window>,
    }

    impl Rig {
        fn new(shape: Shape) -> Self {
            let (inputs, _) = tokio::sync::mpsc::unbounded_channel();
            let device = Arc::new(Device {
                name: "d".into(),
                ledger: Default::default(),
                late: Default::default(),
                inputs,
            });
            let window = Arc::new(Window::default());
            let verifier = Verifier::new(Arc::clone(&device), Arc::clone(&window));
            let source = Source::open("synthetic", &shape, 1).unwrap();
            Self { source, device, verifier, window }
        }

        fn publish(&mut self) -> (Picture, Vec<Vec<u8>>) {
            let picture = self.source.next_picture(false);
            let mut payloads = Vec::new();
            Packetizer::new(1_100).packetize(&picture.au, &mut payloads).unwrap();
            let Picture { number, hash, key, discardable, .. } = picture;
            let packets = u32::try_from(payloads.len()).unwrap();
            let leaving = Leaving { number, hash, packets, bytes: 0, key, discardable };
            self.device.ledger.publish(Instant::now(), leaving);
            (picture, payloads)
        }

        fn show(&mut self, payloads: Vec<Vec<u8>>) -> Option<Shown> {
            let last = payloads.len() - 1;
            let mut shown = None;
            for (i, payload) in payloads.into_iter().enumerate() {
                let piece = Piece {
                    payload,
                    marker: i == last,
                    rtp_time: 0,
                    key_start: false,
                    after_gap: false,
                };
                shown = self.verifier.push(&piece).or(shown);
            }
            shown
        }
    }

    #[test]
    fn right_pictures_are_verified_and_counted_within_the_window() {
        let mut rig = Rig::new(Shape::default());
        rig.window.open(3);
        rig.window.close(7);
        let mut packets = 0;
        for n in 0..10 {
            let (_, payloads) = rig.publish();
            packets += if (3..7).contains(&n) { payloads.len() as u64 } else { 0 };
            let shown = rig.show(payloads).unwrap();
            assert_eq!((shown.entry.number, shown.decodable), (n, true));
        }
        let seen = rig.verifier.seen();
        assert_eq!((seen.frames, seen.window_frames, seen.window_packets), (10, 4, packets));
        assert_eq!((seen.corrupt, seen.backwards), (0, 0));
    }

    #[test]
    fn a_replay_counts_once() {
        let mut rig = Rig::new(Shape::default());
        rig.window.open(0);
        let sent: Vec<_> = (0..4).map(|_| rig.publish().1).collect();
        for n in [0, 1, 2, 0, 1, 2, 3] {
            assert!(rig.show(sent[n].clone()).unwrap().decodable, "{n}");
        }
        let seen = rig.verifier.seen();
        assert_eq!((seen.frames, seen.window_frames, seen.backwards), (7, 4, 1));
    }

    #[test]
    fn one_flipped_bit_is_seen() {
        let mut rig = Rig::new(Shape::default());
        let (_, mut payloads) = rig.publish();
        payloads[2][500] ^= 1;
        assert!(rig.show(payloads).is_none());
        assert_eq!(rig.verifier.seen().corrupt, 1);
    }

    #[test]
    fn a_picture_without_the_one_it_needs_is_right_but_not_decodable() {
        let mut rig = Rig::new(Shape { reference_every: 2, ..Shape::default() });
        let sent: Vec<_> = (0..6).map(|_| rig.publish().1).collect();
        let mut shown: Vec<bool> = Vec::new();
        // 1, 3 and 5 are needed by nobody; without 2, neither 3 nor 4 can be decoded.
        for n in [0, 3, 4] {
            shown.push(rig.show(sent[n].clone()).unwrap().decodable);
        }
        assert_eq!(shown, [true, false, false]);
        let mut rig = Rig::new(Shape { reference_every: 2, ..Shape::default() });
        let sent: Vec<_> = (0..6).map(|_| rig.publish().1).collect();
        for n in [0, 2, 4, 5] {
            assert!(rig.show(sent[n].clone()).unwrap().decodable, "{n}");
        }
    }
}
