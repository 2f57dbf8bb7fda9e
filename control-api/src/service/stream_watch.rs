//! Streams as they are watched: rows and records to messages. Not the watching (`watch.rs`).
//! Invariant: a stream that changed several times in a batch is told once, as it is now, and its
//! end is never told before what came before it.

use std::{collections::BTreeMap, sync::Arc};

use fanlight_proto::{
    control::v1::{Stream, WatchKind, WatchStreamsResponse},
    id::{DeviceId, StreamId},
    types::v1::StreamState,
};
use futures::{FutureExt as _, future::BoxFuture};

use super::{
    streams::SCAN,
    translate,
    watch::{Source, StatePage},
};
use crate::{
    auth::Principal,
    error::{ControlError, bad_id},
    store::{
        Store,
        outbox::{Position, Record, RecordKind},
    },
};

/// Streams of a tenant, watched.
pub(super) struct StreamSource(pub(super) Principal);

impl StreamSource {
    async fn state(
        &self,
        store: &dyn Store,
        after: Option<String>,
    ) -> Result<StatePage<WatchStreamsResponse>, ControlError> {
        let after = after.map(|a| StreamId::parse(&a)).transpose().map_err(bad_id("after"))?;
        let page = store.page_streams(after, SCAN).await?;
        let seen = page.rows.iter().filter(|row| self.0.sees(&row.spec.tenant));
        let told = seen.map(|row| WatchStreamsResponse {
            kind: WatchKind::Added.into(),
            stream: Some(translate::stream(row)),
            resume_token: String::new(),
        });
        let next = page.rows.last().filter(|_| page.more).map(|row| row.id.as_str().to_owned());
        Ok((told.collect(), next))
    }

    async fn told(
        &self,
        store: &dyn Store,
        records: &[Arc<Record>],
        from: Position,
        next: Position,
    ) -> Result<Vec<WatchStreamsResponse>, ControlError> {
        // A stream that changed ten times in a batch is told once, as it is now.
        let mut last: BTreeMap<&StreamId, (usize, WatchKind, &Record)> = BTreeMap::new();
        for (at, record) in records.iter().enumerate() {
            let Some(id) = record.stream.as_ref().filter(|_| record.viewer.is_none()) else {
                continue;
            };
            if !self.0.sees(&record.tenant) {
                continue;
            }
            let before = last.get(id).map(|(_, kind, _)| *kind);
            let kind = match (record.kind, before) {
                (RecordKind::StreamDeleted, _) => WatchKind::Deleted,
                (RecordKind::StreamCreated, _) | (_, Some(WatchKind::Added)) => WatchKind::Added,
                _ => WatchKind::Modified,
            };
            last.insert(id, (at, kind, record));
        }
        let mut changed: Vec<_> = last.into_iter().collect();
        changed.sort_by_key(|(_, (at, ..))| *at);
        let mut out = Vec::with_capacity(changed.len());
        for (id, (_, kind, record)) in changed {
            let stream = match kind {
                WatchKind::Deleted => Some(ended(id, record)),
                // Not there any more: its end is in a later batch.
                _ => store.stream(id.clone()).await?.map(|row| translate::stream(&row)),
            };
            if let Some(stream) = stream {
                out.push(WatchStreamsResponse {
                    kind: kind.into(),
                    stream: Some(stream),
                    resume_token: from.to_string(),
                });
            }
        }
        if let Some(last) = out.last_mut() {
            last.resume_token = next.to_string();
        }
        Ok(out)
    }
}

/// What is known of a stream after its end.
fn ended(id: &StreamId, record: &Record) -> Stream {
    Stream {
        name: id.resource_name(),
        device: record.device.as_ref().map(DeviceId::resource_name).unwrap_or_default(),
        tenant: record.tenant.clone(),
        state: StreamState::Ended.into(),
        ..Stream::default()
    }
}

impl Source for StreamSource {
    type Message = WatchStreamsResponse;

    fn page<'a>(
        &'a self,
        store: &'a dyn Store,
        after: Option<String>,
    ) -> BoxFuture<'a, Result<StatePage<Self::Message>, ControlError>> {
        self.state(store, after).boxed()
    }

    fn changes<'a>(
        &'a self,
        store: &'a dyn Store,
        records: &'a [Arc<Record>],
        from: Position,
        next: Position,
    ) -> BoxFuture<'a, Result<Vec<Self::Message>, ControlError>> {
        self.told(store, records, from, next).boxed()
    }

    fn bookmark(&self, at: Position) -> Self::Message {
        WatchStreamsResponse {
            kind: WatchKind::Bookmark.into(),
            stream: None,
            resume_token: at.to_string(),
        }
    }
}
