//! The operators' look at single viewers: `GET /viewers` on the admin listener samples every shard
//! twice, a second apart, and says how each viewer fares. Not metrics: those have no label per
//! viewer, because viewers come and go by the thousand. Invariant: it costs nothing while nobody
//! asks, and asking twice at once is refused.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use fanlight_router_core::{Role, SessionId, Share, ViewerState, ViewerStats};
use serde::Serialize;
use tokio::sync::{Semaphore, oneshot};

use crate::{
    shard::{Command, ShardHandle},
    streams::Streams,
};

/// Time between the two samples.
const SPAN: Duration = Duration::from_secs(1);

/// Longest wait for a shard's answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// What the handler needs.
#[derive(Debug)]
pub(crate) struct Viewers {
    pub(crate) streams: Arc<Streams>,
    pub(crate) shards: Arc<[ShardHandle]>,
    turn: Semaphore,
}

impl Viewers {
    pub(crate) fn new(streams: Arc<Streams>, shards: Arc<[ShardHandle]>) -> Self {
        Self { streams, shards, turn: Semaphore::new(1) }
    }
}

/// One viewer, as the operator sees it.
#[derive(Debug, Serialize)]
struct Row {
    viewer: String,
    stream: String,
    shard: usize,
    role: &'static str,
    state: &'static str,
    remote: Option<String>,
    /// Over the last second.
    fps: f64,
    bitrate_bps: u64,
    /// Round trip; none before the first receiver report.
    rtt_ms: Option<f64>,
    loss: Option<f32>,
    jitter_ms: f64,
    /// None: nothing says that the path is too narrow.
    estimate_bps: Option<u64>,
    acked_bps: u64,
    path_loss: f64,
    delay: &'static str,
    share: &'static str,
    packets_asked_again: u64,
    packets_sent_again: u64,
    frames_thinned: u64,
    keyframe_requests: u64,
    inputs: u64,
    inputs_denied: u64,
}

/// The route.
pub(crate) fn routes(viewers: Arc<Viewers>) -> Router {
    Router::new().route("/viewers", get(list)).with_state(viewers)
}

async fn list(State(viewers): State<Arc<Viewers>>) -> impl IntoResponse {
    let Ok(_turn) = viewers.turn.try_acquire() else {
        return (StatusCode::TOO_MANY_REQUESTS, "somebody is asking already\n").into_response();
    };
    let started = Instant::now();
    let first = sample(&viewers.shards).await;
    tokio::time::sleep(SPAN).await;
    let second = sample(&viewers.shards).await;
    let before: HashMap<SessionId, &ViewerStats> =
        first.iter().map(|(_, stats)| (stats.session, stats)).collect();
    let span = started.elapsed();
    let rows: Vec<Row> = second
        .iter()
        .map(|(shard, now)| {
            let stream = viewers.streams.by_key(now.stream);
            let stream = stream.map(|s| s.name().as_str().to_owned()).unwrap_or_default();
            row(*shard, stream, before.get(&now.session).copied(), now, span)
        })
        .collect();
    Json(rows).into_response()
}

/// Every shard's viewers. A shard that does not answer is left out.
async fn sample(shards: &[ShardHandle]) -> Vec<(usize, ViewerStats)> {
    let mut all = Vec::new();
    for shard in shards {
        let (reply, answer) = oneshot::channel();
        if shard.join(Command::Stats { reply }).is_err() {
            continue;
        }
        if let Ok(Ok(stats)) = tokio::time::timeout(ANSWER_DEADLINE, answer).await {
            all.extend(stats.into_iter().map(|stats| (shard.index, stats)));
        }
    }
    all
}

fn row(
    shard: usize,
    stream: String,
    before: Option<&ViewerStats>,
    now: &ViewerStats,
    span: Duration,
) -> Row {
    let (frames, bytes) = before.map_or((now.frames_sent, now.bytes_sent), |before| {
        (now.frames_sent - before.frames_sent, now.bytes_sent - before.bytes_sent)
    });
    let span_us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1);
    let frames = u32::try_from(frames).unwrap_or(u32::MAX);
    Row {
        viewer: now.viewer.to_string(),
        stream,
        shard,
        role: match now.role {
            Role::Controller => "controller",
            Role::Observer => "observer",
        },
        state: match now.state {
            ViewerState::Joining => "joining",
            ViewerState::Live => "live",
            ViewerState::Closing => "closing",
        },
        remote: now.remote.map(|route| route.addr.to_string()),
        fps: f64::from(frames) / span.as_secs_f64(),
        bitrate_bps: bytes.saturating_mul(8_000_000) / span_us,
        rtt_ms: now.rtt.map(|rtt| rtt.as_secs_f64() * 1_000.0),
        loss: now.loss,
        jitter_ms: f64::from(now.jitter) / 90.0,
        estimate_bps: now.estimate_bps,
        acked_bps: now.acked_bps,
        path_loss: now.path_loss,
        delay: now.delay,
        share: match now.share {
            Share::Full => "full",
            Share::References => "references",
            Share::Keyframes => "keyframes",
        },
        packets_asked_again: now.nacks,
        packets_sent_again: now.repairs,
        frames_thinned: now.frames_thinned,
        keyframe_requests: now.keyframe_requests,
        inputs: now.inputs,
        inputs_denied: now.inputs_denied,
    }
}
