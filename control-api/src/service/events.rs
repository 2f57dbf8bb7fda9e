//! `EventService`, and records as events. Translates only; who relays to webhooks is
//! `webhook/`. Invariant: a caller that is confined to a tenant is told of that tenant's streams
//! and viewers and of nothing else, and no secret stands in an event.

use std::sync::Arc;

use fanlight_proto::{
    control::v1::{
        DeadLetter, Event, EventData, ListDeadLettersRequest, ListDeadLettersResponse,
        ListEventsRequest, ListEventsResponse, ReplayDeadLettersRequest, ReplayDeadLettersResponse,
        StreamEventsRequest, StreamEventsResponse, event_service_server::EventService,
    },
    id::{DeviceId, NodeId, StreamId},
    reason::Reason,
};
use futures::{FutureExt as _, future::BoxFuture};
use tonic::{Request, Response, Status};

use super::{
    Parts, caller,
    watch::{self, Source, Start, StatePage, Watch, position},
};
use crate::{
    auth::Principal,
    clock::timestamp,
    error::ControlError,
    page,
    store::{
        Store,
        outbox::{Position, Record},
    },
};

/// Position that stands for what comes.
const LATEST: &str = "latest";
/// Type prefixes of one request.
const MAX_TYPES: usize = 16;
/// Records looked at for one page when most are filtered out.
const MAX_SCAN: usize = 10_000;
/// Where events come from.
pub(crate) const SOURCE: &str = "//fanlight/control";

/// A record as callers see it.
pub(crate) fn event(r: &Record) -> Event {
    let word = |s: fanlight_proto::types::v1::StreamState| {
        s.as_str_name().trim_start_matches("STREAM_STATE_").to_owned()
    };
    Event {
        id: r.position.to_string(),
        r#type: r.kind.event_type().to_owned(),
        source: SOURCE.to_owned(),
        subject: r.subject(),
        time: Some(timestamp(r.at_us)),
        epoch: r.epoch,
        data: Some(EventData {
            stream: r.stream.as_ref().map(StreamId::resource_name).unwrap_or_default(),
            viewer: r.viewer_name().map(|v| v.to_string()).unwrap_or_default(),
            user: r.user.clone(),
            node: r.node.as_ref().map(NodeId::resource_name).unwrap_or_default(),
            device: r.device.as_ref().map(DeviceId::resource_name).unwrap_or_default(),
            tenant: r.tenant.clone(),
            state: r.state.map(word).unwrap_or_default(),
            reason: r.reason.clone(),
        }),
    }
}

/// Which events a caller is told of.
#[derive(Clone, Debug)]
pub(crate) struct Interest {
    tenant: Option<String>,
    types: Vec<String>,
}

impl Interest {
    /// All of a tenant's events (`None`: of all) whose type begins with one of these.
    pub(crate) fn new(tenant: Option<String>, types: Vec<String>) -> Self {
        Self { tenant, types }
    }

    fn read(who: &Principal, types: Vec<String>) -> Result<Self, ControlError> {
        if types.len() > MAX_TYPES || types.iter().any(|t| t.len() > 128) {
            return Err(ControlError::field("types", "at most 16, each at most 128 bytes"));
        }
        Ok(Self::new(who.tenant.clone(), types))
    }

    /// True when it is told.
    pub(crate) fn takes(&self, r: &Record) -> bool {
        let event_type = r.kind.event_type();
        self.tenant.as_deref().is_none_or(|t| r.is_of_tenant(t))
            && (self.types.is_empty() || self.types.iter().any(|t| event_type.starts_with(t)))
    }
}

/// The service.
#[derive(Debug)]
pub(crate) struct Events(pub(crate) Arc<Parts>);

#[tonic::async_trait]
impl EventService for Events {
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let who = caller(&request)?;
        let body = request.into_inner();
        let interest = Interest::read(&who, body.types)?;
        let limit = page::size(body.page_size)?;
        let store = &self.0.store;
        let mut at = match body.position.as_str() {
            "" => 0,
            LATEST => store.read_events(0, 0).await?.head,
            token => position("position", token)?,
        };
        let (mut events, mut scanned) = (Vec::new(), 0);
        while events.len() < limit && scanned < MAX_SCAN {
            let page = store.read_events(at, limit).await?;
            let Some(next) = page.next() else {
                // From the oldest there is nothing: the head is where the next one comes after.
                at = if at == 0 { page.head } else { at };
                break;
            };
            scanned += page.records.len();
            at = next;
            for record in page.records.iter().filter(|r| interest.takes(r)) {
                events.push(event(record));
                if events.len() == limit {
                    at = record.position;
                    break;
                }
            }
        }
        Ok(Response::new(ListEventsResponse { events, position: at.to_string() }))
    }

    type StreamEventsStream = Watch<StreamEventsResponse>;

    async fn stream_events(
        &self,
        request: Request<StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let who = caller(&request)?;
        let body = request.into_inner();
        let interest = Interest::read(&who, body.types)?;
        let begin = match body.position.as_str() {
            "" => Start::After(0),
            LATEST => Start::Latest,
            token => Start::After(position("position", token)?),
        };
        Ok(Response::new(watch::start(&self.0, EventSource(interest), begin)?))
    }

    async fn list_dead_letters(
        &self,
        request: Request<ListDeadLettersRequest>,
    ) -> Result<Response<ListDeadLettersResponse>, Status> {
        let who = caller(&request)?;
        let webhook = self.webhook(&who, request.into_inner().webhook)?;
        let letters = self.0.store.dead_letters(webhook).await?;
        let dead = letters.rows.iter().map(|row| DeadLetter {
            event: Some(event(&row.record)),
            error: row.error.clone(),
            attempts: row.attempts,
            dead_time: Some(timestamp(row.dead_us)),
        });
        let (dead_letters, dropped) = (dead.collect(), letters.dropped);
        Ok(Response::new(ListDeadLettersResponse { dead_letters, dropped }))
    }

    async fn replay_dead_letters(
        &self,
        request: Request<ReplayDeadLettersRequest>,
    ) -> Result<Response<ReplayDeadLettersResponse>, Status> {
        let who = caller(&request)?;
        let body = request.into_inner();
        let webhook = self.webhook(&who, body.webhook)?;
        let ids: Result<Vec<_>, _> = body.ids.iter().map(|id| position("ids", id)).collect();
        let replayed = self.0.store.replay_dead(webhook, ids?).await?;
        Ok(Response::new(ReplayDeadLettersResponse { replayed }))
    }
}

impl Events {
    /// A configured webhook that the caller may know of.
    fn webhook(&self, who: &Principal, name: String) -> Result<String, ControlError> {
        let known = self.0.webhooks.iter().any(|w| {
            w.name == name && who.tenant.as_ref().is_none_or(|t| w.tenant.as_ref() == Some(t))
        });
        if known {
            return Ok(name);
        }
        Err(ControlError::new(Reason::WebhookNotFound, "no such webhook is configured")
            .about("fanlight.Webhook", name))
    }
}

/// Events as a stream.
struct EventSource(Interest);

impl Source for EventSource {
    type Message = StreamEventsResponse;

    fn page<'a>(
        &'a self,
        _store: &'a dyn Store,
        _after: Option<String>,
    ) -> BoxFuture<'a, Result<StatePage<Self::Message>, ControlError>> {
        std::future::ready(Ok((Vec::new(), None))).boxed()
    }

    fn changes<'a>(
        &'a self,
        _store: &'a dyn Store,
        records: &'a [Arc<Record>],
        _from: Position,
        next: Position,
    ) -> BoxFuture<'a, Result<Vec<Self::Message>, ControlError>> {
        let events: Vec<_> = records.iter().filter(|r| self.0.takes(r)).map(|r| event(r)).collect();
        // Positions pass in silence while nothing is of interest; the bookmark tells them.
        let message = (!events.is_empty())
            .then(|| StreamEventsResponse { events, position: next.to_string() });
        std::future::ready(Ok(message.into_iter().collect())).boxed()
    }

    fn bookmark(&self, at: Position) -> Self::Message {
        StreamEventsResponse { events: Vec::new(), position: at.to_string() }
    }
}
