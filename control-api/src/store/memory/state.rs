//! The tables of the memory store, their bounds and their indexes. Not the intents. Invariant:
//! indexes change only in `put_stream`, `put_viewer` and `put_node` (and their removals), next to
//! the row they index.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use fanlight_proto::{
    id::{DeviceId, NodeId, StreamId, ViewerId, ViewerName},
    reason::Reason,
    types::v1::ViewerRole,
};
use uuid::Uuid;

use super::{outbox::Outbox, requests::Recorded};
use crate::{
    clock::UnixUs,
    error::ControlError,
    lease::Timing,
    store::{
        Event,
        rows::{NodeRow, StreamRow, ViewerKey, ViewerPhase, ViewerRow},
    },
};

/// Bounds of the tables. At a bound the insert is refused with `TABLE_FULL`; recorded calls and
/// bars give way to the one that ends soonest.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams. One row is about 1 KB.
    pub streams: usize,
    /// Viewer rows in all. One row is about 0.5 KB.
    pub viewers: usize,
    /// Viewer rows of one stream.
    pub viewers_per_stream: usize,
    /// Nodes.
    pub nodes: usize,
    /// Devices that one worker may name.
    pub devices_per_node: usize,
    /// Recorded calls.
    pub requests: usize,
    /// Barred tokens and users of one stream.
    pub bars_per_stream: usize,
    /// Events kept for readers; at the bound the oldest is dropped. One is about 0.4 KB.
    pub events: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 100_000,
            viewers: 1_000_000,
            viewers_per_stream: 50_000,
            nodes: 10_000,
            devices_per_node: 4_096,
            requests: 200_000,
            bars_per_stream: 10_000,
            events: 65_536,
        }
    }
}

/// How many viewers of a stream are in which phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Invited or connected.
    pub(super) present: u32,
    /// Of those, controllers.
    pub(super) controllers: u32,
    /// Connected.
    pub(super) connected: u32,
}

/// All state of the control plane.
#[derive(Debug)]
pub struct State {
    pub(super) limits: Limits,
    pub(super) timing: Timing,
    /// Time of the running intent.
    pub(super) now: UnixUs,
    /// What happened, for readers.
    pub(super) outbox: Outbox,
    /// Greatest epoch handed out or reported by a node.
    pub(super) floor: u64,
    pub(super) row_version: u64,
    pub(super) link_epoch: u64,
    pub(super) streams: BTreeMap<StreamId, Arc<StreamRow>>,
    pub(super) by_node: BTreeMap<NodeId, BTreeSet<StreamId>>,
    pub(super) by_device: BTreeMap<DeviceId, BTreeSet<StreamId>>,
    pub(super) unplaced: BTreeSet<StreamId>,
    pub(super) due_streams: BTreeSet<(UnixUs, StreamId)>,
    /// When origins that streams moved away from end.
    pub(super) due_moves: BTreeSet<(UnixUs, StreamId)>,
    pub(super) viewers: BTreeMap<StreamId, BTreeMap<ViewerId, Arc<ViewerRow>>>,
    pub(super) viewer_rows: usize,
    pub(super) counts: BTreeMap<StreamId, Counts>,
    pub(super) due_viewers: BTreeSet<(UnixUs, StreamId, ViewerId)>,
    pub(super) bars: BTreeMap<StreamId, BTreeMap<String, UnixUs>>,
    pub(super) nodes: BTreeMap<NodeId, Arc<NodeRow>>,
    pub(super) devices: BTreeMap<DeviceId, BTreeSet<NodeId>>,
    pub(super) requests: HashMap<Uuid, Recorded>,
    pub(super) due_requests: BTreeSet<(UnixUs, Uuid)>,
    events: Vec<Event>,
}

impl State {
    /// Nothing known.
    pub fn new(limits: Limits, timing: Timing) -> Self {
        Self {
            limits,
            timing,
            now: 0,
            outbox: Outbox::new(),
            floor: 0,
            row_version: 0,
            link_epoch: 0,
            streams: BTreeMap::new(),
            by_node: BTreeMap::new(),
            by_device: BTreeMap::new(),
            unplaced: BTreeSet::new(),
            due_streams: BTreeSet::new(),
            due_moves: BTreeSet::new(),
            viewers: BTreeMap::new(),
            viewer_rows: 0,
            counts: BTreeMap::new(),
            due_viewers: BTreeSet::new(),
            bars: BTreeMap::new(),
            nodes: BTreeMap::new(),
            devices: BTreeMap::new(),
            requests: HashMap::new(),
            due_requests: BTreeSet::new(),
            events: Vec::new(),
        }
    }

    /// Applies one intent at a time; answers its answer and what changed.
    pub fn apply<T>(
        &mut self,
        now: UnixUs,
        intent: impl FnOnce(&mut Self, UnixUs) -> T,
    ) -> (T, Vec<Event>) {
        self.now = now;
        let answer = intent(self, now);
        let mut events = std::mem::take(&mut self.events);
        let mut seen = Vec::with_capacity(events.len());
        events.retain(|e| {
            !seen.contains(e)
                && (seen.len() >= 64 || {
                    seen.push(e.clone());
                    true
                })
        });
        (answer, events)
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.events.push(event);
    }

    /// The next epoch: grows with time, over everything handed out and everything nodes saw.
    pub(super) fn next_epoch(&mut self, now: UnixUs, stored: u64) -> u64 {
        let epoch = now.max(stored.saturating_add(1)).max(self.floor.saturating_add(1));
        self.floor = epoch;
        epoch
    }

    /// Inserts or replaces a stream. Bumps its version when anything but the version differs.
    pub(super) fn put_stream(&mut self, now: UnixUs, mut row: StreamRow) -> Arc<StreamRow> {
        let old = self.streams.get(&row.id).cloned();
        if let Some(old) = &old {
            if **old == row {
                return Arc::clone(old);
            }
            self.unindex_stream(old);
        }
        self.row_version += 1;
        row.version = self.row_version;
        row.update_us = now;
        for node in row.nodes() {
            self.by_node.entry(node.clone()).or_default().insert(row.id.clone());
        }
        self.by_device.entry(row.device.clone()).or_default().insert(row.id.clone());
        if !row.is_accepted() {
            self.unplaced.insert(row.id.clone());
        }
        if row.due_us > 0 {
            self.due_streams.insert((row.due_us, row.id.clone()));
        }
        if let Some(leaving) = &row.leaving {
            self.due_moves.insert((leaving.until_us, row.id.clone()));
        }
        let row = Arc::new(row);
        self.streams.insert(row.id.clone(), Arc::clone(&row));
        self.record_stream(old.as_deref(), Some(&row));
        self.tell_stream(old.as_deref(), Some(&row));
        row
    }

    /// Changes a stream in place.
    pub(super) fn edit_stream(
        &mut self,
        now: UnixUs,
        id: &StreamId,
        edit: impl FnOnce(&mut StreamRow),
    ) -> Result<Arc<StreamRow>, ControlError> {
        let row =
            self.streams.get(id).ok_or_else(|| ControlError::no_stream(id.resource_name()))?;
        let mut row = StreamRow::clone(row);
        edit(&mut row);
        Ok(self.put_stream(now, row))
    }

    /// Removes a stream.
    pub(super) fn remove_stream(&mut self, id: &StreamId) -> Option<Arc<StreamRow>> {
        let row = self.streams.remove(id)?;
        self.unindex_stream(&row);
        self.record_stream(Some(&row), None);
        self.tell_stream(Some(&row), None);
        Some(row)
    }

    fn unindex_stream(&mut self, row: &StreamRow) {
        for node in row.nodes() {
            take_out(&mut self.by_node, node, &row.id);
        }
        take_out(&mut self.by_device, &row.device, &row.id);
        self.unplaced.remove(&row.id);
        self.due_streams.remove(&(row.due_us, row.id.clone()));
        if let Some(leaving) = &row.leaving {
            self.due_moves.remove(&(leaving.until_us, row.id.clone()));
        }
    }

    /// Events of a change of a stream; nodes are told when what they shall run may differ.
    fn tell_stream(&mut self, old: Option<&StreamRow>, new: Option<&StreamRow>) {
        let work = |r: Option<&StreamRow>| {
            let told = |r: &StreamRow| (r.spec.video.clone(), r.spec.audio);
            r.map(|r| {
                let moved = r.moved().is_some();
                let leaving = r.leaving.as_ref().map(|l| (l.from.clone(), l.push, moved));
                (r.assigned.clone(), r.accepted.clone(), leaving, r.ingest.clone(), told(r))
            })
        };
        let rows = || old.into_iter().chain(new);
        let mut touched = BTreeSet::new();
        for row in rows() {
            touched.extend(row.nodes().cloned());
        }
        let work_changed = work(old) != work(new);
        for node in touched {
            self.recount_node(&node);
            if work_changed {
                self.tell(Event::Wants(node));
            }
        }
        if let Some(id) = rows().map(|r| r.id.clone()).next() {
            self.tell(Event::Stream(id));
        }
    }

    fn recount_node(&mut self, id: &NodeId) {
        let n = self.by_node.get(id).map_or(0, BTreeSet::len);
        if let Some(node) = self.nodes.get_mut(id) {
            let n = u32::try_from(n).unwrap_or(u32::MAX);
            if node.assignments != n {
                Arc::make_mut(node).assignments = n;
            }
        }
    }

    /// Inserts or replaces a viewer.
    pub(super) fn put_viewer(&mut self, row: ViewerRow) -> Arc<ViewerRow> {
        let (stream, viewer) = (row.name.stream.clone(), row.name.viewer.clone());
        let row = Arc::new(row);
        let old = self
            .viewers
            .entry(stream.clone())
            .or_default()
            .insert(viewer.clone(), Arc::clone(&row));
        match &old {
            Some(old) => self.unindex_viewer(old),
            None => self.viewer_rows += 1,
        }
        if row.due_us > 0 {
            self.due_viewers.insert((row.due_us, stream, viewer));
        }
        self.count_viewer(&row, true);
        self.record_viewer(old.as_deref(), &row);
        self.tell(Event::Viewer(row.name.clone()));
        row
    }

    /// Forgets a viewer.
    pub(super) fn remove_viewer(&mut self, (stream, viewer): &ViewerKey) {
        let Some(of_stream) = self.viewers.get_mut(stream) else {
            return;
        };
        if let Some(row) = of_stream.remove(viewer) {
            if of_stream.is_empty() {
                self.viewers.remove(stream);
            }
            self.viewer_rows -= 1;
            self.unindex_viewer(&row);
            self.record_viewer_end(&row);
            self.tell(Event::Viewer(row.name.clone()));
        }
    }

    fn unindex_viewer(&mut self, row: &ViewerRow) {
        let key = (row.due_us, row.name.stream.clone(), row.name.viewer.clone());
        self.due_viewers.remove(&key);
        self.count_viewer(row, false);
    }

    fn count_viewer(&mut self, row: &ViewerRow, add: bool) {
        if row.phase == ViewerPhase::Gone {
            return;
        }
        let by = |n: &mut u32| *n = if add { n.saturating_add(1) } else { n.saturating_sub(1) };
        let counts = self.counts.entry(row.name.stream.clone()).or_default();
        by(&mut counts.present);
        if row.grants.role() == ViewerRole::Controller {
            by(&mut counts.controllers);
        }
        if row.phase == ViewerPhase::Connected {
            by(&mut counts.connected);
        }
        let counts = *counts;
        if counts == Counts::default() {
            self.counts.remove(&row.name.stream);
        }
        // The number of viewers is no change of the stream: neither version nor event.
        // A row that somebody reads is copied to be changed, so only a change is one.
        if let Some(stream) = self.streams.get_mut(&row.name.stream)
            && stream.viewers != counts.connected
        {
            Arc::make_mut(stream).viewers = counts.connected;
        }
    }

    /// Reads a stream.
    pub(super) fn stream(&self, id: &StreamId) -> Option<Arc<StreamRow>> {
        self.streams.get(id).cloned()
    }

    /// Reads a viewer.
    pub(super) fn viewer(&self, name: &ViewerName) -> Option<Arc<ViewerRow>> {
        self.viewers.get(&name.stream)?.get(&name.viewer).cloned()
    }

    /// Reads a node.
    pub(super) fn node(&self, id: &NodeId) -> Option<Arc<NodeRow>> {
        self.nodes.get(id).cloned()
    }
}

/// Removes one entry of an index, and the set when it was the last.
fn take_out<K: Ord>(index: &mut BTreeMap<K, BTreeSet<StreamId>>, key: &K, id: &StreamId) {
    if let Some(streams) = index.get_mut(key) {
        streams.remove(id);
        if streams.is_empty() {
            index.remove(key);
        }
    }
}

/// A bounded table has no room.
pub(super) fn full(what: &str, bound: usize) -> ControlError {
    ControlError::new(Reason::TableFull, format!("{what}: the bound of {bound} is reached"))
        .retry_in(std::time::Duration::from_secs(5))
}
