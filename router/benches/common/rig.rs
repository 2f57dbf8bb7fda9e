//! One shard's work with a crowd of connected viewers: the real core, the real socket, the loop of
//! the shard. What viewers do is not measured: their datagrams are sealed and sent between the
//! measured parts. Time for the core is virtual, one frame after the other.
//!
//! Measured per frame: receiving and handling datagrams, taking in the frame, sealing and sending
//! it, looking at the socket between batches, timers, and what the core has to say itself.

use std::{
    hint::black_box,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use fanlight_router::{
    IceConfig,
    bench::{Cursor, Fate, Flow, ShardSocket},
};
use fanlight_router_core::{
    Batch, Core, CoreConfig, Output, Route, StreamInfo, StreamKey,
    bench::{Crowd, Frames},
};

use fanlight_wire::rtp::is_rtcp;

use super::{
    contest::{Done, timed},
    feedback::Feedback,
    floor::{FRAMES, PAYLOAD_BYTES},
    sinks::Sinks,
};

const STREAM: StreamKey = StreamKey(1);
/// As in the shard.
const BATCH_RUNS: usize = 16;
const BATCH_BYTES: usize = 96 * 1024;
const FRAMES_PER_SECOND: u64 = 60;
/// Least viewers' frames between two readings of the clock.
const RUNS_PER_READING: usize = 64;

pub struct Rig<'a> {
    sinks: &'a Sinks,
    shard: Shard,
    crowd: Crowd,
    frames: Frames,
    feedback: Option<Feedback>,
    start: Instant,
    frame: u64,
    viewers: usize,
    /// Receiving and reading what viewers said; units are datagrams.
    heard: Done,
}

/// Memory allocations of the measured part.
#[derive(Clone, Copy, Debug)]
pub struct Allocations {
    pub per_packet: f64,
    pub timers_per_viewer_s: f64,
}

/// What the measured part touches.
struct Shard {
    core: Core,
    socket: ShardSocket,
    address: SocketAddr,
    batch: Batch,
    now: Instant,
    /// Only computes: nothing is sent.
    mute: bool,
    /// Packets given to each viewer, by its place in the core.
    sent: Vec<u64>,
    /// What the core said itself, for the crowd to hear.
    said: Vec<(SocketAddr, Vec<u8>)>,
}

impl<'a> Rig<'a> {
    /// A shard with so many viewers, the first of whom holds the control lease.
    pub fn new(sinks: &'a Sinks, viewers: usize, feedback: bool) -> Result<Self> {
        let bind = "127.0.0.1".parse()?;
        let socket = ShardSocket::bind(&IceConfig { bind, ..IceConfig::default() }, 0)?;
        let address = socket.candidates()[0];
        let start = Instant::now();
        let mut now = start;
        let mut core = Core::new(CoreConfig::new(vec![address]), now, 7);
        core.stream_up(now, STREAM, StreamInfo::new("streams/bench", 1));
        let mut crowd = Crowd::new(address);
        crowd.connect(&mut core, &mut now, STREAM, &sinks.addresses[..viewers], true);
        let mut rig = Self {
            sinks,
            shard: Shard {
                core,
                socket,
                address,
                batch: Batch::new(BATCH_RUNS, BATCH_BYTES),
                now,
                mute: false,
                sent: vec![0; viewers],
                said: Vec::with_capacity(4_096),
            },
            crowd,
            frames: Frames::new(&FRAMES, PAYLOAD_BYTES),
            feedback: feedback.then(|| Feedback::new(viewers)),
            start,
            frame: 0,
            viewers,
            heard: Done::default(),
        };
        rig.first_frame();
        // Two seconds: replays and reports of the beginning are over, and the logs are warm.
        for _ in 0..2 * FRAMES_PER_SECOND {
            rig.one_frame();
        }
        Ok(rig)
    }

    /// The same without sending.
    pub fn muted(sinks: &'a Sinks, viewers: usize) -> Result<Self> {
        let mut rig = Self::new(sinks, viewers, false)?;
        rig.shard.mute = true;
        Ok(rig)
    }

    /// A few frames, measured.
    pub fn work(&mut self) -> Done {
        if self.feedback.is_some() {
            return self.one_frame();
        }
        let mut done = Done::default();
        let count = RUNS_PER_READING.div_ceil(self.viewers);
        let frames: Vec<_> = (0..count)
            .map(|_| {
                self.shard.now += Frames::INTERVAL;
                (self.shard.now, self.frames.next(self.shard.now))
            })
            .collect();
        let shard = &mut self.shard;
        done += timed(|| {
            let mut packets = 0;
            for (now, frame) in frames {
                shard.now = now;
                packets += shard.frame(frame);
            }
            packets
        });
        self.frame += count as u64;
        if self.frame % FRAMES_PER_SECOND < count as u64 {
            self.keep_alive();
        }
        done
    }

    fn one_frame(&mut self) -> Done {
        self.before_frame();
        let frame = self.next_frame();
        let heard = timed(|| self.shard.receive());
        self.heard += heard;
        let mut done = timed(|| self.shard.frame(frame));
        done.spent += heard.spent;
        self.after_frame();
        done
    }

    /// Nanoseconds per datagram of viewers, from the socket to the core's tables, on average.
    pub fn ns_per_datagram_heard(&self) -> f64 {
        self.heard.spent.as_secs_f64() * 1e9 / self.heard.units.max(1) as f64
    }

    /// What viewers say before the next frame.
    fn before_frame(&mut self) {
        let Some(feedback) = &mut self.feedback else { return };
        for (receiver, sent) in feedback.receivers.iter_mut().zip(&self.shard.sent) {
            receiver.media += *sent - receiver.sent;
            receiver.sent = *sent;
        }
        feedback.note(self.shard.now - self.start);
        let (sinks, to) = (self.sinks, self.shard.address);
        feedback.before_frame(self.frame, &mut self.crowd, |viewer, bytes| {
            sinks.send(viewer, bytes, to).expect("loopback takes a datagram");
        });
    }

    fn after_frame(&mut self) {
        self.frame += 1;
        if self.frame.is_multiple_of(FRAMES_PER_SECOND) {
            self.keep_alive();
        }
    }

    fn next_frame(&mut self) -> std::sync::Arc<fanlight_router_core::Frame> {
        self.shard.now += Frames::INTERVAL;
        self.frames.next(self.shard.now)
    }

    /// The first frame tells where the viewers' numbers begin.
    fn first_frame(&mut self) {
        let frame = self.next_frame();
        let Shard { core, batch, now, sent, .. } = &mut self.shard;
        core.frame(*now, STREAM, frame);
        while core.poll_media(*now, batch) {
            for run in batch.runs() {
                let bytes = batch.bytes(run);
                if run.count > 1
                    && let Some(feedback) = &mut self.feedback
                    && let Some(receiver) = feedback.receivers.get_mut(run.viewer)
                    && receiver.ssrc == 0
                {
                    receiver.ssrc = u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
                    let before = u16::try_from(sent[run.viewer] & 0xffff).unwrap_or(0);
                    let seq = u16::from_be_bytes([bytes[2], bytes[3]]);
                    receiver.first_seq = seq.wrapping_sub(before);
                }
                sent[run.viewer] += run.count as u64;
            }
        }
        self.frame += 1;
        self.keep_alive();
    }

    /// Checks of paths, and the exact numbers of packets: repairs were counted as media, and what
    /// the core sent meanwhile was not counted.
    fn keep_alive(&mut self) {
        let Shard { core, now, said, sent, .. } = &mut self.shard;
        for (to, bytes) in said.drain(..) {
            self.crowd.hear(core, *now, to, &bytes);
        }
        self.crowd.exchange(core, *now);
        let Some(feedback) = &mut self.feedback else { return };
        for (n, stats) in core.all_viewer_stats().enumerate() {
            sent[n] = stats.packets_sent + stats.repairs;
            feedback.receivers[n].media = stats.packets_sent;
            feedback.receivers[n].sent = sent[n];
        }
    }

    /// Fails if this was not the load that it claims to be.
    pub fn check(&self) -> Result<()> {
        let c = self.shard.core.counters();
        ensure!(self.shard.core.viewer_count() == self.viewers, "viewers were lost");
        ensure!(c.frames_thinned == 0 && c.frames_skipped == 0, "viewers were thinned: {c:?}");
        ensure!(c.rtcp_forged + c.rtcp_replayed + c.rtcp_malformed == 0, "bad RTCP: {c:?}");
        ensure!(c.rtcp_denied_rate == 0, "RTCP beyond its budget: {c:?}");
        if self.feedback.is_some() {
            let lost = c.nacks as f64 / c.packets_forwarded as f64;
            ensure!((0.005..0.02).contains(&lost), "{lost} of the packets were asked for again");
            ensure!(c.repairs_sent * 10 >= c.nacks * 9, "requests were not answered: {c:?}");
            let reports = c.twcc_feedbacks * FRAMES_PER_SECOND;
            ensure!(
                reports >= 18 * (self.frame - 10) * self.viewers as u64,
                "{} arrival reports in {} frames",
                c.twcc_feedbacks,
                self.frame
            );
        }
        Ok(())
    }

    /// Allocations over two seconds of the measured part.
    pub fn allocations(&mut self) -> Allocations {
        let (mut media, mut timers, mut packets) = (0, 0, 0);
        for _ in 0..2 * FRAMES_PER_SECOND {
            self.before_frame();
            let frame = self.next_frame();
            let count = |work: &mut dyn FnMut()| allocation_counter::measure(work).count_total;
            let mut frame = Some(frame);
            media += count(&mut || packets += frame.take().map_or(0, |f| self.shard.media(f)));
            timers += count(&mut || self.shard.timers());
            self.after_frame();
        }
        Allocations {
            per_packet: media as f64 / packets.max(1) as f64,
            timers_per_viewer_s: timers as f64 / (2 * self.viewers) as f64,
        }
    }
}

/// Receiving alone: small datagrams as viewers send them, without anybody who reads them.
pub struct Inlet<'a> {
    sinks: &'a Sinks,
    socket: ShardSocket,
}

impl<'a> Inlet<'a> {
    pub fn new(sinks: &'a Sinks) -> Result<Self> {
        let bind = "127.0.0.1".parse()?;
        let socket = ShardSocket::bind(&IceConfig { bind, ..IceConfig::default() }, 0)?;
        Ok(Self { sinks, socket })
    }

    /// Looks at the empty socket; units are looks.
    pub fn look(&mut self) -> Done {
        timed(|| {
            for _ in 0..100 {
                assert!(matches!(self.socket.receive(), Ok(None)), "the socket is empty");
            }
            100
        })
    }

    pub fn work(&mut self) -> Done {
        let to = self.socket.candidates()[0];
        for sink in 0..self.sinks.addresses.len().min(100) {
            self.sinks.send(sink, &[0x90; 84], to).expect("loopback takes a datagram");
        }
        timed(|| {
            let mut datagrams = 0;
            while let Ok(Some((_, _, bytes))) = self.socket.receive() {
                black_box(bytes);
                datagrams += 1;
            }
            datagrams
        })
    }
}

impl Shard {
    /// What a shard does from one frame to the next. Gives the packets of media.
    fn frame(&mut self, frame: std::sync::Arc<fanlight_router_core::Frame>) -> u64 {
        let packets = self.media(frame);
        self.timers();
        packets
    }

    fn media(&mut self, frame: std::sync::Arc<fanlight_router_core::Frame>) -> u64 {
        self.receive();
        let before = self.core.counters().packets_forwarded;
        self.core.frame(self.now, STREAM, frame);
        while self.core.poll_media(self.now, &mut self.batch) {
            black_box(Instant::now());
            self.send();
            self.receive();
        }
        self.core.counters().packets_forwarded - before
    }

    fn send(&mut self) {
        let Self { socket, batch, sent, mute, .. } = self;
        let batch = &*batch;
        if *mute {
            return;
        }
        let now = Instant::now();
        let mut spent = Duration::ZERO;
        let flow = socket.send_batch(batch, &mut Cursor::default(), |run, fate| {
            assert_eq!(fate, Fate::Sent);
            // The core's own reports carry no transport-wide number. All else that is no frame on
            // its first way is a repair.
            if run.arrived.is_some() || !is_rtcp(batch.bytes(run)) {
                sent[run.viewer] += run.count as u64;
            }
            if let Some(arrived) = run.arrived {
                spent = spent.max(now.saturating_duration_since(arrived));
            }
        });
        black_box(spent);
        assert_eq!(flow, Flow::Done, "the socket's buffer is full");
    }

    /// Gives the datagrams.
    fn receive(&mut self) -> u64 {
        let mut datagrams = 0;
        if self.mute {
            self.drain();
            return datagrams;
        }
        while let Ok(Some((from, to, bytes))) = self.socket.receive() {
            self.core.datagram(self.now, Route::udp(from), to, bytes);
            while let Some(output) = self.core.poll_output() {
                say(&self.socket, &mut self.said, output);
            }
            black_box(Instant::now());
            datagrams += 1;
        }
        datagrams
    }

    fn timers(&mut self) {
        if self.core.next_timeout().is_some_and(|at| at <= self.now) {
            self.core.timeout(self.now);
        }
        self.drain();
        // A replay that is paced, or a report that was due.
        while self.core.poll_media(self.now, &mut self.batch) {
            self.send();
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            say(&self.socket, &mut self.said, output);
        }
    }
}

fn say(socket: &ShardSocket, said: &mut Vec<(SocketAddr, Vec<u8>)>, output: Output) {
    if let Output::Transmit { to, bytes, .. } = output {
        socket.send(to.addr, &bytes);
        said.push((to.addr, bytes));
    }
}
