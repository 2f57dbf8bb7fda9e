//! The outbox: a bounded ring of records, written in the step that changes the rows they are
//! about. Not their delivery. Invariant: positions come from the state and the time of the intent
//! alone and strictly grow; a reader whose position fell out of the ring is told so, never served
//! a gap.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use fanlight_proto::{
    id::{DeviceId, NodeId},
    reason::Reason,
    types::v1::{NodeState, StreamState},
};

use super::state::{State, full};
use crate::{
    clock::{UnixUs, us},
    error::ControlError,
    store::{
        outbox::{
            DeadLetters, DeadRow, Position, Record, RecordKind, RecordPage, RelayClaim, RelayStep,
        },
        rows::{NodeRow, StreamRow, ViewerPhase, ViewerRow},
    },
};

/// Position of an outbox that never had a record.
const EMPTY: Position = 1;
/// Webhooks that may be known; the configuration allows fewer.
const MAX_RELAYS: usize = 64;
/// Dead letters kept per webhook; at the bound the oldest is dropped and counted.
const MAX_DEAD: usize = 1_000;

/// The ring, and who relays it.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    ring: VecDeque<Arc<Record>>,
    /// Position of the newest record.
    head: Position,
    /// Positions below this one cannot be read on from.
    floor: Position,
    relays: BTreeMap<String, Relay>,
}

/// Progress of one webhook.
#[derive(Clone, Debug, Default)]
struct Relay {
    holder: String,
    until_us: UnixUs,
    cursor: Position,
    dead: VecDeque<DeadRow>,
    dropped: u64,
    replays: BTreeMap<Position, Arc<Record>>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self { ring: VecDeque::new(), head: EMPTY, floor: EMPTY, relays: BTreeMap::new() }
    }

    fn push(&mut self, now: UnixUs, bound: usize, mut record: Record) {
        // Time-based, so that positions of an earlier life of an empty store are below this one's.
        record.position = now.max(self.head + 1);
        record.at_us = now;
        if self.head == EMPTY {
            self.floor = record.position - 1;
        }
        self.head = record.position;
        self.ring.push_back(Arc::new(record));
        while self.ring.len() > bound.max(1) {
            if let Some(old) = self.ring.pop_front() {
                self.floor = old.position;
            }
        }
    }

    /// Zero reads from the oldest record.
    fn read(&self, after: Position, limit: usize) -> Result<RecordPage, ControlError> {
        // A reader that began on the empty outbox has missed nothing until something falls out.
        let began_empty = after == EMPTY
            && self.ring.front().is_none_or(|first| self.floor == first.position - 1);
        let kept = (self.floor..=self.head).contains(&after);
        if after != 0 && !kept && !began_empty {
            let why = format!("position {after} is not kept; {} to {} are", self.floor, self.head);
            return Err(ControlError::new(Reason::PositionExpired, why));
        }
        let from = self.ring.partition_point(|r| r.position <= after);
        let records = self.ring.iter().skip(from).take(limit).cloned().collect();
        Ok(RecordPage { records, head: self.head })
    }
}

impl State {
    /// Writes a record of what the running intent does.
    pub(super) fn record_event(&mut self, record: Record) {
        self.outbox.push(self.now, self.limits.events, record);
    }

    pub(super) fn read_events(
        &self,
        after: Position,
        limit: usize,
    ) -> Result<RecordPage, ControlError> {
        self.outbox.read(after, limit)
    }

    /// Records of a change of a stream.
    pub(super) fn record_stream(&mut self, old: Option<&StreamRow>, new: Option<&StreamRow>) {
        let Some(row) = new.or(old) else {
            return;
        };
        let kinds = match (old, new) {
            (_, None) => vec![RecordKind::StreamDeleted],
            (None, Some(_)) => vec![RecordKind::StreamCreated],
            (Some(old), Some(new)) => stream_changes(old, new),
        };
        let newest = row.assigned.as_ref().or(row.accepted.as_ref());
        let base = Record {
            tenant: row.spec.tenant.clone(),
            stream: Some(row.id.clone()),
            device: Some(row.device.clone()),
            node: newest.map(|a| a.node.clone()),
            epoch: row.epoch,
            state: Some(if new.is_none() { StreamState::Ended } else { row.state }),
            reason: if new.is_none() { String::new() } else { row.reason.clone() },
            ..Record::new(RecordKind::StreamUpdated)
        };
        for kind in kinds {
            self.record_event(Record { kind, ..base.clone() });
        }
    }

    /// Record of a change of a viewer.
    pub(super) fn record_viewer(&mut self, old: Option<&ViewerRow>, new: &ViewerRow) {
        let was = old.map(|o| o.phase);
        let kind = match new.phase {
            ViewerPhase::Invited if was != Some(ViewerPhase::Invited) => RecordKind::ViewerInvited,
            ViewerPhase::Connected
                if was != Some(ViewerPhase::Connected)
                    || old.is_some_and(|o| o.edge != new.edge) =>
            {
                RecordKind::ViewerConnected
            }
            ViewerPhase::Gone if new.kicked && !old.is_some_and(|o| o.kicked) => {
                RecordKind::ViewerKicked
            }
            ViewerPhase::Gone if was != Some(ViewerPhase::Gone) => RecordKind::ViewerGone,
            _ => return,
        };
        let reason = new.reason.clone();
        self.record_of_viewer(kind, new, reason);
    }

    /// Record of a viewer that is taken out of its table.
    pub(super) fn record_viewer_end(&mut self, row: &ViewerRow) {
        let unused = row.phase == ViewerPhase::Invited && row.due_us <= self.now;
        match row.phase {
            ViewerPhase::Gone => {}
            _ if unused => self.record_of_viewer(RecordKind::ViewerExpired, row, String::new()),
            _ => {
                let why = "the stream was deleted".to_owned();
                self.record_of_viewer(RecordKind::ViewerGone, row, why);
            }
        }
    }

    fn record_of_viewer(&mut self, kind: RecordKind, row: &ViewerRow, reason: String) {
        let stream = self.streams.get(&row.name.stream);
        let record = Record {
            tenant: stream.map(|s| s.spec.tenant.clone()).unwrap_or_default(),
            stream: Some(row.name.stream.clone()),
            viewer: Some(row.name.viewer.clone()),
            user: row.user.clone(),
            node: Some(row.edge.clone()),
            epoch: row.epoch,
            reason,
            ..Record::new(kind)
        };
        self.record_event(record);
    }

    /// Record of a node's new state; `None`: it was forgotten.
    pub(super) fn record_node(&mut self, id: &NodeId, state: Option<NodeState>) {
        let kind = match state {
            None => RecordKind::NodeForgotten,
            Some(NodeState::Starting) => RecordKind::NodeStarting,
            Some(NodeState::Serving) => RecordKind::NodeServing,
            Some(NodeState::Draining) => RecordKind::NodeDraining,
            Some(NodeState::Suspect) => RecordKind::NodeSuspect,
            Some(NodeState::Lost) => RecordKind::NodeLost,
            Some(NodeState::Unspecified) => return,
        };
        self.record_event(Record { node: Some(id.clone()), ..Record::new(kind) });
    }

    /// Devices that some node has online. A silent node's devices stay until its lease ran out.
    pub(super) fn devices_online(&self, node: &NodeId) -> Vec<DeviceId> {
        let row = self.nodes.get(node).filter(|row| !row.lost);
        let devices = row.into_iter().flat_map(|row| &row.devices);
        devices.filter(|(_, info)| info.online).map(|(id, _)| id.clone()).collect()
    }

    /// Records of devices that came or went with a change of a node. `before`: what
    /// [`Self::devices_online`] answered before it.
    pub(super) fn record_devices(&mut self, node: &NodeId, before: &[DeviceId]) {
        let after = self.devices_online(node);
        let elsewhere = |state: &Self, device: &DeviceId| {
            let at = state.devices.get(device).into_iter().flatten().filter(|n| *n != node);
            at.filter_map(|n| state.nodes.get(n)).any(|n| has_online(n, device))
        };
        let came = after.iter().filter(|d| !before.contains(d));
        let went = before.iter().filter(|d| !after.contains(d));
        let changes: Vec<_> = came
            .map(|d| (RecordKind::DeviceOnline, d.clone()))
            .chain(went.map(|d| (RecordKind::DeviceOffline, d.clone())))
            .filter(|(_, d)| !elsewhere(self, d))
            .collect();
        for (kind, device) in changes {
            let info = self.nodes.get(node).and_then(|n| n.devices.get(&device));
            let record = Record {
                reason: info.map(|i| i.reason.clone()).unwrap_or_default(),
                node: Some(node.clone()),
                device: Some(device),
                ..Record::new(kind)
            };
            self.record_event(record);
        }
    }

    /// Takes or renews the right to relay to a webhook. `None`: another replica has it.
    pub(super) fn claim_relay(
        &mut self,
        now: UnixUs,
        webhook: &str,
        holder: &str,
        lease: Duration,
    ) -> Result<Option<RelayClaim>, ControlError> {
        let head = self.outbox.head;
        if !self.outbox.relays.contains_key(webhook) {
            if self.outbox.relays.len() >= MAX_RELAYS {
                return Err(full("webhooks", MAX_RELAYS));
            }
            // A new webhook hears of what happens from now on.
            let relay = Relay { cursor: head, ..Relay::default() };
            self.outbox.relays.insert(webhook.to_owned(), relay);
        }
        let Some(relay) = self.outbox.relays.get_mut(webhook) else {
            return Ok(None);
        };
        if relay.holder != holder && relay.until_us > now {
            return Ok(None);
        }
        holder.clone_into(&mut relay.holder);
        relay.until_us = now.saturating_add(us(lease));
        let replays = relay.replays.values().cloned().collect();
        Ok(Some(RelayClaim { cursor: relay.cursor, replays }))
    }

    /// Stores progress. False: the claim was lost meanwhile, and nothing is stored.
    pub(super) fn advance_relay(&mut self, now: UnixUs, step: RelayStep) -> bool {
        let Some(relay) = self.outbox.relays.get_mut(&step.webhook) else {
            return false;
        };
        if relay.holder != step.holder || relay.until_us <= now {
            return false;
        }
        relay.cursor = relay.cursor.max(step.cursor);
        for done in &step.replayed {
            relay.replays.remove(done);
        }
        for mut row in step.dead {
            row.dead_us = now;
            relay.dead.push_back(row);
            if relay.dead.len() > MAX_DEAD {
                relay.dead.pop_front();
                relay.dropped += 1;
            }
        }
        true
    }

    pub(super) fn dead_letters(&self, webhook: &str) -> DeadLetters {
        let relay = self.outbox.relays.get(webhook);
        relay.map_or_else(DeadLetters::default, |r| DeadLetters {
            rows: r.dead.iter().cloned().collect(),
            dropped: r.dropped,
        })
    }

    /// Moves dead letters back to be sent; no positions: all.
    pub(super) fn replay_dead(&mut self, webhook: &str, positions: &[Position]) -> u32 {
        let Some(relay) = self.outbox.relays.get_mut(webhook) else {
            return 0;
        };
        let mut n = 0;
        for row in std::mem::take(&mut relay.dead) {
            if positions.is_empty() || positions.contains(&row.record.position) {
                n += 1;
                relay.replays.insert(row.record.position, row.record);
            } else {
                relay.dead.push_back(row);
            }
        }
        n
    }
}

fn has_online(row: &NodeRow, device: &DeviceId) -> bool {
    !row.lost && row.devices.get(device).is_some_and(|info| info.online)
}

/// What a change of a stream is called; several things may happen in one step.
fn stream_changes(old: &StreamRow, new: &StreamRow) -> Vec<RecordKind> {
    let mut kinds = Vec::new();
    if new.epoch > old.epoch && new.assigned.is_some() {
        kinds.push(RecordKind::StreamAssigned);
    }
    let origin = |row: &StreamRow| row.accepted.as_ref().map(|a| a.node.clone());
    if let (Some(from), Some(to)) = (origin(old), origin(new))
        && from != to
    {
        kinds.push(RecordKind::StreamMoved);
    }
    if new.state != old.state {
        match new.state {
            StreamState::Live => kinds.push(RecordKind::StreamLive),
            StreamState::Starved => kinds.push(RecordKind::StreamStarved),
            _ => {}
        }
    }
    let differs = new.state != old.state
        || new.reason != old.reason
        || new.spec != old.spec
        || new.ingest != old.ingest
        || new.assigned != old.assigned
        || origin(new) != origin(old);
    if kinds.is_empty() && differs {
        kinds.push(RecordKind::StreamUpdated);
    }
    kinds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outbox(now: UnixUs, n: u64, bound: usize) -> Outbox {
        let mut outbox = Outbox::new();
        for i in 0..n {
            outbox.push(now + i / 2, bound, Record::new(RecordKind::NodeServing));
        }
        outbox
    }

    #[test]
    fn a_reader_goes_on_where_it_was_or_is_told_that_it_cannot() {
        let ours = outbox(1_000, 10, 4);
        let all = ours.read(0, 100).unwrap();
        assert_eq!(all.records.len(), 4);
        let first = all.records[0].position;
        assert_eq!(ours.read(first, 100).unwrap().records.len(), 3);
        // The last one that fell out is the last one that can be read on from.
        assert_eq!(ours.read(first - 1, 100).unwrap().records.len(), 4);
        let refused = ours.read(first - 2, 100).unwrap_err();
        assert_eq!(refused.reason, Reason::PositionExpired);
        assert!(ours.read(all.head + 1, 1).is_err(), "a position that never was");
    }

    #[test]
    fn positions_of_an_earlier_life_are_refused() {
        let before = outbox(1_000, 10, 100);
        let seen = before.read(0, 100).unwrap().head;
        let mut after = Outbox::new();
        assert!(after.read(seen, 1).is_err());
        assert_eq!(after.read(EMPTY, 1).unwrap().records.len(), 0);
        after.push(9_000, 100, Record::new(RecordKind::NodeLost));
        assert!(after.read(seen, 1).is_err(), "what happened between was not seen");
        assert_eq!(after.read(EMPTY, 1).unwrap().records.len(), 1, "began on the empty outbox");
    }

    proptest! {
        #[test]
        fn reading_page_by_page_sees_every_kept_record_once(
            n in 0u64..200, bound in 1usize..50, page in 1usize..20, now in 0u64..50,
        ) {
            let ours = outbox(now, n, bound);
            let mut seen = Vec::new();
            let mut at = 0;
            loop {
                let read = ours.read(at, page).unwrap();
                let Some(next) = read.next() else { break };
                seen.extend(read.records.iter().map(|r| r.position));
                at = next;
            }
            prop_assert!(seen.windows(2).all(|w| w[0] < w[1]));
            prop_assert_eq!(seen.len() as u64, n.min(bound as u64));
            prop_assert!(seen.last().is_none_or(|last| *last == ours.head));
        }
    }
}
