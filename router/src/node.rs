//! The router as a node: what the control API tells it, and what it tells back. Not the link
//! itself, which `ops` keeps. Invariant: nothing here is needed for media; without a link, wants,
//! keys, bars and sessions stay as they are.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use fanlight_ops::{
    admin::Readiness,
    link::{LinkHandler, refused},
    ticket,
};
use fanlight_proto::{
    id::{NodeId, StreamId, ViewerName},
    node::v1::{
        Ack, Action, Apply, Bar, Kick, Refusal, Report, Running, SetGrants, StreamGauge,
        StreamReport, ViewerReport, action, viewer_report, want,
    },
    reason::Reason,
    types::v1::{Assignment, ItemStatus, NodeLoad, NodeState, ViewerRole},
};
use fanlight_router_core::{DownReason, GoneReason, LeaveReason, Role, SessionId};
use futures::future::{BoxFuture, FutureExt as _};
use parking_lot::Mutex;
use prost_types::Timestamp;
use tonic::Code;

use crate::{
    drain::Draining,
    metrics::NodeMetrics,
    sessions::{Session, Sessions, gone_word},
    shard::{Command, ShardEvent, ShardHandle},
    stream::{Moved, Want},
    streams::{Streams, WantError},
    token::{Tokens, unix_s},
};

/// Longest bar taken when none or a later end is given: tokens live for ten minutes at most.
const BAR_DEFAULT_S: u64 = 15 * 60;
/// Longest address that viewers are sent to: with a ticket it fits a message (WIRE.md, 5.3).
const MOVED_URL_MAX: usize = 3_072;
/// Most viewer names of one stream in an inventory.
const NAMES_PER_STREAM_MAX: usize = 1_000;

/// Something to report.
#[derive(Debug)]
pub(crate) enum Fact {
    /// A stream's state.
    Stream(StreamReport),
    /// A viewer's life.
    Viewer(ViewerReport),
}

/// What a link tells and asks.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) streams: Arc<Streams>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) shards: Arc<[ShardHandle]>,
    pub(crate) metrics: NodeMetrics,
    pub(crate) draining: Arc<Draining>,
    pub(crate) egress_bps_max: u64,
    pub(crate) sessions_max: usize,
    pub(crate) egress: Mutex<EgressRate>,
    pub(crate) ice: Mutex<IceWindow>,
    pub(crate) readiness: Readiness,
    pub(crate) component: String,
}

/// Attempts and failures of viewers to connect, over the last one to two minutes: a router that
/// users cannot reach is found by their share.
#[derive(Debug)]
pub(crate) struct IceWindow {
    since: Instant,
    present: (u32, u32),
    past: (u32, u32),
}

impl IceWindow {
    const LENGTH: Duration = Duration::from_secs(60);

    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, present: (0, 0), past: (0, 0) }
    }

    fn note(&mut self, now: Instant, failed: bool) {
        self.turn(now);
        self.present.0 += 1;
        self.present.1 += u32::from(failed);
    }

    /// Attempts, failures.
    fn read(&mut self, now: Instant) -> (u32, u32) {
        self.turn(now);
        (self.present.0 + self.past.0, self.present.1 + self.past.1)
    }

    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age < Self::LENGTH {
            return;
        }
        self.past = if age < 2 * Self::LENGTH { self.present } else { (0, 0) };
        self.present = (0, 0);
        self.since = now;
    }
}

/// Bytes sent at the last look.
#[derive(Debug)]
pub(crate) struct EgressRate {
    pub(crate) at: Instant,
    pub(crate) bytes: u64,
    pub(crate) bps: u64,
}

// ---- from the shards ----

impl Node {
    /// Does what a shard asks for, and reports what it says.
    pub(crate) fn shard_event(&self, event: ShardEvent) {
        match event {
            ShardEvent::ToDevice { stream, viewer, message } => {
                if let Some(stream) = self.streams.by_key(stream) {
                    stream.to_device(viewer, message);
                }
            }
            ShardEvent::KeyframeRequest { stream, reason } => {
                if let Some(stream) = self.streams.by_key(stream) {
                    tracing::debug!(stream = %stream.name(), ?reason, "keyframe wanted");
                    stream.request_keyframe(&format!("{reason:?}"));
                }
            }
            ShardEvent::ViewerConnected { session } => self.connected(session),
            ShardEvent::ViewerGone { session, reason } => self.gone(session, reason),
            ShardEvent::Died { shard } => self.shard_died(shard),
        }
    }

    /// Its sessions will never be told of again, so they end here. Other shards go on; the process
    /// is no longer ready, so that somebody looks.
    fn shard_died(&self, shard: usize) {
        self.readiness.set(self.component.clone(), false, format!("shard {shard} died"));
        for session in self.sessions.all() {
            if session.shard == shard {
                self.gone(session.id, GoneReason::ProtocolError);
            }
        }
    }

    fn connected(&self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else { return };
        if session.set_connected() {
            self.ice.lock().note(Instant::now(), false);
            self.report_viewer(&session, viewer_report::Kind::Connected, "");
        }
    }

    fn gone(&self, id: SessionId, reason: GoneReason) {
        // Unknown: its join failed, which was told to the client already.
        let Some(session) = self.sessions.close(id) else { return };
        let word = gone_word(reason);
        self.metrics.count_reason("fanlight_router_sessions_closed_total", word);
        tracing::info!(
            stream = %session.stream.name(), viewer = %session.viewer, reason = word,
            seconds = session.since.elapsed().as_secs(), "viewer gone"
        );
        let failed = reason == GoneReason::NeverConnected && !session.was_connected();
        if failed {
            self.ice.lock().note(Instant::now(), true);
        }
        let kind = if failed { viewer_report::Kind::IceFailed } else { viewer_report::Kind::Gone };
        self.report_viewer(&session, kind, word);
    }

    fn report_viewer(&self, session: &Session, kind: viewer_report::Kind, reason: &str) {
        self.streams.tell(Fact::Viewer(ViewerReport {
            viewer: session.viewer.as_str().to_owned(),
            kind: kind.into(),
            reason: reason.to_owned(),
            time: Some(Timestamp {
                seconds: i64::try_from(unix_s()).unwrap_or(i64::MAX),
                nanos: 0,
            }),
            stream: session.stream.name().resource_name(),
        }));
    }
}

// ---- from the control API ----

impl Node {
    fn apply_now(&self, apply: &Apply) -> Ack {
        let mut refusals = Vec::new();
        let mut kept = Vec::new();
        for item in &apply.wants {
            match self.take(item) {
                Ok(name) => kept.push(name),
                Err(refusal) => {
                    if let Some(status) = &refusal.status
                        && let Some(reason) = Reason::parse(&status.reason)
                    {
                        let name = "fanlight_router_wants_refused_total";
                        self.metrics.count_reason(name, reason.as_str());
                    }
                    // A refused change must not end what runs.
                    kept.extend(StreamId::from_resource_name(&refusal.stream));
                    refusals.push(refusal);
                }
            }
        }
        if apply.full {
            self.streams.retain(&kept);
        }
        for stop in &apply.stops {
            if let Ok(name) = StreamId::from_resource_name(&stop.stream) {
                self.streams.stop(&name, stop.epoch, DownReason::Deleted);
            }
        }
        Ack { status: Some(ItemStatus::default()), refusals, ..Ack::default() }
    }

    fn take(&self, item: &fanlight_proto::node::v1::Want) -> Result<StreamId, Refusal> {
        let Assignment { stream, epoch, .. } = item.assignment.clone().unwrap_or_default();
        let refuse = |code, reason, message: &str| refused(&stream, epoch, code, reason, message);
        let name = StreamId::from_resource_name(&stream)
            .map_err(|e| refuse(Code::InvalidArgument, Reason::InvalidArgument, &e.to_string()))?;
        let Some(want::Role::Origin(origin)) = &item.role else {
            let message = "this router serves as origin only";
            return Err(refuse(Code::Unimplemented, Reason::Unsupported, message));
        };
        let push_token_sha256 = origin.push_token_sha256.as_slice().try_into().map_err(|_| {
            let message = "push_token_sha256 must have 32 bytes";
            refuse(Code::InvalidArgument, Reason::InvalidArgument, message)
        })?;
        let ingest_node = match origin.ingest_node.as_str() {
            "" => None,
            node => Some(NodeId::from_resource_name(node).map_err(|e| {
                refuse(Code::InvalidArgument, Reason::InvalidArgument, &e.to_string())
            })?),
        };
        let moved = origin
            .moved
            .as_ref()
            .filter(|m| is_http(&m.whep_url))
            .map(|m| Moved { url: m.whep_url.as_str().into(), ticket_key: m.ticket_key.clone() });
        let ticket_key = origin.ticket_key.clone();
        let want = Want { epoch, ingest_node, push_token_sha256, ticket_key, moved: moved.clone() };
        if self.draining.is_on() && self.streams.get(&name).is_none() {
            return Err(refuse(Code::Unavailable, Reason::Draining, "this router is draining"));
        }
        self.streams.apply(&name, want).map_err(|e| match e {
            WantError::StaleEpoch { .. } => {
                refuse(Code::FailedPrecondition, Reason::StaleEpoch, &e.to_string())
            }
            WantError::AtCapacity { .. } => {
                refuse(Code::ResourceExhausted, Reason::NodeAtCapacity, &e.to_string())
            }
        })?;
        if let Some(moved) = moved {
            self.send_elsewhere(&name, &moved);
        }
        Ok(name)
    }

    /// Tells every viewer of a stream, once, that it is live on another router.
    fn send_elsewhere(&self, name: &StreamId, moved: &Moved) {
        for session in self.sessions.all() {
            if session.stream.name() != name {
                continue;
            }
            // A token that carries many sessions lasts for days and needs no ticket.
            let url = if session.multi {
                moved.url.to_string()
            } else {
                let ticket =
                    ticket::issue(&moved.ticket_key, name.as_str(), &session.token_id, unix_s());
                ticket::on(&moved.url, &ticket)
            };
            let url: Arc<str> = url.into();
            if session.send_to(Arc::clone(&url)) {
                self.metrics.count("fanlight_router_viewers_sent_elsewhere_total");
                if let Some(shard) = self.sessions.shard(&session) {
                    shard.must(Command::Reconnect { session: session.id, url });
                }
            }
        }
    }

    fn action_now(&self, action: Action) -> Ack {
        let done = match action.action {
            Some(action::Action::Kick(kick)) => self.kick(&kick),
            Some(action::Action::Bar(bar)) => self.bar(bar),
            Some(action::Action::Keyframe(keyframe)) => {
                stream_of(&keyframe.stream).and_then(|name| {
                    let stream = self.streams.get(&name).ok_or(NOT_FOUND)?;
                    stream.request_keyframe("asked by the control API");
                    Ok(())
                })
            }
            Some(action::Action::SetGrants(set)) => self.set_grants(&set),
            Some(action::Action::Drain(drain)) => {
                tracing::info!(on = drain.on, "drain");
                self.draining.ask(drain.on);
                Ok(())
            }
            Some(action::Action::SetControl(_)) | None => Err((
                Code::Unimplemented,
                Reason::Unsupported,
                "this router does not know that action",
            )),
        };
        let status = done.map_or_else(
            |(code, reason, message)| ItemStatus {
                code: code.into(),
                message: message.to_owned(),
                reason: reason.as_str().to_owned(),
                retry_after: None,
            },
            |()| ItemStatus::default(),
        );
        Ack { status: Some(status), ..Ack::default() }
    }

    /// Closes every session of the viewer, and bars its token, so that it does not come back.
    fn kick(&self, kick: &Kick) -> Result<(), Refused> {
        let name = viewer_of(&kick.viewer)?;
        let mut found = false;
        for session in self.sessions.all() {
            if *session.stream.name() == name.stream && session.viewer == name.viewer {
                found = true;
                if !session.multi {
                    let until = session.token_until_s.saturating_add(BAR_DEFAULT_S);
                    self.tokens.bar_token(&session.token_id, until);
                }
                tracing::info!(viewer = %name, reason = %kick.reason, "kicked");
                self.sessions.leave(&session, LeaveReason::Kicked);
            }
        }
        if found {
            return Ok(());
        }
        Err((Code::NotFound, Reason::ViewerNotFound, "the viewer has no session here"))
    }

    fn bar(&self, bar: Bar) -> Result<(), Refused> {
        let until = match bar.until {
            Some(t) => u64::try_from(t.seconds).unwrap_or(0),
            None => unix_s() + BAR_DEFAULT_S,
        };
        for jti in &bar.token_ids {
            self.tokens.bar_token(jti, until);
        }
        let stream = if bar.stream.is_empty() { None } else { Some(stream_of(&bar.stream)?) };
        if let (Some(stream), false) = (&stream, bar.user.is_empty()) {
            self.tokens.bar_viewer(stream, &bar.user, until);
        }
        // A bar ends what it bars.
        for session in self.sessions.all() {
            let by_token = bar.token_ids.contains(&session.token_id);
            let by_user = stream.as_ref() == Some(session.stream.name())
                && bar.user == session.subject.as_str();
            if by_token || by_user {
                self.sessions.leave(&session, LeaveReason::Kicked);
            }
        }
        Ok(())
    }

    fn set_grants(&self, set: &SetGrants) -> Result<(), Refused> {
        let name = viewer_of(&set.viewer)?;
        let role = match set.grants.as_ref().map(|g| g.role()) {
            Some(ViewerRole::Controller) => Role::Controller,
            Some(ViewerRole::Observer) => Role::Observer,
            _ => return Err((Code::InvalidArgument, Reason::InvalidArgument, "no role is given")),
        };
        let mut found = false;
        for session in self.sessions.all() {
            if *session.stream.name() == name.stream && session.viewer == name.viewer {
                found = true;
                if let Some(shard) = self.sessions.shard(&session) {
                    shard.must(Command::SetRole { session: session.id, role });
                }
            }
        }
        found.then_some(()).ok_or((
            Code::NotFound,
            Reason::ViewerNotFound,
            "the viewer has no session here",
        ))
    }

    fn load_now(&self) -> NodeLoad {
        let busy = self.shards.iter().map(|s| s.stats.busy_permille.load(Ordering::Relaxed));
        let cpu_permille = u32::try_from(busy.max().unwrap_or(0)).unwrap_or(1_000);
        let egress_bps = self.egress_bps();
        let viewers = self.sessions.len();
        let (ice_attempts, ice_failures) = self.ice.lock().read(Instant::now());
        let of = |used: u64, max: u64| u32::try_from((used * 1_000 / max.max(1)).min(1_000));
        let stress = cpu_permille
            .max(of(egress_bps, self.egress_bps_max).unwrap_or(1_000))
            .max(of(viewers as u64, self.sessions_max as u64).unwrap_or(1_000));
        NodeLoad {
            stress_permille: stress,
            cpu_permille,
            egress_bps,
            viewers: u32::try_from(viewers).unwrap_or(u32::MAX),
            streams_in: u32::try_from(self.streams.len()).unwrap_or(u32::MAX),
            ice_failures,
            ice_attempts,
            rss_bytes: fanlight_ops::process::resident_bytes().unwrap_or(0),
            ..NodeLoad::default()
        }
    }

    fn egress_bps(&self) -> u64 {
        let bytes: u64 =
            self.shards.iter().map(|s| s.stats.bytes_out.load(Ordering::Relaxed)).sum();
        let mut rate = self.egress.lock();
        let now = Instant::now();
        let spent_ms = u64::try_from((now - rate.at).as_millis()).unwrap_or(u64::MAX);
        if spent_ms >= 900 {
            let bps = (bytes.saturating_sub(rate.bytes)).saturating_mul(8_000) / spent_ms;
            *rate = EgressRate { at: now, bytes, bps };
        }
        rate.bps
    }
}

fn is_http(url: &str) -> bool {
    let known = url.starts_with("http://") || url.starts_with("https://");
    known && url.len() <= MOVED_URL_MAX
}

type Refused = (Code, Reason, &'static str);

const NOT_FOUND: Refused =
    (Code::NotFound, Reason::StreamNotFound, "the stream is not served here");

fn stream_of(name: &str) -> Result<StreamId, Refused> {
    StreamId::from_resource_name(name).map_err(|_| {
        (Code::InvalidArgument, Reason::InvalidArgument, "not a stream's resource name")
    })
}

fn viewer_of(name: &str) -> Result<ViewerName, Refused> {
    ViewerName::parse(name).map_err(|_| {
        (Code::InvalidArgument, Reason::InvalidArgument, "not a viewer's resource name")
    })
}

impl LinkHandler for Node {
    fn apply(&self, apply: Apply) -> BoxFuture<'_, Ack> {
        async move { self.apply_now(&apply) }.boxed()
    }

    fn action(&self, action: Action) -> BoxFuture<'_, Ack> {
        async move { self.action_now(action) }.boxed()
    }

    fn load(&self) -> NodeLoad {
        self.load_now()
    }

    fn running(&self) -> Vec<Running> {
        let sessions = self.sessions.all();
        let names = |stream: &StreamId| {
            sessions
                .iter()
                .filter(|s| s.stream.name() == stream)
                .take(NAMES_PER_STREAM_MAX)
                .map(|s| s.viewer.as_str().to_owned())
                .collect()
        };
        let running = self.streams.running().into_iter();
        running
            .map(|r| Running {
                assignment: Some(Assignment {
                    stream: r.stream.name().resource_name(),
                    epoch: r.epoch,
                    origin: None,
                }),
                state: r.state.into(),
                viewers: r.viewers,
                parent_node: String::new(),
                viewer_names: names(r.stream.name()),
            })
            .collect()
    }

    fn gauges(&self) -> Vec<StreamGauge> {
        let running = self.streams.running().into_iter();
        running
            .map(|r| StreamGauge {
                stream: r.stream.name().resource_name(),
                viewers: r.viewers,
                egress_bps: 0,
            })
            .collect()
    }

    fn state(&self) -> NodeState {
        if self.draining.is_on() { NodeState::Draining } else { NodeState::Serving }
    }

    fn nowhere_to_go(&self, nowhere: bool) {
        self.draining.nowhere(nowhere);
    }

    fn max_epoch_seen(&self) -> u64 {
        self.streams.max_epoch_seen()
    }

    fn key_set(&self, jwks_json: String) {
        match self.tokens.set_keys(&jwks_json) {
            Ok(keys) => tracing::info!(keys, "join token keys taken"),
            Err(e) => tracing::error!(error = %e, "unusable key set; the one before stays"),
        }
    }
}

/// Puts facts into one report.
pub(crate) fn report_of(facts: Vec<Fact>) -> Report {
    let mut report = Report::default();
    for fact in facts {
        match fact {
            Fact::Stream(stream) => report.streams.push(stream),
            Fact::Viewer(viewer) => report.viewers.push(viewer),
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ice_failures_are_of_the_last_minutes() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut window = IceWindow::new(start);
        window.note(at(1), true);
        window.note(at(2), false);
        assert_eq!(window.read(at(59)), (2, 1));
        assert_eq!(window.read(at(61)), (2, 1));
        window.note(at(62), false);
        assert_eq!(window.read(at(125)), (1, 0));
        assert_eq!(window.read(at(500)), (0, 0));
    }
}
