//! Many viewers with real sockets on a few threads. Not one viewer ([`crate::viewer`]) and not the
//! HTTP of a join ([`crate::crowd`]). Invariant: a viewer lives on one thread, from its offer to
//! its end, and what it came to is handed over when it leaves.

mod eyes;
mod net;
mod thread;

pub use eyes::Eyes;

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot};

use crate::{
    publish::Device,
    stats::Times,
    viewer::{Abuse, Outcome, ViewerError, Window},
};

/// Name of one viewer in the whole swarm.
pub type ViewerId = u64;

/// Which kind of viewer, for separate distributions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// Watches on a good path.
    Observer,
    /// Holds the control lease.
    Controller,
    /// Watches over a path that loses.
    Lossy,
    /// Watches over a path that is too narrow.
    Narrow,
    /// Sends what it should not.
    Hostile,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Observer, Self::Controller, Self::Lossy, Self::Narrow, Self::Hostile];

    fn place(self) -> usize {
        match self {
            Self::Observer => 0,
            Self::Controller => 1,
            Self::Lossy => 2,
            Self::Narrow => 3,
            Self::Hostile => 4,
        }
    }
}

/// A stream as its viewers know it.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The device and what it published.
    pub device: Arc<Device>,
    /// The pictures that count.
    pub window: Arc<Window>,
}

/// How a viewer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// DTLS is told.
    Proper,
    /// Nobody is told, as when a laptop is closed.
    None,
}

/// Something that happened to a viewer.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    /// Whom.
    pub viewer: ViewerId,
    /// What.
    pub what: Milestone,
    /// When.
    pub at: Instant,
}

/// What happens to a viewer, each at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// ICE and DTLS are up.
    Connected,
    /// The first picture is complete and can be decoded.
    FirstPicture,
    /// The picture complete now is the newest of its stream, or at most 50 ms old.
    Current,
    /// The input channel is open.
    ChannelOpen,
    /// The connection ended.
    Closed,
}

/// What the viewers of a group saw while it was measured.
#[derive(Clone, Debug, Default)]
pub struct GroupTimes {
    /// From the first byte's departure at the publisher to the complete picture at the viewer.
    pub path: Times,
    /// Age of the newest decodable picture, twenty times a second.
    pub age: Times,
}

/// One viewer's figures.
#[derive(Clone, Copy, Debug)]
pub struct ViewerReport {
    /// Which.
    pub viewer: ViewerId,
    /// Its stream.
    pub stream: usize,
    /// Its kind.
    pub group: Group,
    /// What it came to.
    pub outcome: Outcome,
    /// Mean time from publisher to viewer within the window, microseconds.
    pub mean_path_us: Option<f64>,
}

/// Figures of a thread, or of all.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Viewers that are there.
    pub viewers: Vec<ViewerReport>,
    times: [GroupTimes; 5],
    /// Ports of their sockets, with those of viewers that left.
    pub ports: HashSet<u16>,
    /// Datagrams that could not be sent.
    pub unsent: u64,
    /// How long after their time the viewers' timers were served.
    pub late: Times,
}

impl Report {
    /// Times of a group.
    pub fn times(&self, group: Group) -> &GroupTimes {
        &self.times[group.place()]
    }

    /// Viewers of a group.
    pub fn of(&self, group: Group) -> impl Iterator<Item = &ViewerReport> {
        self.viewers.iter().filter(move |viewer| viewer.group == group)
    }

    fn merge(&mut self, other: Self) {
        self.viewers.extend(other.viewers);
        for (mine, theirs) in self.times.iter_mut().zip(&other.times) {
            mine.path.merge(&theirs.path);
            mine.age.merge(&theirs.age);
        }
        self.ports.extend(other.ports);
        self.unsent += other.unsent;
        self.late.merge(&other.late);
    }
}

/// An order to a thread.
enum Command {
    Offer {
        viewer: ViewerId,
        stream: usize,
        group: Group,
        eyes: Option<Arc<Eyes>>,
        reply: oneshot::Sender<Result<String, ViewerError>>,
    },
    Answer {
        viewer: ViewerId,
        sdp: String,
        reply: oneshot::Sender<Result<(), ViewerError>>,
    },
    Leave {
        viewer: ViewerId,
        farewell: Farewell,
        reply: oneshot::Sender<Option<ViewerReport>>,
    },
    Input {
        viewer: ViewerId,
        message: Vec<u8>,
        reply: oneshot::Sender<Option<Instant>>,
    },
    Abuse {
        viewer: ViewerId,
        kind: Abuse,
        count: u32,
        reply: oneshot::Sender<u32>,
    },
    Report {
        reset: bool,
        reply: oneshot::Sender<Report>,
    },
    Stop,
}

struct Hand {
    commands: crossbeam_channel::Sender<Command>,
    waker: mio::Waker,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// All viewers.
pub struct Swarm {
    hands: Vec<Hand>,
    next: AtomicU64,
    measuring: Arc<AtomicBool>,
}

impl std::fmt::Debug for Swarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swarm").field("threads", &self.hands.len()).finish_non_exhaustive()
    }
}

impl Swarm {
    /// Starts the threads. Notes come out of the receiver until the swarm is dropped.
    ///
    /// # Errors
    /// No thread or no poller.
    pub fn start(
        threads: usize,
        streams: &[Watched],
    ) -> anyhow::Result<(Self, mpsc::UnboundedReceiver<Note>)> {
        let (notes, receiver) = mpsc::unbounded_channel();
        let measuring = Arc::new(AtomicBool::new(false));
        let mut hands = Vec::new();
        for n in 0..threads.max(1) {
            let (commands, queue) = crossbeam_channel::unbounded();
            let shared = thread::Shared {
                streams: streams.to_vec(),
                notes: notes.clone(),
                measuring: Arc::clone(&measuring),
            };
            let poll = mio::Poll::new().context("no poller")?;
            let waker = mio::Waker::new(poll.registry(), thread::WAKE)?;
            let thread = std::thread::Builder::new()
                .name(format!("viewers-{n}"))
                .spawn(move || thread::Thread::new(poll, queue, shared).run())?;
            hands.push(Hand { commands, waker, thread: Some(thread) });
        }
        Ok((Self { hands, next: AtomicU64::new(0), measuring }, receiver))
    }

    /// Makes a viewer of a stream; gives its name and its offer.
    ///
    /// # Errors
    /// No socket, or no offer.
    pub async fn offer(&self, stream: usize, group: Group) -> anyhow::Result<(ViewerId, String)> {
        self.offer_to(stream, group, None).await
    }

    /// The same for a person whose eyes it is given.
    ///
    /// # Errors
    /// No socket, or no offer.
    pub async fn offer_to(
        &self,
        stream: usize,
        group: Group,
        eyes: Option<Arc<Eyes>>,
    ) -> anyhow::Result<(ViewerId, String)> {
        let viewer = self.next.fetch_add(1, Ordering::Relaxed);
        let offer = |reply| Command::Offer { viewer, stream, group, eyes, reply };
        let sdp = self.ask(viewer, offer).await??;
        Ok((viewer, sdp))
    }

    /// Gives a viewer its answer; it connects by itself from then on.
    ///
    /// # Errors
    /// An answer that is of no use; the viewer is gone then.
    pub async fn answer(&self, viewer: ViewerId, sdp: String) -> anyhow::Result<()> {
        Ok(self.ask(viewer, |reply| Command::Answer { viewer, sdp, reply }).await??)
    }

    /// Ends a viewer; gives what it came to.
    ///
    /// # Errors
    /// The thread has ended.
    pub async fn leave(
        &self,
        viewer: ViewerId,
        farewell: Farewell,
    ) -> anyhow::Result<Option<ViewerReport>> {
        self.ask(viewer, |reply| Command::Leave { viewer, farewell, reply }).await
    }

    /// Sends on a viewer's input channel; gives when, or `None` when the channel takes nothing.
    ///
    /// # Errors
    /// The thread has ended.
    pub async fn input(
        &self,
        viewer: ViewerId,
        message: Vec<u8>,
    ) -> anyhow::Result<Option<Instant>> {
        self.ask(viewer, |reply| Command::Input { viewer, message, reply }).await
    }

    /// Has a viewer send hostile packets; gives how many it sent.
    ///
    /// # Errors
    /// The thread has ended.
    pub async fn abuse(&self, viewer: ViewerId, kind: Abuse, count: u32) -> anyhow::Result<u32> {
        self.ask(viewer, |reply| Command::Abuse { viewer, kind, count, reply }).await
    }

    /// Figures of all viewers that are there. `reset` begins the distributions anew.
    ///
    /// # Errors
    /// A thread has ended.
    pub async fn report(&self, reset: bool) -> anyhow::Result<Report> {
        let mut all = Report::default();
        for n in 0..self.hands.len() {
            all.merge(self.ask(n as u64, |reply| Command::Report { reset, reply }).await?);
        }
        Ok(all)
    }

    /// Whether ages are noted.
    pub fn measure(&self, on: bool) {
        self.measuring.store(on, Ordering::Relaxed);
    }

    async fn ask<T>(
        &self,
        viewer: ViewerId,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> anyhow::Result<T> {
        let (reply, answer) = oneshot::channel();
        let place = usize::try_from(viewer).unwrap_or(0) % self.hands.len();
        let hand = self.hands.get(place).context("no such thread")?;
        hand.commands.send(command(reply)).ok().context("the viewers' thread has ended")?;
        hand.waker.wake()?;
        tokio::time::timeout(Duration::from_secs(30), answer)
            .await
            .context("the viewers' thread does not answer")?
            .context("the viewers' thread has ended")
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        for hand in &self.hands {
            let _ = hand.commands.send(Command::Stop);
            let _ = hand.waker.wake();
        }
        for hand in &mut self.hands {
            if let Some(thread) = hand.thread.take() {
                let _ = thread.join();
            }
        }
    }
}
