//! Viewers as they are watched: rows and records to messages. Not the watching (`watch.rs`).
//! Invariant: a viewer that is gone is told as DELETED, once, and gone viewers are no part of the
//! current state.

use std::{collections::BTreeMap, sync::Arc};

use fanlight_proto::{
    control::v1::{Viewer, ViewerState, WatchKind, WatchViewersResponse},
    id::{NodeId, StreamId, ViewerName},
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
        rows::ViewerPhase,
    },
};

/// Viewers of one stream, or of all that the caller sees.
pub(super) struct ViewerSource {
    who: Principal,
    stream: Option<StreamId>,
}

impl ViewerSource {
    pub(super) fn new(who: Principal, stream: Option<StreamId>) -> Self {
        Self { who, stream }
    }

    async fn state(
        &self,
        store: &dyn Store,
        after: Option<String>,
    ) -> Result<StatePage<WatchViewersResponse>, ControlError> {
        let after = after.map(|a| ViewerName::parse(&a)).transpose().map_err(bad_id("after"))?;
        let page = store.page_viewers(self.stream.clone(), after, SCAN).await?;
        let mut told = Vec::new();
        for row in page.rows.iter().filter(|row| row.phase != ViewerPhase::Gone) {
            let stream = match self.who.tenant {
                None => true,
                Some(_) => {
                    let stream = store.stream(row.name.stream.clone()).await?;
                    stream.is_some_and(|s| self.who.sees(&s.spec.tenant))
                }
            };
            if stream {
                told.push(WatchViewersResponse {
                    kind: WatchKind::Added.into(),
                    viewer: Some(translate::viewer(row)),
                    resume_token: String::new(),
                });
            }
        }
        let next = page.rows.last().filter(|_| page.more).map(|row| row.name.to_string());
        Ok((told, next))
    }

    async fn told(
        &self,
        store: &dyn Store,
        records: &[Arc<Record>],
        from: Position,
        next: Position,
    ) -> Result<Vec<WatchViewersResponse>, ControlError> {
        let mut last: BTreeMap<ViewerName, (usize, WatchKind, &Record)> = BTreeMap::new();
        for (at, record) in records.iter().enumerate() {
            let Some(name) = record.viewer_name() else { continue };
            let mine = self.stream.as_ref().is_none_or(|s| *s == name.stream);
            if !mine || !self.who.sees(&record.tenant) {
                continue;
            }
            let before = last.get(&name).map(|(_, kind, _)| *kind);
            let kind = match record.kind {
                RecordKind::ViewerInvited => WatchKind::Added,
                RecordKind::ViewerConnected if before == Some(WatchKind::Added) => WatchKind::Added,
                RecordKind::ViewerConnected => WatchKind::Modified,
                _ => WatchKind::Deleted,
            };
            last.insert(name, (at, kind, record));
        }
        let mut changed: Vec<_> = last.into_iter().collect();
        changed.sort_by_key(|(_, (at, ..))| *at);
        let mut out = Vec::with_capacity(changed.len());
        for (name, (_, kind, record)) in changed {
            let viewer = match kind {
                WatchKind::Deleted => Some(gone(&name, record)),
                // Not there any more: its end is in a later batch.
                _ => store.viewer(name).await?.map(|row| translate::viewer(&row)),
            };
            if let Some(viewer) = viewer {
                out.push(WatchViewersResponse {
                    kind: kind.into(),
                    viewer: Some(viewer),
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

/// What is known of a viewer after its end.
fn gone(name: &ViewerName, record: &Record) -> Viewer {
    Viewer {
        name: name.to_string(),
        user: record.user.clone(),
        state: ViewerState::Gone.into(),
        edge_node: record.node.as_ref().map(NodeId::resource_name).unwrap_or_default(),
        epoch: record.epoch,
        ..Viewer::default()
    }
}

impl Source for ViewerSource {
    type Message = WatchViewersResponse;

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
        WatchViewersResponse {
            kind: WatchKind::Bookmark.into(),
            viewer: None,
            resume_token: at.to_string(),
        }
    }
}
