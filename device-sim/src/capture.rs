//! Turns the screen (or a recorded clip) into a running video: session, config, pictures.
//!
//! One thread per capture, because drawing and encoding block; it hands packets to a bounded queue
//! and skips ticks while the queue is full, as a real encoder's surface does when nobody reads. Not
//! a protocol: the writer decides how a packet looks on the wire. Invariant: after a session packet
//! comes a config packet, then a keyframe, before any other picture.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::clip::Clip;
use crate::device::{Device, State, unix_us};
use crate::encode::{EncodeError, EncoderSettings, VideoEncoder};
use crate::h264::Picture;
use crate::input::lock;
use crate::screen::strip::Stamp;
use crate::screen::{Moment, RenderError, Renderer, ScreenModel};

/// Packets between the capture and its reader. Few, so that a slow reader gets old pictures dropped
/// rather than late ones.
const QUEUE: usize = 4;
/// A still screen's last picture is sent once more after this long, as Android's encoders do.
const REPEAT_AFTER: Duration = Duration::from_millis(100);
/// How long a capture of a still screen sleeps at most between looks at its orders.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// One item of a running video.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// A new encoding session begins, with pictures of this size.
    Session {
        /// Width of the pictures.
        width: u32,
        /// Height of the pictures.
        height: u32,
        /// Whether the peer asked for this size.
        client_resized: bool,
    },
    /// Parameter sets.
    Config(Vec<u8>),
    /// A picture.
    Picture {
        /// Presentation time in microseconds since the device started.
        pts_us: u64,
        /// Whether decoding can start here.
        key: bool,
        /// Annex-B bytes.
        data: Vec<u8>,
    },
}

/// What a capture is asked for.
#[derive(Debug, Clone, Copy)]
pub struct CaptureOptions {
    /// Longest side of the pictures; 0 leaves the screen's size.
    pub max_size: u32,
    /// Exact size, instead of the screen's.
    pub exact_size: Option<(u32, u32)>,
    /// Both sides are multiples of this.
    pub alignment: u32,
    /// Pictures per second.
    pub fps: f32,
    /// Target bitrate.
    pub bitrate_bps: u32,
    /// Longest time between keyframes; `None` for never again.
    pub key_interval: Option<Duration>,
    /// Whether a turned screen starts a new session; screenrecord does not.
    pub follow_rotation: bool,
}

/// What the pictures come from.
#[derive(Debug, Clone)]
pub enum Feed {
    /// The drawn screen, encoded live.
    Screen,
    /// A recorded clip in a loop.
    Clip(Clip),
    /// Made by whoever runs the device, one for each tick.
    Made(Arc<dyn Pictures>),
}

/// An encoder in the hands of whoever runs the device, who so knows of each picture when it leaves.
pub trait Pictures: std::fmt::Debug + Send + Sync + 'static {
    /// Width and height of all pictures.
    fn size(&self) -> (u32, u32);
    /// The next picture of a capture, at the bitrate that its client asked for. `key`: decoding must
    /// be able to start with it. Captures may run at the same time, each with a number of its own;
    /// called on the capture's thread.
    fn next_picture(&self, capture: u64, bitrate_bps: u32, key: bool) -> Picture;
}

/// A running capture. Dropping it ends its thread.
#[derive(Debug)]
pub struct Capture {
    packets: mpsc::Receiver<Packet>,
    orders: Arc<Orders>,
    device: Arc<Device>,
}

/// What the owner of a capture asks of its thread.
#[derive(Debug, Default)]
struct Orders {
    stop: AtomicBool,
    reset: AtomicBool,
    resize: Mutex<Option<(u32, u32)>>,
    width: AtomicU32,
    height: AtomicU32,
}

/// Steers a capture from elsewhere.
#[derive(Debug, Clone)]
pub struct CaptureHandle {
    orders: Arc<Orders>,
    device: Arc<Device>,
}

impl CaptureHandle {
    /// Starts a new session: new parameter sets and a keyframe.
    pub fn reset(&self) {
        self.orders.reset.store(true, Ordering::Release);
        self.device.wake();
    }

    /// Starts a new session with another size.
    pub fn resize(&self, width: u32, height: u32) {
        *lock(&self.orders.resize) = Some((width, height));
        self.device.wake();
    }

    /// Size of the pictures of the current session; zeros before the first one.
    #[must_use]
    pub fn video_size(&self) -> (u32, u32) {
        (self.orders.width.load(Ordering::Acquire), self.orders.height.load(Ordering::Acquire))
    }
}

impl Capture {
    /// Starts a capture of this device.
    pub fn start(
        device: Arc<Device>,
        feed: Feed,
        options: CaptureOptions,
    ) -> std::io::Result<Self> {
        let too_many = || std::io::Error::other("too many captures of this screen");
        let permit = device.capture_permit().ok_or_else(too_many)?;
        let (send, packets) = mpsc::channel(QUEUE);
        let orders = Arc::new(Orders::default());
        let worker = Worker {
            device: Arc::clone(&device),
            orders: Arc::clone(&orders),
            feed,
            options,
            send,
            session: None,
            next_tick: Instant::now(),
            shown: None,
            frame_number: 0,
            clip_at: 0,
            _permit: permit,
        };
        std::thread::Builder::new().name("device-sim-capture".to_owned()).spawn(|| worker.run())?;
        Ok(Self { packets, orders, device })
    }

    /// The next packet; `None` when the capture has ended because the encoder failed.
    pub async fn next(&mut self) -> Option<Packet> {
        self.packets.recv().await
    }

    /// Something to steer it with.
    #[must_use]
    pub fn handle(&self) -> CaptureHandle {
        CaptureHandle { orders: Arc::clone(&self.orders), device: Arc::clone(&self.device) }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.orders.stop.store(true, Ordering::Release);
        self.device.wake();
    }
}

/// Size of the pictures for a screen of this size: scaled down to `max_size`, then cut to multiples
/// of `alignment`, as the scrcpy server does it.
#[must_use]
pub fn video_size((w, h): (u32, u32), max_size: u32, alignment: u32) -> (u32, u32) {
    let (mut width, mut height) = (w, h);
    if max_size > 0 && w.max(h) > max_size {
        let scale = |side: u32| {
            u32::try_from(u64::from(side) * u64::from(max_size) / u64::from(w.max(h)))
                .unwrap_or(max_size)
        };
        (width, height) = (scale(w), scale(h));
    }
    // 4:2:0 needs even sides, whatever the peer asks for; the encoder needs at least a macroblock.
    let alignment = alignment.clamp(1, 16).max(2);
    let align = |side: u32| (side / alignment * alignment).max(16);
    (align(width), align(height))
}

/// The capture's thread.
struct Worker {
    device: Arc<Device>,
    orders: Arc<Orders>,
    feed: Feed,
    options: CaptureOptions,
    send: mpsc::Sender<Packet>,
    session: Option<Session>,
    next_tick: Instant,
    /// The picture sent last, to know whether a new one would differ.
    shown: Option<Shown>,
    frame_number: u32,
    clip_at: usize,
    _permit: OwnedSemaphorePermit,
}

struct Session {
    size: (u32, u32),
    screen_size: (u32, u32),
    renderer: Renderer,
    encoder: VideoEncoder,
    last_key_us: u64,
}

#[derive(Clone, Copy)]
struct Shown {
    at: Instant,
    revision: u64,
    repeated: bool,
}

/// Why the thread woke up.
enum Turn {
    Draw(Box<ScreenModel>, Moment),
    Repeat,
    Stop,
}

impl Worker {
    fn run(mut self) {
        let result = match self.feed.clone() {
            Feed::Screen => self.run_screen(),
            Feed::Clip(clip) => self.run_clip(&clip),
            Feed::Made(made) => self.run_made(&*made),
        };
        if let Err(CaptureError::Failed(why)) = result {
            tracing::error!(error = %why, "the capture ended");
        }
    }

    fn run_screen(&mut self) -> Result<(), CaptureError> {
        loop {
            match self.next_turn() {
                Turn::Stop => return Ok(()),
                Turn::Draw(model, moment) => {
                    self.open_session(model.size())?;
                    self.draw(&model, moment)?;
                }
                Turn::Repeat => self.repeat()?,
            }
        }
    }

    /// Sleeps until a picture is due and says what to show.
    fn next_turn(&mut self) -> Turn {
        let device = Arc::clone(&self.device);
        let mut state = device.lock_state();
        loop {
            if self.stopped() {
                return Turn::Stop;
            }
            let now = Instant::now();
            let wait = match self.due(&mut state, now) {
                Ok(turn) => return turn,
                Err(wait) => wait,
            };
            state = device.wait_change(state, wait);
        }
    }

    /// What is due now, or how long nothing will be.
    fn due(&mut self, state: &mut State, now: Instant) -> Result<Turn, Duration> {
        if now < self.next_tick {
            return Err(self.next_tick - now);
        }
        let now_us = unix_us();
        let fading = state.model.expire(now_us);
        let ordered =
            self.orders.reset.load(Ordering::Acquire) || lock(&self.orders.resize).is_some();
        let differs = self.shown.is_none_or(|s| s.revision != state.model.revision);
        if state.frozen_us.is_none() || fading || differs || ordered {
            self.tick(now);
            return Ok(self.picture_of(state, now, now_us));
        }
        match &mut self.shown {
            Some(shown) if !shown.repeated => {
                let due = shown.at + REPEAT_AFTER;
                if now < due {
                    return Err(due - now);
                }
                shown.repeated = true;
                Ok(Turn::Repeat)
            }
            _ => Err(IDLE_LOOK),
        }
    }

    fn picture_of(&mut self, state: &State, now: Instant, now_us: u64) -> Turn {
        let model = state.model.clone();
        let stamp = Stamp::new(self.frame_number, now_us / 1000, model.touch_count);
        self.frame_number = self.frame_number.wrapping_add(1);
        let moment = Moment { now_us, clock_us: state.frozen_us.unwrap_or(now_us), stamp };
        self.shown = Some(Shown { at: now, revision: model.revision, repeated: false });
        Turn::Draw(Box::new(model), moment)
    }

    /// Sets the next tick; a capture that fell behind skips ticks instead of hurrying.
    fn tick(&mut self, now: Instant) {
        let period = Duration::from_secs_f32(1.0 / self.options.fps.clamp(0.1, 240.0));
        self.next_tick += period;
        if self.next_tick < now {
            self.next_tick = now + period;
        }
    }

    fn stopped(&self) -> bool {
        self.orders.stop.load(Ordering::Acquire) || self.send.is_closed()
    }

    /// Makes sure that a session of the right size is running.
    fn open_session(&mut self, screen_size: (u32, u32)) -> Result<(), CaptureError> {
        let reset = self.orders.reset.swap(false, Ordering::AcqRel);
        let resize = lock(&self.orders.resize).take();
        if resize.is_some() {
            self.options.exact_size = resize;
        }
        let turned = self.session.as_ref().is_none_or(|s| s.screen_size != screen_size)
            && (self.options.follow_rotation || self.session.is_none());
        if !reset && resize.is_none() && !turned {
            return Ok(());
        }
        let wanted = self.options.exact_size.unwrap_or(screen_size);
        let size = video_size(wanted, self.options.max_size, self.options.alignment);
        let settings =
            EncoderSettings { fps: self.options.fps, bitrate_bps: self.options.bitrate_bps };
        let encoder = VideoEncoder::new(settings)?;
        let renderer = match self.session.take() {
            Some(session) if session.size == size => session.renderer,
            _ => Renderer::new(size.0, size.1, &self.device.identity().model)?,
        };
        self.session = Some(Session { size, screen_size, renderer, encoder, last_key_us: 0 });
        self.announce(size, resize.is_some())
    }

    fn announce(
        &self,
        (width, height): (u32, u32),
        client_resized: bool,
    ) -> Result<(), CaptureError> {
        self.orders.width.store(width, Ordering::Release);
        self.orders.height.store(height, Ordering::Release);
        self.put(Packet::Session { width, height, client_resized })
    }

    fn draw(&mut self, model: &ScreenModel, moment: Moment) -> Result<(), CaptureError> {
        if let Some(session) = &mut self.session {
            session.renderer.draw(model, &moment);
        }
        self.encode(moment.now_us)
    }

    /// The same picture again, with a new time stamp.
    fn repeat(&mut self) -> Result<(), CaptureError> {
        self.encode(unix_us())
    }

    fn encode(&mut self, now_us: u64) -> Result<(), CaptureError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let interval_us = self.options.key_interval.map(|i| i.as_micros());
        let since_us = u128::from(now_us.saturating_sub(session.last_key_us));
        let key = interval_us.is_some_and(|interval| since_us >= interval);
        let pts_us = self.device.uptime_us(now_us);
        let unit = session.encoder.encode(session.renderer.i420(), pts_us, key)?;
        if unit.key {
            session.last_key_us = now_us;
        }
        if let Some(config) = unit.config {
            self.put(Packet::Config(config))?;
        }
        self.put(Packet::Picture { pts_us, key: unit.key, data: unit.data })
    }

    fn run_clip(&mut self, clip: &Clip) -> Result<(), CaptureError> {
        loop {
            if !self.wait_tick() {
                return Ok(());
            }
            if self.orders.reset.swap(false, Ordering::AcqRel) || self.session_unannounced() {
                self.clip_at = 0;
                self.announce(clip.size, false)?;
            }
            // The index is kept below the length, and a clip is never empty.
            let picture = &clip.pictures[self.clip_at % clip.pictures.len()];
            self.clip_at = (self.clip_at + 1) % clip.pictures.len();
            self.put_picture(picture.clone())?;
        }
    }

    fn run_made(&mut self, made: &dyn Pictures) -> Result<(), CaptureError> {
        static CAPTURES: AtomicU64 = AtomicU64::new(0);
        let capture = CAPTURES.fetch_add(1, Ordering::Relaxed);
        loop {
            if !self.wait_tick() {
                return Ok(());
            }
            let begin =
                self.orders.reset.swap(false, Ordering::AcqRel) || self.session_unannounced();
            if begin {
                self.announce(made.size(), false)?;
            }
            self.put_picture(made.next_picture(capture, self.options.bitrate_bps, begin))?;
        }
    }

    fn put_picture(&self, picture: Picture) -> Result<(), CaptureError> {
        if let Some(config) = picture.config {
            self.put(Packet::Config(config))?;
        }
        let pts_us = self.device.uptime_us(unix_us());
        self.put(Packet::Picture { pts_us, key: picture.key, data: picture.data })
    }

    fn session_unannounced(&self) -> bool {
        self.orders.width.load(Ordering::Acquire) == 0
    }

    /// Sleeps until the next tick; `false` when the capture is over.
    fn wait_tick(&mut self) -> bool {
        let device = Arc::clone(&self.device);
        let mut state = device.lock_state();
        loop {
            if self.stopped() {
                return false;
            }
            let now = Instant::now();
            if now >= self.next_tick {
                self.tick(now);
                return true;
            }
            state = device.wait_change(state, self.next_tick - now);
        }
    }

    fn put(&self, packet: Packet) -> Result<(), CaptureError> {
        if matches!(packet, Packet::Picture { .. }) {
            metrics::counter!("fanlight_sim_pictures_total").increment(1);
        }
        self.send.blocking_send(packet).map_err(|_| CaptureError::ReaderGone)
    }
}

/// Why a capture's thread ended.
#[derive(Debug)]
enum CaptureError {
    /// Nobody wants the pictures any more.
    ReaderGone,
    /// Drawing or encoding failed.
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl From<EncodeError> for CaptureError {
    fn from(error: EncodeError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<RenderError> for CaptureError {
    fn from(error: RenderError) -> Self {
        Self::Failed(error.into())
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
