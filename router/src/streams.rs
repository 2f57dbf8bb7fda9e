//! The streams this router was asked to serve: which epoch, who publishes, which shards carry
//! them. Not the viewers' protocol state (a shard's core has that) and not the wire. Invariants:
//! a stream has at most one publisher, of the epoch that is wanted; no epoch below the greatest
//! one seen is ever taken; nothing here depends on a link to the control API, so what runs goes on
//! without one.
//!
//! A shard carries a stream while it has a session of it. The current group of pictures is kept
//! here once (shared frames, bounded) and handed over at a shard's first session, so that frames
//! go only where somebody watches and a joiner on any shard still gets a picture at once.

use std::{collections::HashMap, sync::Arc};

use fanlight_proto::{id::StreamId, node::v1::StreamReport, types::v1::StreamState};
use fanlight_router_core::{DownReason, StreamKey};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;

use crate::{
    config::LimitsConfig,
    metrics::NodeMetrics,
    node::Fact,
    shard::ShardHandle,
    stream::{Stream, Want},
};

/// Most streams whose greatest epoch is remembered after they are gone. At the bound the lowest
/// epoch is forgotten and becomes the floor for streams that are not remembered: epochs are times,
/// so a live assignment is above it.
const FENCE_MAX: usize = 65_536;

/// Why an assignment was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WantError {
    #[error("epoch {given} is below {seen}, which was seen for this stream")]
    StaleEpoch { given: u64, seen: u64 },
    #[error("the router serves as many streams as it may ({max})")]
    AtCapacity { max: usize },
}

/// All streams of this router.
#[derive(Debug)]
pub(crate) struct Streams {
    maps: RwLock<Maps>,
    shared: Shared,
    streams_max: usize,
}

/// What every stream needs.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) shards: Arc<[ShardHandle]>,
    pub(crate) metrics: NodeMetrics,
    pub(crate) facts: mpsc::Sender<Fact>,
    pub(crate) sessions_per_stream_max: usize,
}

impl Shared {
    /// Reports a stream's state. The queue is bounded; what does not fit is counted, and the
    /// control API learns it from the next inventory.
    pub(crate) fn report(&self, stream: &StreamId, epoch: u64, state: StreamState, reason: &str) {
        let report = StreamReport {
            stream: stream.resource_name(),
            epoch,
            state: state.into(),
            reason: reason.to_owned(),
        };
        self.tell(Fact::Stream(report));
    }

    pub(crate) fn tell(&self, fact: Fact) {
        if self.facts.try_send(fact).is_err() {
            self.metrics.count("fanlight_router_reports_dropped_total");
        }
    }
}

#[derive(Debug, Default)]
struct Maps {
    by_name: HashMap<StreamId, Arc<Stream>>,
    by_key: HashMap<StreamKey, Arc<Stream>>,
    fence: Fence,
    last_key: u64,
}

/// Greatest epoch seen per stream.
#[derive(Debug, Default)]
struct Fence {
    seen: HashMap<StreamId, u64>,
    floor: u64,
    max: u64,
}

impl Fence {
    fn seen(&self, stream: &StreamId) -> u64 {
        self.seen.get(stream).copied().unwrap_or(self.floor)
    }

    fn note(&mut self, stream: &StreamId, epoch: u64) {
        self.max = self.max.max(epoch);
        if self.seen.len() >= FENCE_MAX
            && !self.seen.contains_key(stream)
            && let Some((lowest, at)) =
                self.seen.iter().min_by_key(|(_, e)| **e).map(|(s, e)| (s.clone(), *e))
        {
            self.seen.remove(&lowest);
            self.floor = self.floor.max(at);
        }
        let entry = self.seen.entry(stream.clone()).or_default();
        *entry = (*entry).max(epoch);
    }
}

/// One stream as it runs now.
#[derive(Debug, Clone)]
pub(crate) struct RunningStream {
    pub(crate) stream: Arc<Stream>,
    pub(crate) epoch: u64,
    pub(crate) state: StreamState,
    pub(crate) viewers: u32,
}

impl Streams {
    pub(crate) fn new(
        shards: Arc<[ShardHandle]>,
        metrics: NodeMetrics,
        facts: mpsc::Sender<Fact>,
        limits: &LimitsConfig,
    ) -> Self {
        let shared = Shared {
            shards,
            metrics,
            facts,
            sessions_per_stream_max: limits.sessions_per_stream_max,
        };
        Self { maps: RwLock::default(), shared, streams_max: limits.streams_max }
    }

    pub(crate) fn get(&self, name: &StreamId) -> Option<Arc<Stream>> {
        self.maps.read().by_name.get(name).cloned()
    }

    pub(crate) fn by_key(&self, key: StreamKey) -> Option<Arc<Stream>> {
        self.maps.read().by_key.get(&key).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Stream>> {
        self.maps.read().by_name.values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.maps.read().by_name.len()
    }

    pub(crate) fn running(&self) -> Vec<RunningStream> {
        self.all().into_iter().map(Stream::running).collect()
    }

    /// Reports something, if there is room.
    pub(crate) fn tell(&self, fact: Fact) {
        self.shared.tell(fact);
    }

    /// Greatest epoch ever seen, over all streams.
    pub(crate) fn max_epoch_seen(&self) -> u64 {
        self.maps.read().fence.max
    }

    /// Takes an assignment: a new stream, the same one again, or the same with a higher epoch
    /// (its viewers stay and wait for the new publisher).
    pub(crate) fn apply(&self, name: &StreamId, want: Want) -> Result<(), WantError> {
        let (stream, created) = {
            let mut maps = self.maps.write();
            let seen = maps.fence.seen(name);
            if want.epoch < seen {
                return Err(WantError::StaleEpoch { given: want.epoch, seen });
            }
            if maps.by_name.len() >= self.streams_max && !maps.by_name.contains_key(name) {
                return Err(WantError::AtCapacity { max: self.streams_max });
            }
            maps.fence.note(name, want.epoch);
            match maps.by_name.get(name).cloned() {
                Some(stream) => (stream, false),
                None => (self.insert(&mut maps, name, want.clone()), true),
            }
        };
        if created {
            self.shared.metrics.count("fanlight_router_streams_wanted_total");
            tracing::info!(stream = %name, epoch = want.epoch, "stream assigned");
            self.shared.report(name, want.epoch, StreamState::Assigned, "");
        } else {
            stream.rewant(want);
        }
        Ok(())
    }

    fn insert(&self, maps: &mut Maps, name: &StreamId, want: Want) -> Arc<Stream> {
        maps.last_key += 1;
        let key = StreamKey(maps.last_key);
        let stream = Arc::new(Stream::new(key, name.clone(), want, self.shared.clone()));
        maps.by_name.insert(name.clone(), Arc::clone(&stream));
        maps.by_key.insert(key, Arc::clone(&stream));
        stream
    }

    /// Ends a stream, unless it runs under a greater epoch than `epoch`.
    pub(crate) fn stop(&self, name: &StreamId, epoch: u64, reason: DownReason) -> bool {
        let stream = {
            let mut maps = self.maps.write();
            let Some(stream) = maps.by_name.get(name).cloned() else { return false };
            if stream.epoch() > epoch {
                return false;
            }
            maps.by_name.remove(name);
            maps.by_key.remove(&stream.key());
            stream
        };
        stream.end(reason);
        self.shared.metrics.count("fanlight_router_streams_unwanted_total");
        tracing::info!(stream = %name, epoch, ?reason, "stream ended");
        true
    }

    /// Ends every stream that `keep` does not name.
    pub(crate) fn retain(&self, keep: &[StreamId]) {
        for stream in self.all() {
            if !keep.contains(stream.name()) {
                self.stop(stream.name(), u64::MAX, DownReason::Deleted);
            }
        }
    }
}

/// Sessions per shard and stream are counted under the stream's lock; this is the shards' sum,
/// used to choose a shard for the next session.
#[derive(Debug)]
pub(crate) struct ShardLoad {
    sessions: Mutex<Vec<usize>>,
}

impl ShardLoad {
    pub(crate) fn new(shards: usize) -> Self {
        Self { sessions: Mutex::new(vec![0; shards]) }
    }

    /// Takes a place on the shard that has the fewest sessions and is alive.
    pub(crate) fn take(&self, shards: &[ShardHandle]) -> Option<usize> {
        let mut sessions = self.sessions.lock();
        let alive = |s: &&ShardHandle| s.stats.alive.load(std::sync::atomic::Ordering::Relaxed);
        let best = shards.iter().filter(alive).map(|s| s.index).min_by_key(|&i| sessions[i])?;
        sessions[best] += 1;
        Some(best)
    }

    pub(crate) fn give_back(&self, shard: usize) {
        if let Some(count) = self.sessions.lock().get_mut(shard) {
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fence_remembers_and_stays_bounded() {
        let mut fence = Fence::default();
        let name = |i: u64| StreamId::parse(&format!("s{i}")).unwrap();
        for i in 0..FENCE_MAX as u64 + 3 {
            fence.note(&name(i), 1_000 + i);
        }
        assert_eq!(fence.seen.len(), FENCE_MAX);
        assert_eq!(fence.floor, 1_002);
        assert_eq!(fence.seen(&name(0)), 1_002, "a forgotten stream is fenced by the floor");
        assert_eq!(fence.seen(&name(9)), 1_009);
        fence.note(&name(9), 5);
        assert_eq!(fence.seen(&name(9)), 1_009, "never lower");
        assert_eq!(fence.max, 1_000 + FENCE_MAX as u64 + 2);
    }
}
