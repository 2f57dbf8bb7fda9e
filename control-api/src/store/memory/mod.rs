//! `memory://`: the store as one pure state machine behind one mutex. Not durable: a restart
//! begins empty and nodes are told anew. Invariant: `State::apply` alone changes state, from an
//! intent and a time, and says what changed; the same intents at the same times give the same
//! answers, so this is the model that any other store is held against.

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod model_test;
mod nodes;
mod outbox;
mod requests;
mod state;
mod streams;
mod viewers;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fanlight_proto::{
    id::{DeviceId, NodeId, StreamId, ViewerName},
    node::v1::{DeviceStatus, StreamReport, ViewerReport},
    types::v1::NodeLoad,
};
use parking_lot::Mutex;
use tokio::sync::broadcast;

pub use state::{Limits, State};
pub(crate) use streams::merged;

use super::{
    AssignOrigin, Census, CreateStream, DeleteStream, DeviceAt, Event, JoinViewer, KickViewer,
    LinkId, LinkNode, Once, Page, Reply, RequestKey, StarveStream, Store, StreamBars, UpdateStream,
    WantView,
    outbox::{DeadLetters, Position, RecordPage, RelayClaim, RelayStep},
    rows::{NodeRow, StreamRow, ViewerRow},
};
use crate::{
    clock::{Clock, UnixUs},
    error::ControlError,
    lease::Timing,
};

/// Events kept for a slow listener; one that falls further behind looks at everything.
const EVENTS_KEPT: usize = 4096;

/// The store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    state: Mutex<State>,
    clock: Clock,
    events: broadcast::Sender<Event>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(limits: Limits, timing: Timing, clock: Clock) -> Self {
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        Self { state: Mutex::new(State::new(limits, timing)), clock, events }
    }

    /// Applies one intent and tells what changed.
    fn run<T>(&self, intent: impl FnOnce(&mut State, UnixUs) -> T) -> T {
        let mut state = self.state.lock();
        // The time is read under the lock, so that intents never see time go backwards.
        let (answer, events) = state.apply(self.clock.now_us(), intent);
        // Sent under the lock, so that listeners see changes in the order they were made.
        for event in events {
            // An error means that nobody listens.
            let _ = self.events.send(event);
        }
        answer
    }

    fn done<T: Send + 'static>(
        &self,
        intent: impl FnOnce(&mut State, UnixUs) -> Result<T, ControlError>,
    ) -> Reply<'_, T> {
        Box::pin(std::future::ready(self.run(intent)))
    }
}

impl Store for MemoryStore {
    fn create_stream(&self, i: CreateStream) -> Reply<'_, Once<Arc<StreamRow>>> {
        self.done(|s, now| s.create_stream(now, i))
    }

    fn assign_origin(&self, i: AssignOrigin) -> Reply<'_, Arc<StreamRow>> {
        self.done(|s, now| s.assign_origin(now, i))
    }

    fn accept_origin(&self, link: LinkId, stream: StreamId, epoch: u64) -> Reply<'_, ()> {
        self.done(|s, now| s.accept_origin(now, &link, &stream, epoch))
    }

    fn refuse_origin(
        &self,
        link: LinkId,
        stream: StreamId,
        epoch: u64,
        reason: String,
    ) -> Reply<'_, ()> {
        self.done(|s, now| s.refuse_origin(now, &link, &stream, epoch, &reason))
    }

    fn starve_stream(&self, i: StarveStream) -> Reply<'_, ()> {
        self.done(|s, now| s.starve_stream(now, &i))
    }

    fn defer_stream(&self, stream: StreamId, after: Duration) -> Reply<'_, ()> {
        self.done(|s, now| s.defer_stream(now, &stream, after))
    }

    fn report_stream(&self, link: LinkId, report: StreamReport) -> Reply<'_, ()> {
        self.done(|s, now| s.report_stream(now, &link, &report))
    }

    fn update_stream(&self, i: UpdateStream) -> Reply<'_, Once<Arc<StreamRow>>> {
        self.done(|s, now| s.update_stream(now, i))
    }

    fn delete_stream(&self, i: DeleteStream) -> Reply<'_, Once<u32>> {
        self.done(|s, now| s.delete_stream(now, i))
    }

    fn stream(&self, id: StreamId) -> Reply<'_, Option<Arc<StreamRow>>> {
        self.done(|s, _| Ok(s.stream(&id)))
    }

    fn page_streams(
        &self,
        after: Option<StreamId>,
        limit: usize,
    ) -> Reply<'_, Page<Arc<StreamRow>>> {
        self.done(|s, _| Ok(s.page_streams(after.as_ref(), limit)))
    }

    fn concerned(&self, node: NodeId, limit: usize) -> Reply<'_, Vec<StreamId>> {
        self.done(|s, _| Ok(s.concerned(&node, limit)))
    }

    fn join_viewer(&self, i: JoinViewer) -> Reply<'_, Once<Arc<ViewerRow>>> {
        self.done(|s, now| s.join_viewer(now, i))
    }

    fn report_viewer(&self, link: LinkId, report: ViewerReport) -> Reply<'_, bool> {
        self.done(|s, now| s.report_viewer(now, &link, &report))
    }

    fn kick_viewer(&self, i: KickViewer) -> Reply<'_, Once<Vec<Arc<ViewerRow>>>> {
        self.done(|s, now| s.kick_viewer(now, i))
    }

    fn viewer(&self, name: ViewerName) -> Reply<'_, Option<Arc<ViewerRow>>> {
        self.done(|s, _| Ok(s.viewer(&name)))
    }

    fn page_viewers(
        &self,
        stream: Option<StreamId>,
        after: Option<ViewerName>,
        limit: usize,
    ) -> Reply<'_, Page<Arc<ViewerRow>>> {
        self.done(|s, _| Ok(s.page_viewers(stream.as_ref(), after.as_ref(), limit)))
    }

    fn bars_of(&self, router: NodeId) -> Reply<'_, Vec<(StreamId, StreamBars)>> {
        self.done(|s, now| Ok(s.bars_of(now, &router)))
    }

    fn link_node(&self, i: LinkNode) -> Reply<'_, LinkId> {
        self.done(|s, now| s.link_node(now, i))
    }

    fn renew_node(&self, link: LinkId, load: NodeLoad, draining: bool) -> Reply<'_, ()> {
        self.done(|s, now| s.renew_node(now, &link, load, draining))
    }

    fn agree_node(&self, link: LinkId) -> Reply<'_, ()> {
        self.done(|s, now| s.agree_node(now, &link))
    }

    fn unlink_node(&self, link: LinkId, goodbye: bool) -> Reply<'_, ()> {
        self.done(|s, now| s.unlink_node(now, &link, goodbye))
    }

    fn report_devices(&self, link: LinkId, devices: Vec<DeviceStatus>) -> Reply<'_, ()> {
        self.done(|s, now| s.report_devices(now, &link, &devices))
    }

    fn drain_node(&self, id: NodeId, deadline: Duration) -> Reply<'_, Arc<NodeRow>> {
        self.done(|s, now| s.drain_node(now, &id, deadline))
    }

    fn undrain_node(&self, id: NodeId) -> Reply<'_, Arc<NodeRow>> {
        self.done(|s, _| s.undrain_node(&id))
    }

    fn node(&self, id: NodeId) -> Reply<'_, Option<Arc<NodeRow>>> {
        self.done(|s, _| Ok(s.node(&id)))
    }

    fn page_nodes(&self, after: Option<NodeId>, limit: usize) -> Reply<'_, Page<Arc<NodeRow>>> {
        self.done(|s, _| Ok(s.page_nodes(after.as_ref(), limit)))
    }

    fn routers(&self) -> Reply<'_, Vec<Arc<NodeRow>>> {
        self.done(|s, _| Ok(s.routers()))
    }

    fn wants(&self, node: NodeId) -> Reply<'_, WantView> {
        self.done(|s, _| Ok(s.wants(&node)))
    }

    fn find_device(&self, device: DeviceId) -> Reply<'_, DeviceAt> {
        self.done(|s, _| Ok(s.find_device(&device)))
    }

    fn read_events(&self, after: Position, limit: usize) -> Reply<'_, RecordPage> {
        self.done(|s, _| s.read_events(after, limit))
    }

    fn claim_relay(
        &self,
        webhook: String,
        holder: String,
        lease: Duration,
    ) -> Reply<'_, Option<RelayClaim>> {
        self.done(|s, now| s.claim_relay(now, &webhook, &holder, lease))
    }

    fn advance_relay(&self, step: RelayStep) -> Reply<'_, bool> {
        self.done(|s, now| Ok(s.advance_relay(now, step)))
    }

    fn dead_letters(&self, webhook: String) -> Reply<'_, DeadLetters> {
        self.done(|s, _| Ok(s.dead_letters(&webhook)))
    }

    fn replay_dead(&self, webhook: String, positions: Vec<Position>) -> Reply<'_, u32> {
        self.done(|s, _| Ok(s.replay_dead(&webhook, &positions)))
    }

    fn finish_request(&self, key: RequestKey, answer: Option<Bytes>) -> Reply<'_, ()> {
        self.done(|s, _| {
            s.finish_request(&key, answer);
            Ok(())
        })
    }

    fn recall_request(&self, key: RequestKey) -> Reply<'_, Option<Bytes>> {
        self.done(|s, _| s.recall_request(&key))
    }

    fn sweep(&self) -> Reply<'_, Vec<StreamId>> {
        self.done(|s, now| Ok(s.sweep(now)))
    }

    fn census(&self) -> Reply<'_, Census> {
        self.done(|s, _| Ok(s.census()))
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn now_us(&self) -> u64 {
        self.clock.now_us()
    }
}
