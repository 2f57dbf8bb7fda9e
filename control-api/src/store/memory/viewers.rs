//! Intents on viewers. Not their tokens. Invariant: a kicked viewer stays gone until it is created
//! anew, and what is barred stays barred for as long as it could be used.

use std::{collections::BTreeMap, ops::Bound, sync::Arc, time::Duration};

use fanlight_proto::{
    claims::Role,
    id::{NodeId, StreamId, ViewerId, ViewerName},
    node::v1::{ViewerReport, viewer_report::Kind},
    reason::Reason,
    types::v1::{ViewerGrants, ViewerRole},
};

use super::{
    requests::Seen,
    state::{State, full},
};
use crate::{
    clock::{UnixUs, us},
    error::ControlError,
    store::{
        JoinViewer, KickViewer, LinkId, Once, Page, StreamBars, reported_name,
        rows::{StreamRow, ViewerPhase, ViewerRow},
    },
};

/// Prefix of a barred user; a bar without it is a token id.
const USER: &str = "user:";

impl State {
    pub(super) fn join_viewer(
        &mut self,
        now: UnixUs,
        intent: JoinViewer,
    ) -> Result<Once<Arc<ViewerRow>>, ControlError> {
        let JoinViewer { mut row, request } = intent;
        let key = request.as_ref().map(|(k, _)| k);
        if let Seen::Answered(answer) = self.seen(key)? {
            return Ok(Once::Answered(answer));
        }
        let stream = self
            .streams
            .get(&row.name.stream)
            .ok_or_else(|| ControlError::no_stream(row.name.stream.resource_name()))?;
        if stream.epoch != row.epoch {
            return Err(ControlError::new(Reason::StaleEpoch, "the stream moved meanwhile"));
        }
        self.may_join(now, &row, stream)?;
        row.due_us = row.join_until_us;
        if let Some(node) = self.nodes.get_mut(&row.edge) {
            let node = Arc::make_mut(node);
            node.placed_viewers = node.placed_viewers.saturating_add(1);
        }
        let row = self.put_viewer(row);
        if let Some((key, answer)) = &request {
            self.record(now, Some(key), Some(answer.clone()));
        }
        Ok(Once::Now(row))
    }

    /// Bars, limits and names.
    fn may_join(
        &self,
        now: UnixUs,
        row: &ViewerRow,
        stream: &StreamRow,
    ) -> Result<(), ControlError> {
        let name = || row.name.to_string();
        if self.is_barred(now, &row.name.stream, &row.user) {
            return Err(ControlError::new(Reason::ViewerBarred, "the user is barred")
                .about("fanlight.Viewer", name()));
        }
        if self.viewer(&row.name).is_some_and(|v| v.phase != ViewerPhase::Gone) {
            return Err(ControlError::new(Reason::ViewerExists, "the viewer exists")
                .about("fanlight.Viewer", name()));
        }
        let of_stream = self.viewers.get(&row.name.stream).map_or(0, BTreeMap::len);
        if of_stream >= self.limits.viewers_per_stream {
            return Err(full("viewers of one stream", self.limits.viewers_per_stream));
        }
        if self.viewer_rows >= self.limits.viewers {
            return Err(full("viewers", self.limits.viewers));
        }
        let limits = stream.spec.limits.unwrap_or_default();
        let counts = self.counts.get(&row.name.stream).copied().unwrap_or_default();
        let over = |what: &str, limit: u32| {
            ControlError::new(Reason::StreamLimit, format!("the stream's limit is {limit} {what}"))
                .about("fanlight.Stream", row.name.stream.resource_name())
                .retry_in(Duration::from_secs(5))
        };
        if limits.max_viewers > 0 && counts.present >= limits.max_viewers {
            return Err(over("viewers", limits.max_viewers));
        }
        if row.role == Role::Controller
            && limits.max_controllers > 0
            && counts.controllers >= limits.max_controllers
        {
            return Err(over("controllers", limits.max_controllers));
        }
        Ok(())
    }

    fn is_barred(&self, now: UnixUs, stream: &StreamId, user: &str) -> bool {
        let bars = self.bars.get(stream);
        let until = bars.and_then(|b| b.get(&format!("{USER}{user}")));
        !user.is_empty() && until.is_some_and(|until| *until > now)
    }

    pub(super) fn report_viewer(
        &mut self,
        now: UnixUs,
        link: &LinkId,
        report: &ViewerReport,
    ) -> Result<bool, ControlError> {
        self.linked(link)?;
        let name = reported_name(&report.viewer, &report.stream)?;
        let row = self.viewer(&name);
        match report.kind() {
            Kind::Connected => Ok(self.viewer_connected(now, link, name, row)),
            Kind::Gone | Kind::IceFailed => {
                // Word of an edge that the viewer has left does not end it.
                if let Some(row) = row.filter(|r| r.edge == link.node) {
                    let why: String = report.reason.chars().take(200).collect();
                    self.viewer_gone(now, &row, &why);
                }
                Ok(false)
            }
            Kind::Unspecified => {
                Err(ControlError::field("viewers.kind", "must be CONNECTED, GONE or ICE_FAILED"))
            }
        }
    }

    /// Answers true when it must be closed again.
    fn viewer_connected(
        &mut self,
        now: UnixUs,
        link: &LinkId,
        name: ViewerName,
        row: Option<Arc<ViewerRow>>,
    ) -> bool {
        match row {
            Some(row) if row.kicked => return true,
            Some(row) => {
                let mut row = ViewerRow::clone(&row);
                row.phase = ViewerPhase::Connected;
                row.edge = link.node.clone();
                row.connect_us = Some(now);
                row.reason.clear();
                row.due_us = 0;
                self.put_viewer(row);
            }
            // Nodes hold fact: a viewer this store did not invite (a reusable token, or a store
            // that began empty) is taken as it is, while there is room.
            None if self.streams.contains_key(&name.stream)
                && self.viewer_rows < self.limits.viewers
                && self.viewers.get(&name.stream).map_or(0, BTreeMap::len)
                    < self.limits.viewers_per_stream =>
            {
                let epoch = self.streams.get(&name.stream).map_or(0, |s| s.epoch);
                self.put_viewer(ViewerRow {
                    name,
                    user: String::new(),
                    grants: ViewerGrants {
                        role: ViewerRole::Unspecified.into(),
                        ..ViewerGrants::default()
                    },
                    role: Role::Observer,
                    phase: ViewerPhase::Connected,
                    reason: String::new(),
                    kicked: false,
                    edge: link.node.clone(),
                    epoch,
                    jti: String::new(),
                    join_until_us: now,
                    create_us: now,
                    connect_us: Some(now),
                    due_us: 0,
                });
            }
            None => {}
        }
        false
    }

    fn viewer_gone(&mut self, now: UnixUs, row: &ViewerRow, why: &str) {
        if row.phase == ViewerPhase::Gone {
            return;
        }
        let mut row = row.clone();
        row.phase = ViewerPhase::Gone;
        row.reason = why.to_owned();
        row.due_us = now.saturating_add(us(self.timing.forget_viewer)).max(row.join_until_us);
        self.put_viewer(row);
    }

    /// The viewers of a router that lives a new life, or is forgotten, are gone.
    pub(super) fn edge_gone(&mut self, now: UnixUs, edge: &NodeId, why: &str) {
        let gone: Vec<_> = self
            .viewers
            .values()
            .flat_map(BTreeMap::values)
            .filter(|v| v.edge == *edge && v.phase == ViewerPhase::Connected)
            .cloned()
            .collect();
        for row in gone {
            self.viewer_gone(now, &row, why);
        }
    }

    pub(super) fn kick_viewer(
        &mut self,
        now: UnixUs,
        intent: KickViewer,
    ) -> Result<Once<Vec<Arc<ViewerRow>>>, ControlError> {
        match self.seen(intent.request.as_ref())? {
            Seen::Answered(answer) => return Ok(Once::Answered(answer)),
            Seen::No | Seen::Open => {}
        }
        let first = self
            .viewer(&intent.name)
            .ok_or_else(|| ControlError::no_viewer(intent.name.to_string()))?;
        let mut kicked = vec![Arc::clone(&first)];
        if !intent.ban.is_zero() && !first.user.is_empty() {
            let of_stream = self.viewers.get(&first.name.stream);
            let same = |v: &&Arc<ViewerRow>| v.user == first.user && v.name != first.name;
            kicked.extend(of_stream.into_iter().flat_map(BTreeMap::values).filter(same).cloned());
            let until = now.saturating_add(us(intent.ban));
            self.bar(now, &first.name.stream, format!("{USER}{}", first.user), until);
        }
        self.record(now, intent.request.as_ref(), None);
        let rows = kicked.into_iter().map(|row| self.kick_one(now, &row, &intent.reason)).collect();
        Ok(Once::Now(rows))
    }

    fn kick_one(&mut self, now: UnixUs, row: &ViewerRow, reason: &str) -> Arc<ViewerRow> {
        if !row.jti.is_empty() {
            self.bar(now, &row.name.stream, row.jti.clone(), row.join_until_us);
        }
        let mut row = row.clone();
        row.phase = ViewerPhase::Gone;
        row.kicked = true;
        row.reason = reason.chars().take(200).collect();
        row.due_us = now.saturating_add(us(self.timing.forget_viewer)).max(row.join_until_us);
        self.put_viewer(row)
    }

    /// Bars a token or a user. At the bound the bar that ends soonest is dropped.
    fn bar(&mut self, now: UnixUs, stream: &StreamId, what: String, until: UnixUs) {
        if until <= now {
            return;
        }
        let bound = self.limits.bars_per_stream;
        let bars = self.bars.entry(stream.clone()).or_default();
        let kept = bars.get(&what).copied().unwrap_or_default();
        bars.insert(what, until.max(kept));
        if bars.len() > bound {
            bars.retain(|_, until| *until > now);
        }
        if bars.len() > bound {
            let soonest = bars.iter().min_by_key(|(_, until)| **until).map(|(k, _)| k.clone());
            if let Some(soonest) = soonest {
                bars.remove(&soonest);
            }
        }
    }

    pub(super) fn forget_bars(&mut self, now: UnixUs) {
        self.bars.retain(|_, bars| {
            bars.retain(|_, until| *until > now);
            !bars.is_empty()
        });
    }

    pub(super) fn bars_of(&self, now: UnixUs, router: &NodeId) -> Vec<(StreamId, StreamBars)> {
        let carried = self.by_node.get(router).into_iter().flatten();
        let bars = |id: &StreamId| {
            let of_stream = self.bars.get(id)?;
            let live = || of_stream.iter().filter(|(k, t)| !k.starts_with(USER) && **t > now);
            let until_us = live().map(|(_, t)| *t).max()?;
            Some((
                id.clone(),
                StreamBars { token_ids: live().map(|(k, _)| k.clone()).collect(), until_us },
            ))
        };
        carried.filter_map(bars).collect()
    }

    /// Ends unused invitations and forgets gone viewers.
    pub(super) fn tick_viewers(&mut self, now: UnixUs) {
        while let Some((due, stream, viewer)) = self.due_viewers.first().cloned() {
            if due > now {
                break;
            }
            self.remove_viewer(&(stream, viewer));
        }
    }

    pub(super) fn page_viewers(
        &self,
        stream: Option<&StreamId>,
        after: Option<&ViewerName>,
        limit: usize,
    ) -> Page<Arc<ViewerRow>> {
        // Tables are nested, so the page is cut from an iterator that starts at the right stream.
        let first = stream.or_else(|| after.map(|a| &a.stream));
        let from = first.map_or(Bound::Unbounded, Bound::Included);
        let streams = self.viewers.range((from, Bound::Unbounded));
        let streams = streams.take_while(|(id, _)| stream.is_none_or(|s| s == *id));
        let mut rows = streams.flat_map(|(id, of_stream)| {
            let after = after.filter(|a| a.stream == *id).map(|a| &a.viewer);
            let from: Bound<&ViewerId> = after.map_or(Bound::Unbounded, Bound::Excluded);
            of_stream.range((from, Bound::Unbounded)).map(|(_, v)| Arc::clone(v))
        });
        let page = rows.by_ref().take(limit).collect();
        Page { rows: page, more: rows.next().is_some() }
    }
}
