//! A made-up phone: what its encoder gives is known, and written down, when it leaves. The ADB and
//! scrcpy around it are the simulated device's. Not a publisher: the real ingest worker is. Invariant:
//! the hash that is written down is that of the access unit as the worker passes it on, with the
//! parameter sets in front of keyframes.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use fanlight_device_sim::{
    capture::Pictures,
    h264::{Picture, split_pictures},
};
use fanlight_wire::pack::{DEFAULT_MAX_PAYLOAD, Packetizer};
use parking_lot::Mutex;

use super::Device;
use crate::{ledger::Leaving, source::Source};

/// Captures whose last reference is remembered; those before them are over.
const CAPTURES_MAX: usize = 8;

/// The encoders of a made-up phone, one for each capture.
pub struct Phone {
    device: Arc<Device>,
    inner: Mutex<Inner>,
}

struct Inner {
    source: Source,
    packetizer: Packetizer,
    bitrate_bps: u32,
    /// Per capture the last picture that others may need.
    references: BTreeMap<u64, u64>,
}

impl fmt::Debug for Phone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Phone").field("device", &self.device.name).finish_non_exhaustive()
    }
}

impl Phone {
    /// Shows this source's pictures and writes them into the device's ledger.
    pub fn new(device: Arc<Device>, source: Source) -> Self {
        let packetizer = Packetizer::new(DEFAULT_MAX_PAYLOAD);
        let inner = Inner { source, packetizer, bitrate_bps: 0, references: BTreeMap::new() };
        Self { device, inner: Mutex::new(inner) }
    }
}

impl Pictures for Phone {
    fn size(&self) -> (u32, u32) {
        self.inner.lock().source.size()
    }

    fn next_picture(&self, capture: u64, bitrate_bps: u32, key: bool) -> Picture {
        let mut inner = self.inner.lock();
        if std::mem::replace(&mut inner.bitrate_bps, bitrate_bps) != bitrate_bps {
            inner.source.set_bitrate(bitrate_bps.into());
        }
        // The first keyframe is the start's; each later one that is asked for costs an encoder.
        if key && !inner.references.is_empty() {
            self.device.ledger.keyframe_requests.fetch_add(1, Ordering::Relaxed);
        }
        let made = inner.source.next_picture(key);
        let mut payloads = Vec::new();
        let packets = match inner.packetizer.packetize(&made.au, &mut payloads) {
            Ok(()) => u32::try_from(payloads.len()).unwrap_or(u32::MAX),
            Err(error) => {
                tracing::warn!(%error, number = made.number, "a picture that cannot be sent");
                0
            }
        };
        let bytes = payloads.iter().map(Vec::len).sum::<usize>();
        let last = inner.references.get(&capture).copied();
        if !made.discardable {
            inner.references.insert(capture, made.number);
            if inner.references.len() > CAPTURES_MAX {
                inner.references.pop_first();
            }
        }
        let leaving = Leaving {
            number: made.number,
            hash: made.hash,
            packets,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            key: made.key,
            discardable: made.discardable,
        };
        self.device.ledger.publish_after(Instant::now(), leaving, last);
        // One access unit is one picture.
        split_pictures(&made.au).pop().unwrap_or(Picture {
            data: made.au,
            config: None,
            key: made.key,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Shape, hash};

    fn phone() -> (Arc<Device>, Phone) {
        let (inputs, _) = tokio::sync::mpsc::unbounded_channel();
        let device = Arc::new(Device {
            name: "phone".into(),
            ledger: Default::default(),
            late: Default::default(),
            inputs,
        });
        let source = Source::open("synthetic", &Shape::default(), 1).unwrap();
        (Arc::clone(&device), Phone::new(device, source))
    }

    #[test]
    fn what_leaves_is_what_is_written_down() {
        let (device, phone) = phone();
        for n in 0..5 {
            let picture = phone.next_picture(7, 2_000_000, n == 0 || n == 3);
            let mut au = picture.config.unwrap_or_default();
            assert_eq!((picture.key, au.is_empty()), (n == 0 || n == 3, n != 0 && n != 3));
            au.extend(picture.data);
            assert_eq!(device.ledger.find(hash(&au), None).unwrap().number, n);
        }
        assert_eq!(device.ledger.keyframes_asked(), 1);
    }

    #[test]
    fn two_captures_refer_to_their_own_pictures() {
        let (device, phone) = phone();
        for (capture, key) in [(1, true), (1, false), (2, true), (1, false), (2, false)] {
            phone.next_picture(capture, 2_000_000, key);
        }
        let needs: Vec<u64> = (0..5).map(|n| device.ledger.get(n).unwrap().needs).collect();
        assert_eq!(needs, [0, 0, 2, 1, 2]);
    }

    #[test]
    fn another_bitrate_makes_other_pictures() {
        let (_, phone) = phone();
        let second =
            |bps| -> usize { (0..60).map(|n| phone.next_picture(7, bps, n == 0).data.len()).sum() };
        let (much, little) = (second(4_000_000), second(1_000_000));
        assert!((3..=5).contains(&(much / little)), "{much} {little}");
    }
}
