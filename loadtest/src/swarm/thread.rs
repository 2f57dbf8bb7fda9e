//! One thread of viewers: sockets, timers, orders. Invariant: it waits only in the poller, and
//! never longer than until the next viewer is due.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token};
use tokio::sync::mpsc;

use super::{
    Command, Eyes, Farewell, Group, Milestone, Note, Report, ViewerId, ViewerReport, Watched,
    net::{Inbox, Socket},
};
use crate::viewer::{Abuse, Outlet, Shown, Verifier, Viewer, ViewerError};

/// Token of the waker.
pub(super) const WAKE: Token = Token(usize::MAX);
/// A picture this young is as good as the newest: three pictures at 60 per second.
const CURRENT: Duration = Duration::from_millis(50);
/// Longest sleep, so that nothing that was missed lasts.
const NAP: Duration = Duration::from_millis(200);

pub(super) struct Shared {
    pub(super) streams: Vec<Watched>,
    pub(super) notes: mpsc::UnboundedSender<Note>,
    pub(super) measuring: Arc<AtomicBool>,
}

/// What is known of a viewer beside its protocol.
struct Record {
    id: ViewerId,
    stream: usize,
    group: Group,
    router: Option<SocketAddr>,
    first_picture: bool,
    current: bool,
    path_us: u64,
    path_count: u64,
    eyes: Option<Arc<Eyes>>,
}

struct Slot {
    viewer: Viewer,
    socket: Socket,
    record: Record,
    /// The earliest entry of the timer heap.
    scheduled: Option<Instant>,
}

pub(super) struct Thread {
    poll: Poll,
    queue: crossbeam_channel::Receiver<Command>,
    shared: Shared,
    slots: slab::Slab<Slot>,
    by_id: HashMap<ViewerId, usize>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    inbox: Inbox,
    report: Report,
    ports: HashSet<u16>,
}

/// Output of one viewer for the length of one call.
struct Out<'a> {
    socket: &'a Socket,
    record: &'a mut Record,
    shared: &'a Shared,
    report: &'a mut Report,
}

impl Out<'_> {
    fn note(&self, at: Instant, what: Milestone) {
        let _ = self.shared.notes.send(Note { viewer: self.record.id, what, at });
    }
}

impl Outlet for Out<'_> {
    fn send(&mut self, bytes: &[u8]) {
        let Some(to) = self.record.router else { return };
        self.send_to(to, bytes);
    }

    fn send_to(&mut self, to: SocketAddr, bytes: &[u8]) {
        // DTLS goes where ICE decided; media feedback follows it.
        if matches!(bytes.first(), Some(20..=63)) {
            self.record.router = Some(to);
        }
        if !self.socket.send(to, bytes) {
            self.report.unsent += 1;
        }
    }

    fn shown(&mut self, now: Instant, shown: &Shown) {
        let path = now.saturating_duration_since(shown.entry.published);
        if shown.in_window {
            self.report.times[self.record.group.place()].path.note(path);
            self.record.path_us += u64::try_from(path.as_micros()).unwrap_or(0);
            self.record.path_count += 1;
        }
        if !shown.decodable {
            return;
        }
        if let Some(eyes) = &self.record.eyes {
            eyes.shown(now);
        }
        if !std::mem::replace(&mut self.record.first_picture, true) {
            self.note(now, Milestone::FirstPicture);
        }
        if !self.record.current {
            let stream = self.shared.streams.get(self.record.stream);
            let newest = stream.and_then(|s| s.device.ledger.newest());
            let is_newest = newest.is_some_and(|n| n.number == shown.entry.number);
            if is_newest || path <= CURRENT {
                self.record.current = true;
                self.note(now, Milestone::Current);
            }
        }
    }

    fn age(&mut self, age: Duration) {
        if self.shared.measuring.load(Ordering::Relaxed) {
            self.report.times[self.record.group.place()].age.note(age);
        }
    }

    fn connected(&mut self, now: Instant) {
        self.note(now, Milestone::Connected);
    }

    fn channel_open(&mut self, now: Instant) {
        self.note(now, Milestone::ChannelOpen);
    }

    fn closed(&mut self, now: Instant) {
        self.note(now, Milestone::Closed);
    }

    fn message(&mut self, now: Instant, bytes: &[u8]) {
        if let Some(eyes) = &self.record.eyes {
            eyes.message(now, bytes);
        }
    }
}

impl Thread {
    pub(super) fn new(
        poll: Poll,
        queue: crossbeam_channel::Receiver<Command>,
        shared: Shared,
    ) -> Self {
        Self {
            poll,
            queue,
            shared,
            slots: slab::Slab::new(),
            by_id: HashMap::new(),
            timers: BinaryHeap::new(),
            inbox: Inbox::new(),
            report: Report::default(),
            ports: HashSet::new(),
        }
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        loop {
            let now = Instant::now();
            let wait = self
                .timers
                .peek()
                .map_or(NAP, |Reverse((at, _))| at.saturating_duration_since(now).min(NAP));
            if let Err(error) = self.poll.poll(&mut events, Some(wait))
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "the viewers' poller failed");
                return;
            }
            for event in &events {
                if event.token() != WAKE {
                    self.receive(event.token().0);
                }
            }
            while let Ok(command) = self.queue.try_recv() {
                if matches!(command, Command::Stop) {
                    return;
                }
                self.command(command);
            }
            self.expire();
        }
    }

    fn receive(&mut self, key: usize) {
        loop {
            let Some(slot) = self.slots.get_mut(key) else { return };
            let more = self.inbox.fill(&slot.socket);
            let now = Instant::now();
            let Slot { viewer, socket, record, .. } = slot;
            let before = viewer.packets();
            let mut out = Out { socket, record, shared: &self.shared, report: &mut self.report };
            for (from, datagram) in self.inbox.datagrams() {
                viewer.datagram(now, from, datagram, &mut out);
            }
            if let Some(eyes) = &record.eyes {
                eyes.received(viewer.packets() - before);
            }
            self.schedule(key);
            if !more {
                return;
            }
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, key))) = self.timers.peek().copied() {
            if at > now {
                return;
            }
            self.timers.pop();
            let Some(slot) = self.slots.get_mut(key) else { continue };
            if slot.scheduled != Some(at) {
                // An entry that a sooner one, or a viewer in the same place, made void.
                continue;
            }
            slot.scheduled = None;
            self.report.late.note(now.duration_since(at));
            let Slot { viewer, socket, record, .. } = slot;
            let mut out = Out { socket, record, shared: &self.shared, report: &mut self.report };
            viewer.timeout(now, &mut out);
            self.schedule(key);
        }
    }

    fn schedule(&mut self, key: usize) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let due = slot.viewer.due();
        if slot.scheduled.is_none_or(|at| due < at) {
            slot.scheduled = Some(due);
            self.timers.push(Reverse((due, key)));
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Offer { viewer, stream, group, eyes, reply } => {
                let _ = reply.send(self.offer(viewer, stream, group, eyes));
            }
            Command::Answer { viewer, sdp, reply } => {
                let _ = reply.send(self.answer(viewer, &sdp));
            }
            Command::Leave { viewer, farewell, reply } => {
                let _ = reply.send(self.leave(viewer, farewell));
            }
            Command::Input { viewer, message, reply } => {
                let _ = reply.send(self.input(viewer, &message));
            }
            Command::Abuse { viewer, kind, count, reply } => {
                let _ = reply.send(self.abuse(viewer, kind, count));
            }
            Command::Report { reset, reply } => {
                let mut report = self.report.clone();
                report.viewers = self.slots.iter().map(|(_, slot)| of(slot)).collect();
                report.ports.clone_from(&self.ports);
                let _ = reply.send(report);
                if reset {
                    self.report = Report::default();
                    for (_, slot) in &mut self.slots {
                        (slot.record.path_us, slot.record.path_count) = (0, 0);
                    }
                }
            }
            Command::Stop => {}
        }
    }

    fn offer(
        &mut self,
        id: ViewerId,
        stream: usize,
        group: Group,
        eyes: Option<Arc<Eyes>>,
    ) -> Result<String, ViewerError> {
        let failed = |e: &dyn std::fmt::Display| ViewerError::Rtc(e.to_string());
        let watched = self.shared.streams.get(stream).ok_or_else(|| failed(&"no such stream"))?;
        let verifier = Verifier::new(Arc::clone(&watched.device), Arc::clone(&watched.window));
        let mut socket = Socket::bind().map_err(|e| failed(&e))?;
        let (viewer, sdp) = Viewer::offer(Instant::now(), socket.local, verifier)?;
        let entry = self.slots.vacant_entry();
        let token = Token(entry.key());
        self.poll
            .registry()
            .register(&mut socket.io, token, Interest::READABLE)
            .map_err(|e| failed(&e))?;
        self.ports.insert(socket.local.port());
        self.by_id.insert(id, entry.key());
        let record = Record {
            id,
            stream,
            group,
            router: None,
            first_picture: false,
            current: false,
            path_us: 0,
            path_count: 0,
            eyes,
        };
        entry.insert(Slot { viewer, socket, record, scheduled: None });
        Ok(sdp)
    }

    fn answer(&mut self, id: ViewerId, sdp: &str) -> Result<(), ViewerError> {
        let key = *self.by_id.get(&id).ok_or(ViewerError::NoOffer)?;
        let slot = self.slots.get_mut(key).ok_or(ViewerError::NoOffer)?;
        let answered = slot.viewer.answer(Instant::now(), sdp);
        if answered.is_err() {
            self.leave(id, Farewell::None);
            return answered;
        }
        self.schedule(key);
        Ok(())
    }

    fn leave(&mut self, id: ViewerId, farewell: Farewell) -> Option<ViewerReport> {
        let key = self.by_id.remove(&id)?;
        let mut slot = self.slots.try_remove(key)?;
        let Slot { viewer, socket, record, .. } = &mut slot;
        let mut out = Out { socket, record, shared: &self.shared, report: &mut self.report };
        if farewell == Farewell::Proper {
            viewer.close(Instant::now(), &mut out);
        }
        let _ = self.poll.registry().deregister(&mut slot.socket.io);
        Some(of(&slot))
    }

    fn abuse(&mut self, id: ViewerId, kind: Abuse, count: u32) -> u32 {
        let Some(key) = self.by_id.get(&id).copied() else { return 0 };
        let Some(slot) = self.slots.get_mut(key) else { return 0 };
        let Slot { viewer, socket, record, .. } = slot;
        let mut out = Out { socket, record, shared: &self.shared, report: &mut self.report };
        let sent = viewer.abuse(Instant::now(), kind, count, &mut out);
        self.schedule(key);
        sent
    }

    fn input(&mut self, id: ViewerId, message: &[u8]) -> Option<Instant> {
        let key = *self.by_id.get(&id)?;
        let Slot { viewer, socket, record, .. } = self.slots.get_mut(key)?;
        let mut out = Out { socket, record, shared: &self.shared, report: &mut self.report };
        let now = Instant::now();
        let sent = viewer.send_input(now, message, &mut out);
        self.schedule(key);
        sent.then_some(now)
    }
}

fn of(slot: &Slot) -> ViewerReport {
    let Record { id, stream, group, path_us, path_count, .. } = slot.record;
    let mean = (path_count > 0).then(|| path_us as f64 / path_count as f64);
    ViewerReport { viewer: id, stream, group, outcome: slot.viewer.outcome(), mean_path_us: mean }
}
