//! Intents on streams. Not who is picked (that is `place.rs`) nor when a stream moves
//! (`witness.rs`). Invariant: the epoch of a stream only grows, and a word about an epoch that is
//! not the newest changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fanlight_proto::{
    control::v1::{DeleteStreamResponse, Stream},
    id::{NodeId, StreamId},
    node::v1::StreamReport,
    reason::Reason,
    types::v1::StreamState,
};
use prost::Message as _;

use super::{
    requests::Seen,
    state::{State, full},
};
use crate::{
    clock::{UnixUs, us},
    error::ControlError,
    store::{
        AssignOrigin, CreateStream, DeleteStream, LinkId, Once, Page, SpecField, StarveStream,
        UpdateStream, WantView,
        rows::{Assigned, Leaving, PushWord, StreamRow},
    },
};

/// Longest reason word or sentence kept from a node.
const MAX_REASON_CHARS: usize = 200;
/// Refusals kept per stream; more than the candidates that are ever tried in a row.
const MAX_REFUSED: usize = 8;

impl State {
    pub(super) fn create_stream(
        &mut self,
        now: UnixUs,
        intent: CreateStream,
    ) -> Result<Once<Arc<StreamRow>>, ControlError> {
        match self.seen(intent.request.as_ref())? {
            Seen::Answered(answer) => return Ok(Once::Answered(answer)),
            // Begun, and its stream still there: go on from it. Gone: begin again.
            Seen::Open => {
                if let Some(row) = self.stream(&intent.id) {
                    return Ok(Once::Before(row));
                }
            }
            Seen::No => {}
        }
        if self.streams.contains_key(&intent.id) {
            let name = intent.id.resource_name();
            return Err(ControlError::new(Reason::StreamExists, "the stream exists")
                .about("fanlight.Stream", name));
        }
        if self.streams.len() >= self.limits.streams {
            return Err(full("streams", self.limits.streams));
        }
        self.record(now, intent.request.as_ref(), None);
        let counts = self.counts.get(&intent.id).copied().unwrap_or_default();
        let row = StreamRow {
            id: intent.id,
            device: intent.device,
            spec: intent.spec,
            state: StreamState::Pending,
            reason: String::new(),
            ingest: None,
            epoch: 0,
            assigned: None,
            accepted: None,
            leaving: None,
            gentle: false,
            refused: Vec::new(),
            push: PushWord::Unknown,
            attempts: 0,
            due_us: 0,
            create_us: now,
            update_us: now,
            version: 0,
            viewers: counts.connected,
        };
        Ok(Once::Now(self.put_stream(now, row)))
    }

    pub(super) fn assign_origin(
        &mut self,
        now: UnixUs,
        intent: AssignOrigin,
    ) -> Result<Arc<StreamRow>, ControlError> {
        let row = self
            .stream(&intent.stream)
            .ok_or_else(|| ControlError::no_stream(intent.stream.resource_name()))?;
        if row.epoch != intent.expect_epoch {
            return Err(ControlError::new(Reason::StaleEpoch, "the stream was assigned meanwhile"));
        }
        let lives = self.nodes.get(&intent.node).map(|n| n.incarnation);
        if lives != Some(intent.incarnation) {
            return Err(ControlError::new(Reason::StaleIncarnation, "the router was restarted"));
        }
        let epoch = self.next_epoch(now, row.epoch);
        if let Some(node) = self.nodes.get_mut(&intent.node) {
            let node = Arc::make_mut(node);
            node.placed_streams = node.placed_streams.saturating_add(1);
        }
        self.edit_stream(now, &intent.stream, |row| {
            row.epoch = epoch;
            row.gentle = intent.gentle && row.is_accepted() && row.state == StreamState::Live;
            row.assigned = Some(Assigned {
                epoch,
                node: intent.node,
                incarnation: intent.incarnation,
                push_token: intent.push_token,
            });
            row.ingest = Some(intent.ingest);
            row.push = PushWord::Unknown;
            row.state = moving(row);
            row.reason = intent.reason;
            row.due_us = 0;
        })
    }

    /// A router lives a new life: the streams of its old one go on there under greater epochs.
    pub(super) fn reassign_restarted(&mut self, now: UnixUs, node: &NodeId, incarnation: u64) {
        let streams = self.by_node.get(node).cloned().unwrap_or_default();
        for id in streams {
            let old = |row: &StreamRow| match &row.assigned {
                Some(a) => a.node == *node && a.incarnation < incarnation,
                None => false,
            };
            let Some(stored) = self.streams.get(&id).filter(|r| old(r)).map(|r| r.epoch) else {
                continue;
            };
            let epoch = self.next_epoch(now, stored);
            // The row is there: it was read above.
            let _ = self.edit_stream(now, &id, |row| {
                row.epoch = epoch;
                row.gentle = false;
                if let Some(assigned) = &mut row.assigned {
                    assigned.epoch = epoch;
                    assigned.incarnation = incarnation;
                }
                row.push = PushWord::Unknown;
                row.state = moving(row);
                row.reason = Reason::OriginRestarted.as_str().to_owned();
                row.refused.clear();
                row.due_us = 0;
            });
        }
    }

    pub(super) fn accept_origin(
        &mut self,
        now: UnixUs,
        link: &LinkId,
        stream: &StreamId,
        epoch: u64,
    ) -> Result<(), ControlError> {
        self.linked(link)?;
        let newest = self.streams.get(stream).and_then(|r| r.assigned.as_ref());
        let matches = newest.is_some_and(|a| {
            a.node == link.node && a.incarnation == link.incarnation && a.epoch == epoch
        });
        if matches {
            let until_us = self.leave_by(now, stream);
            self.edit_stream(now, stream, |row| accept(row, until_us))?;
        }
        Ok(())
    }

    /// When the accepted origin of a stream ends, if the stream moves away from it now: with the
    /// drain of its node.
    fn leave_by(&self, now: UnixUs, stream: &StreamId) -> UnixUs {
        let accepted = self.streams.get(stream).and_then(|r| r.accepted.as_ref());
        let drained = accepted.and_then(|a| self.nodes.get(&a.node)?.drain_us);
        drained.filter(|at| *at > now).unwrap_or_else(|| now.saturating_add(us(self.timing.drain)))
    }

    pub(super) fn refuse_origin(
        &mut self,
        now: UnixUs,
        link: &LinkId,
        stream: &StreamId,
        epoch: u64,
        reason: &str,
    ) -> Result<(), ControlError> {
        self.linked(link)?;
        let newest = self.streams.get(stream).and_then(|r| r.assigned.as_ref());
        if newest.is_some_and(|a| a.node == link.node && a.epoch == epoch) {
            self.edit_stream(now, stream, |row| {
                // Back to the origin that took it, if any: media may still run there.
                row.assigned = row.accepted.take_if(|a| a.epoch != epoch);
                row.accepted.clone_from(&row.assigned);
                if row.refused.len() < MAX_REFUSED {
                    row.refused.push(link.node.clone());
                }
                row.attempts = row.attempts.saturating_add(1);
                row.reason = cut(reason);
                if row.assigned.is_none() {
                    row.state = StreamState::Pending;
                } else if row.gentle {
                    // It was live when the move began, and goes on where it was.
                    row.state = StreamState::Live;
                }
                row.gentle = false;
            })?;
        }
        Ok(())
    }

    pub(super) fn starve_stream(
        &mut self,
        now: UnixUs,
        intent: &StarveStream,
    ) -> Result<(), ControlError> {
        let Some(row) = self.streams.get(&intent.stream) else {
            return Ok(());
        };
        if row.epoch == intent.expect_epoch {
            self.edit_stream(now, &intent.stream, |row| {
                if row.accepted.is_none() {
                    row.state = StreamState::Starved;
                }
                row.reason = intent.reason.as_str().to_owned();
                row.refused.clear();
                row.attempts = row.attempts.saturating_add(1);
                row.due_us = now.saturating_add(us(intent.retry));
            })?;
        }
        Ok(())
    }

    pub(super) fn defer_stream(
        &mut self,
        now: UnixUs,
        stream: &StreamId,
        after: Duration,
    ) -> Result<(), ControlError> {
        if let Some(row) = self.streams.get_mut(stream) {
            let row = Arc::make_mut(row);
            self.due_streams.remove(&(row.due_us, stream.clone()));
            row.due_us = now.saturating_add(us(after));
            self.due_streams.insert((row.due_us, stream.clone()));
        }
        Ok(())
    }

    pub(super) fn report_stream(
        &mut self,
        now: UnixUs,
        link: &LinkId,
        report: &StreamReport,
    ) -> Result<(), ControlError> {
        self.linked(link)?;
        let Ok(id) = StreamId::from_resource_name(&report.stream) else {
            return Err(ControlError::field("streams.stream", "not a stream's name"));
        };
        let Some(row) = self.streams.get(&id) else {
            return Ok(());
        };
        let named = |a: &Option<Assigned>| a.as_ref().is_some_and(|a| a.epoch == report.epoch);
        let from_origin =
            named(&row.assigned) && row.assigned.as_ref().is_some_and(|a| a.node == link.node);
        let from_ingest = named(&row.accepted) && row.ingest.as_ref() == Some(&link.node);
        let left = row
            .leaving
            .as_ref()
            .is_some_and(|l| l.from.node == link.node && l.from.epoch == report.epoch);
        let state = report.state();
        if from_origin && matches!(state, StreamState::Assigned | StreamState::Live) {
            let until_us = self.leave_by(now, &id);
            self.edit_stream(now, &id, |row| {
                accept(row, until_us);
                let moving = row.state == StreamState::Moving && state == StreamState::Assigned;
                if !moving {
                    row.state = state;
                }
                row.reason = cut(&report.reason);
            })?;
        } else if left && state == StreamState::Ended {
            self.edit_stream(now, &id, |row| row.leaving = None)?;
        } else if from_ingest {
            self.edit_stream(now, &id, |row| {
                row.push = match state {
                    StreamState::Live => PushWord::Healthy,
                    StreamState::Starved => PushWord::Broken,
                    _ => PushWord::Unknown,
                };
                if row.state != StreamState::Live {
                    row.reason = cut(&report.reason);
                }
            })?;
        }
        Ok(())
    }

    pub(super) fn update_stream(
        &mut self,
        now: UnixUs,
        intent: UpdateStream,
    ) -> Result<Once<Arc<StreamRow>>, ControlError> {
        let before = match self.seen(intent.request.as_ref())? {
            Seen::Answered(answer) => return Ok(Once::Answered(answer)),
            Seen::Open => true,
            Seen::No => false,
        };
        let row = self
            .stream(&intent.id)
            .ok_or_else(|| ControlError::no_stream(intent.id.resource_name()))?;
        // Done before, with its answer not recorded yet: the row as it is now is the answer.
        if before {
            return Ok(Once::Before(row));
        }
        if intent.version.is_some_and(|v| v != row.version) {
            return Err(ControlError::new(Reason::EtagMismatch, "the stream changed meanwhile")
                .about("fanlight.Stream", intent.id.resource_name()));
        }
        self.record(now, intent.request.as_ref(), None);
        let spec = merged(&row.spec, &intent.spec, &intent.fields);
        let row = self.edit_stream(now, &intent.id, |row| row.spec = Arc::new(spec))?;
        Ok(Once::Now(row))
    }

    pub(super) fn delete_stream(
        &mut self,
        now: UnixUs,
        intent: DeleteStream,
    ) -> Result<Once<u32>, ControlError> {
        if let Seen::Answered(answer) = self.seen(intent.request.as_ref())? {
            return Ok(Once::Answered(answer));
        }
        let Some(row) = self.streams.get(&intent.id) else {
            if !intent.allow_missing {
                return Err(ControlError::no_stream(intent.id.resource_name()));
            }
            return Ok(Once::Now(self.record_deleted(now, &intent, 0)));
        };
        if intent.version.is_some_and(|v| v != row.version) {
            return Err(ControlError::new(Reason::EtagMismatch, "the stream changed meanwhile")
                .about("fanlight.Stream", intent.id.resource_name()));
        }
        let closed = self.counts.get(&intent.id).map_or(0, |c| c.present);
        // Viewers first: the end of the stream is the last that is heard of it.
        let viewers = self.viewers.get(&intent.id).map(|v| v.keys().cloned().collect::<Vec<_>>());
        for viewer in viewers.unwrap_or_default() {
            self.remove_viewer(&(intent.id.clone(), viewer));
        }
        self.remove_stream(&intent.id);
        Ok(Once::Now(self.record_deleted(now, &intent, closed)))
    }

    fn record_deleted(&mut self, now: UnixUs, intent: &DeleteStream, viewers_closed: u32) -> u32 {
        let answer = DeleteStreamResponse { viewers_closed }.encode_to_vec();
        self.record(now, intent.request.as_ref(), Some(Bytes::from(answer)));
        viewers_closed
    }

    pub(super) fn page_streams(
        &self,
        after: Option<&StreamId>,
        limit: usize,
    ) -> Page<Arc<StreamRow>> {
        page(&self.streams, after, limit)
    }

    /// Streams that name the node, that show a device it has, or that wait for any node.
    pub(super) fn concerned(&self, node: &NodeId, limit: usize) -> Vec<StreamId> {
        let devices = self.nodes.get(node).into_iter().flat_map(|n| n.devices.keys());
        let shown = devices.filter_map(|d| self.by_device.get(d)).flatten();
        let named = self.by_node.get(node).into_iter().flatten();
        let mut all: BTreeSet<&StreamId> = named.chain(shown).collect();
        all.extend(self.unplaced.iter().take(limit));
        all.into_iter().cloned().collect()
    }

    pub(super) fn wants(&self, node: &NodeId) -> WantView {
        let ids = self.by_node.get(node);
        let rows: Vec<_> =
            ids.into_iter().flatten().filter_map(|id| self.streams.get(id).cloned()).collect();
        let mut addresses = BTreeMap::new();
        let left = rows.iter().filter_map(|r| r.leaving.as_ref()).map(|l| &l.from);
        let origins = rows.iter().filter_map(|r| r.accepted.as_ref()).chain(left);
        for origin in origins.map(|a| &a.node) {
            if let Some(row) = self.nodes.get(origin) {
                addresses.entry(origin.clone()).or_insert_with(|| row.addresses());
            }
        }
        WantView { rows, addresses }
    }
}

/// The newest assignment was taken. The one before it is left, and ends at `until_us`.
fn accept(row: &mut StreamRow, until_us: UnixUs) {
    if row.is_accepted() {
        return;
    }
    let old = std::mem::replace(&mut row.accepted, row.assigned.clone());
    let here = |a: &Assigned| row.assigned.as_ref().is_some_and(|new| new.node == a.node);
    row.leaving.take_if(|l| here(&l.from));
    // An origin that has a picture is not given up for one that has none.
    let keeps = !row.gentle && row.leaving.as_ref().is_some_and(|l| l.push);
    if let Some(from) = old.filter(|old| !here(old) && !keeps) {
        row.leaving = Some(Leaving { from, push: row.gentle, until_us });
    }
    let moving = row.leaving.as_ref().is_some_and(|l| l.push);
    row.state = if moving { StreamState::Moving } else { StreamState::Assigned };
    row.gentle = false;
    row.reason.clear();
    row.refused.clear();
    row.attempts = 0;
    row.due_us = 0;
}

/// State of a stream that was just assigned.
fn moving(row: &StreamRow) -> StreamState {
    if row.accepted.is_some() { StreamState::Moving } else { StreamState::Pending }
}

/// A stream's settings with some fields replaced.
pub(crate) fn merged(old: &Stream, new: &Stream, fields: &[SpecField]) -> Stream {
    let mut out = old.clone();
    let asked = new.limits.unwrap_or_default();
    for field in fields {
        match field {
            SpecField::Labels => out.labels.clone_from(&new.labels),
            SpecField::Video => out.video.clone_from(&new.video),
            SpecField::Audio => out.audio = new.audio,
            SpecField::Limits => out.limits = new.limits,
            SpecField::MaxViewers => {
                out.limits.get_or_insert_default().max_viewers = asked.max_viewers;
            }
            SpecField::MaxControllers => {
                out.limits.get_or_insert_default().max_controllers = asked.max_controllers;
            }
            SpecField::PreferredRegion => out.preferred_region.clone_from(&new.preferred_region),
        }
    }
    out
}

fn cut(reason: &str) -> String {
    reason.chars().take(MAX_REASON_CHARS).collect()
}

/// One page of an ordered table.
pub(super) fn page<K: Ord, V: Clone>(
    table: &BTreeMap<K, V>,
    after: Option<&K>,
    limit: usize,
) -> Page<V> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut rows = table.range((from, Bound::Unbounded)).map(|(_, v)| v.clone());
    let page = rows.by_ref().take(limit).collect();
    Page { rows: page, more: rows.next().is_some() }
}
