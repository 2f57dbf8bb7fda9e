//! A viewer behind a bottleneck, in virtual time: frame source, thinning, paced sender, one queue
//! with tail drop, repair, feedback every 50 ms, and a decoder that needs every frame it was given.
//!
//! Not a browser: no jitter buffer, no repair limit by time. Invariant: the same seed gives the
//! same run.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small figures")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Estimator, PacketResult};
use crate::pressure::{Admit, Change, Level, Pressure, Rates, SILENCE};

const PACKET: u32 = 1_200;
const MS: u64 = 1_000;
const FEEDBACK_US: u64 = 50 * MS;

/// The zero of the virtual time.
#[expect(clippy::disallowed_methods, reason = "some moment is needed; tests only add to it")]
pub(crate) fn epoch() -> Instant {
    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// The way to the viewer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub(crate) capacity_bps: u64,
    /// Longest queue, as time at this capacity.
    pub(crate) queue_ms: u64,
    /// One way.
    pub(crate) delay_ms: u64,
    /// At most so much more, equally distributed, order kept.
    pub(crate) jitter_ms: u64,
    pub(crate) loss: f64,
    /// The viewer's clock runs by so much faster, in millionths.
    pub(crate) drift_ppm: i64,
}

impl Path {
    pub(crate) const fn of(capacity_bps: u64) -> Self {
        Self { capacity_bps, queue_ms: 300, delay_ms: 20, jitter_ms: 0, loss: 0.0, drift_ppm: 0 }
    }
}

/// The stream, 60 frames a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub(crate) gop: u64,
    pub(crate) key_bytes: u32,
    pub(crate) reference_bytes: u32,
    pub(crate) disposable_bytes: u32,
    /// One frame in so many is a reference.
    pub(crate) reference_every: u64,
}

impl Source {
    /// 2.5 Mbit/s of which the reference frames are 0.35 Mbit/s.
    pub(crate) const THINNABLE: Self = Self {
        gop: 120,
        key_bytes: 20_000,
        reference_bytes: 4_800,
        disposable_bytes: 5_100,
        reference_every: 8,
    };
    /// 2.5 Mbit/s, all reference.
    pub(crate) const SOLID: Self = Self {
        gop: 120,
        key_bytes: 30_000,
        reference_bytes: 5_000,
        disposable_bytes: 0,
        reference_every: 1,
    };
    /// A screen on which a clock ticks.
    pub(crate) const STATIC: Self = Self {
        gop: 120,
        key_bytes: 20_000,
        reference_bytes: 60,
        disposable_bytes: 60,
        reference_every: 8,
    };

    fn bytes(&self, key: bool, discardable: bool) -> u32 {
        match (key, discardable) {
            (true, _) => self.key_bytes,
            (false, true) => self.disposable_bytes,
            (false, false) => self.reference_bytes,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Media {
    seq: u64,
    frame: u64,
    bytes: u32,
    tries: u32,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    at_us: u64,
    bytes: u32,
    arrived_us: Option<i64>,
}

#[derive(Debug)]
struct Shown {
    captured_us: u64,
    missing: u32,
    key: bool,
}

#[derive(Debug)]
enum Event {
    Arrive { packet: u64, media: Media },
    Nack(Media),
    Feedback(Vec<PacketResult>),
}

/// What a run showed.
#[derive(Debug, Default)]
pub(crate) struct Report {
    ages_ms: Vec<u64>,
    queues_ms: Vec<u64>,
    pub(crate) offered: u64,
    pub(crate) shown: u64,
    pub(crate) full_ms: u64,
    pub(crate) keys_asked: u64,
    pub(crate) lost_at_queue: u64,
}

impl Report {
    fn percentile(values: &[u64], share: f64) -> u64 {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(at).copied().unwrap_or(u64::MAX)
    }

    /// Age of the newest shown frame.
    pub(crate) fn age_ms(&self, share: f64) -> u64 {
        Self::percentile(&self.ages_ms, share)
    }

    pub(crate) fn queue_ms(&self, share: f64) -> u64 {
        Self::percentile(&self.queues_ms, share)
    }
}

/// The world of one viewer.
pub(crate) struct Sim {
    pub(crate) path: Path,
    pub(crate) source: Source,
    pub(crate) estimator: Estimator,
    pub(crate) pressure: Pressure,
    /// Whether the encoder follows the wish for a keyframe.
    pub(crate) keys_on_wish: bool,
    /// Whether large frames leave at the rate that the state machine proposes.
    pub(crate) paced: bool,
    random: StdRng,
    epoch: Instant,
    now_us: u64,
    frame: u64,
    since_key: u64,
    key_wished: bool,
    recent: VecDeque<(u64, u32, bool)>,
    // Sender.
    out: VecDeque<Media>,
    repairs: VecDeque<Media>,
    tokens: f64,
    next_seq: u64,
    sent: BTreeMap<u64, Sent>,
    next_packet: u64,
    covered: u64,
    feedback_at_us: u64,
    // Path.
    busy_until_us: f64,
    last_arrival_us: u64,
    events: BTreeMap<(u64, u64), Event>,
    event_count: u64,
    // Viewer.
    frames: BTreeMap<u64, Shown>,
    next_shown: u64,
    newest_us: Option<u64>,
    awaited: BTreeSet<u64>,
    unsure: BTreeMap<u64, (Media, u64)>,
    highest_packet: Option<u64>,
    reported: u64,
    given: u64,
    dropped_below: u64,
    pub(crate) report: Report,
}

impl Sim {
    pub(crate) fn new(path: Path, source: Source, seed: u64) -> Self {
        Self {
            path,
            source,
            estimator: Estimator::new(),
            pressure: Pressure::new(),
            keys_on_wish: false,
            paced: true,
            random: StdRng::seed_from_u64(seed),
            epoch: epoch(),
            now_us: 0,
            frame: 0,
            since_key: 0,
            key_wished: false,
            recent: VecDeque::new(),
            out: VecDeque::new(),
            repairs: VecDeque::new(),
            tokens: 0.0,
            next_seq: 0,
            sent: BTreeMap::new(),
            next_packet: 0,
            covered: 0,
            feedback_at_us: 0,
            busy_until_us: 0.0,
            last_arrival_us: 0,
            events: BTreeMap::new(),
            event_count: 0,
            frames: BTreeMap::new(),
            next_shown: 0,
            newest_us: None,
            awaited: BTreeSet::new(),
            unsure: BTreeMap::new(),
            highest_packet: None,
            reported: 0,
            given: 0,
            dropped_below: 0,
            report: Report::default(),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.epoch + Duration::from_micros(self.now_us)
    }

    /// Lets time pass, and returns what that time showed.
    pub(crate) fn run(&mut self, time: Duration) -> Report {
        self.report = Report::default();
        let until_us = self.now_us + time.as_micros() as u64;
        while self.now_us < until_us {
            self.tick();
            self.now_us += MS;
        }
        std::mem::take(&mut self.report)
    }

    /// Runs until the viewer is given everything; `None` if that takes longer than `most`.
    pub(crate) fn until_full(&mut self, most: Duration) -> Option<Duration> {
        let start_us = self.now_us;
        while self.pressure.level() != Level::Full {
            self.run(Duration::from_millis(10));
            if self.now_us - start_us > most.as_micros() as u64 {
                return None;
            }
        }
        Some(Duration::from_micros(self.now_us - start_us))
    }

    fn tick(&mut self) {
        if self.now_us >= self.frame * 1_000_000 / 60 {
            self.make_frame();
        }
        self.send();
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now_us {
                break;
            }
            let event = entry.remove();
            self.happen(event);
        }
        if self.now_us.is_multiple_of(FEEDBACK_US) {
            self.report_feedback();
        }
        if self.now_us.is_multiple_of(10 * MS) {
            self.nack();
            self.watch();
        }
    }

    fn make_frame(&mut self) {
        let key = self.since_key == 0 || self.key_wished;
        if key {
            (self.since_key, self.key_wished) = (0, false);
        }
        let discardable = !key && !self.since_key.is_multiple_of(self.source.reference_every);
        self.since_key = (self.since_key + 1) % self.source.gop;
        self.frame += 1;
        let bytes = self.source.bytes(key, discardable);
        self.recent.push_back((self.now_us, bytes, discardable));
        self.report.offered += 1;
        let admit = self.pressure.admit(self.now(), key, discardable, bytes as usize);
        if admit == Admit::Send {
            let number = self.given;
            self.given += 1;
            let count = bytes.div_ceil(PACKET);
            self.frames.insert(number, Shown { captured_us: self.now_us, missing: count, key });
            for index in 0..count {
                let size = (bytes - index * PACKET).min(PACKET);
                self.out.push_back(Media {
                    seq: self.next_seq,
                    frame: number,
                    bytes: size,
                    tries: 0,
                });
                self.next_seq += 1;
            }
        }
        if self.pressure.wants_keyframe(self.now()) && self.keys_on_wish {
            self.key_wished = true;
            self.report.keys_asked += 1;
        }
    }

    fn send(&mut self) {
        let pace = self.pressure.pace_bps().filter(|_| self.paced).unwrap_or(110_000_000) as f64;
        self.tokens = (self.tokens + pace / 8.0 / 1e3).min(4.0 * pace / 8.0 / 1e3).max(0.0);
        while self.tokens > 0.0 {
            let Some(media) = self.repairs.pop_front().or_else(|| self.out.pop_front()) else {
                break;
            };
            self.tokens -= f64::from(media.bytes);
            self.transmit(media);
        }
        if self.tokens < -1e6 {
            self.tokens = 0.0;
        }
    }

    fn transmit(&mut self, media: Media) {
        let packet = self.next_packet;
        self.next_packet += 1;
        self.sent.insert(packet, Sent { at_us: self.now_us, bytes: media.bytes, arrived_us: None });
        self.unsure.insert(packet, (media, 0));
        let now = self.now_us as f64;
        let waiting = (self.busy_until_us - now).max(0.0);
        if waiting > (self.path.queue_ms * MS) as f64 {
            self.report.lost_at_queue += 1;
            return;
        }
        let takes = f64::from(media.bytes) * 8e6 / self.path.capacity_bps as f64;
        self.busy_until_us = self.busy_until_us.max(now) + takes;
        if self.random.random_bool(self.path.loss) {
            return;
        }
        let jitter = self.random.random_range(0..=self.path.jitter_ms * MS);
        let at = self.busy_until_us as u64 + self.path.delay_ms * MS + jitter;
        self.last_arrival_us = self.last_arrival_us.max(at);
        self.schedule(self.last_arrival_us, Event::Arrive { packet, media });
    }

    fn schedule(&mut self, at_us: u64, event: Event) {
        self.event_count += 1;
        self.events.insert((at_us, self.event_count), event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { packet, media } => {
                let clock = self.now_us as i64 * (1_000_000 + self.path.drift_ppm) / 1_000_000;
                if let Some(sent) = self.sent.get_mut(&packet) {
                    sent.arrived_us = Some(clock + 7_000_000);
                }
                self.unsure.remove(&packet);
                self.highest_packet = self.highest_packet.max(Some(packet));
                if media.tries == 0 || self.awaited.remove(&media.seq) {
                    self.show(&media);
                }
            }
            Event::Nack(media) => {
                if media.frame >= self.next_shown.max(self.dropped_below) {
                    self.repairs.push_back(media);
                }
            }
            Event::Feedback(results) => self.feedback(&results),
        }
    }

    fn show(&mut self, media: &Media) {
        let Some(frame) = self.frames.get_mut(&media.frame) else { return };
        frame.missing = frame.missing.saturating_sub(1);
        if frame.missing == 0 && frame.key && media.frame > self.next_shown {
            self.next_shown = media.frame;
        }
        while let Some(frame) = self.frames.get(&self.next_shown).filter(|f| f.missing == 0) {
            self.newest_us = Some(frame.captured_us);
            self.report.shown += 1;
            self.next_shown += 1;
        }
        self.frames = self.frames.split_off(&self.next_shown);
    }

    /// The viewer asks again for what it noticed to be missing, at most ten times.
    fn nack(&mut self) {
        let Some(highest) = self.highest_packet else { return };
        let again_us = (2 * self.path.delay_ms + 20) * MS;
        let noticed: Vec<u64> = self.unsure.range(..highest).map(|(packet, _)| *packet).collect();
        for packet in noticed {
            let Some((media, _)) = self.unsure.remove(&packet) else { continue };
            if media.frame < self.next_shown || media.tries >= 10 {
                continue;
            }
            self.awaited.insert(media.seq);
            let media = Media { tries: media.tries + 1, ..media };
            self.schedule(self.now_us + again_us / 2, Event::Nack(media));
        }
    }

    fn report_feedback(&mut self) {
        let Some(highest) = self.highest_packet.filter(|h| *h >= self.reported) else { return };
        let results = self
            .sent
            .range(self.reported..=highest)
            .map(|(_, sent)| PacketResult {
                sent_us: sent.at_us,
                bytes: sent.bytes + 40,
                arrived_us: sent.arrived_us,
            })
            .collect();
        self.reported = highest + 1;
        self.schedule(self.now_us + self.path.delay_ms * MS, Event::Feedback(results));
    }

    fn feedback(&mut self, results: &[PacketResult]) {
        let now = self.now();
        self.feedback_at_us = self.now_us;
        self.covered += results.len() as u64;
        let rtt = Duration::from_millis(2 * self.path.delay_ms + 1);
        self.estimator.feedback(now, results, Some(rtt));
        let oldest = self.sent.get(&self.covered).map(|s| self.now_us - s.at_us);
        let rates = self.rates();
        let evidence = self.estimator.evidence();
        let change =
            self.pressure.on_feedback(now, &evidence, rates, oldest.map(Duration::from_micros));
        self.obey(change);
        self.sent = self.sent.split_off(&self.covered);
    }

    fn obey(&mut self, change: Option<Change>) {
        if change.is_some_and(|change| change.to == Level::KeyframesOnly) {
            self.out.clear();
            self.repairs.clear();
            self.dropped_below = self.given;
        }
    }

    fn rates(&mut self) -> Rates {
        let from_us = self.now_us.saturating_sub(1_000_000);
        while self.recent.front().is_some_and(|f| f.0 < from_us) {
            self.recent.pop_front();
        }
        let bits = |disposable: bool| -> u64 {
            let frames = self.recent.iter().filter(|f| disposable || !f.2);
            frames.map(|f| u64::from(f.1 + f.1.div_ceil(PACKET) * 40) * 8).sum()
        };
        Rates { full_bps: bits(true), reference_bps: bits(false) }
    }

    fn watch(&mut self) {
        let silent_us = SILENCE.as_micros() as u64 + 2 * self.path.delay_ms * MS;
        let oldest = self.sent.get(&self.covered).map_or(0, |s| self.now_us - s.at_us);
        if oldest > silent_us && self.now_us - self.feedback_at_us > silent_us {
            let change = self.pressure.on_silence(self.now());
            self.obey(change);
        }
        if let Some(newest) = self.newest_us {
            self.report.ages_ms.push((self.now_us - newest) / MS);
        }
        let queue = (self.busy_until_us - self.now_us as f64).max(0.0) / 1e3;
        self.report.queues_ms.push(queue as u64);
        if self.pressure.level() == Level::Full {
            self.report.full_ms += 10;
        }
    }
}
