//! Invitations: a viewer is placed, gets a token, and may be thrown out. Not the checking of the
//! token nor the viewer's media, which are the router's. Invariant: a token is handed out only
//! after its row is stored, and after a kick that row's token is barred everywhere it could be
//! used.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fanlight_proto::{
    claims::{JOIN_AUDIENCE, JOIN_ISSUER, JoinClaims, LEEWAY_S, Role},
    control::v1::CreateViewerResponse,
    id::{NodeId, StreamId, ViewerId, ViewerName},
    node::v1::{Bar, Kick, action::Action as Body},
    reason::Reason,
    types::v1::{ViewerGrants, ViewerRole},
};
use prost::Message as _;
use tokio::time::Instant;
use tonic::Code;
use uuid::Uuid;

use crate::{
    clock::{timestamp, unix_seconds, us},
    error::ControlError,
    http::whep_url,
    link::Links,
    metrics as m, place,
    service::translate,
    store::{
        JoinViewer, KickViewer, Once, RequestKey, Store,
        rows::{NodeRow, StreamRow, ViewerPhase, ViewerRow},
    },
    token::TokenKey,
};

/// Placements tried when the stream moves at the same moment.
const TRIES: usize = 3;
/// Longest wait for the edge's acknowledgement of a kick.
const KICK_WAIT: Duration = Duration::from_secs(2);
/// When a viewer without room may try again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a demonstration's token lasts.
const DEMO_TTL: Duration = Duration::from_secs(7 * 86_400);

/// What a viewer is invited to.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// The viewer's name.
    pub name: ViewerName,
    /// The platform's user id.
    pub user: String,
    /// What it may do.
    pub grants: ViewerGrants,
    /// How long the token may be used to join.
    pub join_ttl: Duration,
    /// Identity of the call.
    pub request: Option<RequestKey>,
}

/// Mints invitations and ends viewers.
#[derive(Debug)]
pub struct Inviter {
    store: Arc<dyn Store>,
    links: Arc<Links>,
    token: Arc<TokenKey>,
    replicas: u32,
    /// Base of our own WHEP redirect; empty: none.
    fallback: String,
}

impl Inviter {
    /// Works on a store and the links of this replica.
    pub fn new(store: Arc<dyn Store>, links: Arc<Links>, token: Arc<TokenKey>) -> Self {
        Self { store, links, token, replicas: 1, fallback: String::new() }
    }

    /// Hands out our own redirect, by this base address, as the fallback of every viewer.
    #[must_use]
    pub fn with_fallback(self, public_url: &str) -> Self {
        Self { fallback: public_url.to_owned(), ..self }
    }

    /// Places a viewer, stores it, and answers its token.
    pub async fn invite(&self, i: &Invitation) -> Result<CreateViewerResponse, ControlError> {
        if let Some(key) = i.request
            && let Some(answer) = self.store.recall_request(key).await?
        {
            return recorded(&answer);
        }
        for _ in 1..TRIES {
            match self.try_invite(i).await {
                Err(e) if e.reason == Reason::StaleEpoch => {}
                other => return other,
            }
        }
        self.try_invite(i).await
    }

    async fn try_invite(&self, i: &Invitation) -> Result<CreateViewerResponse, ControlError> {
        let id = &i.name.stream;
        let stream = self.store.stream(id.clone()).await?;
        let stream = stream.ok_or_else(|| ControlError::no_stream(id.resource_name()))?;
        let (edge, url) = self.place(&stream).await?;
        let row = self.row(i, &stream, edge);
        let answer = CreateViewerResponse {
            viewer: Some(translate::viewer(&row)),
            join_token: self.mint(&claims(i, &row))?,
            whep_url: url,
            ice_servers: Vec::new(),
            fallback_whep_urls: whep_url(&self.fallback, id).into_iter().collect(),
        };
        let request = i.request.map(|key| (key, Bytes::from(answer.encode_to_vec())));
        match self.store.join_viewer(JoinViewer { row, request }).await? {
            Once::Answered(before) => recorded(&before),
            Once::Now(_) | Once::Before(_) => {
                metrics::counter!(m::PLACEMENTS, "what" => "viewer", "result" => "placed")
                    .increment(1);
                Ok(answer)
            }
        }
    }

    /// What a placement of a viewer would see and choose now; changes nothing.
    pub async fn explain(&self, stream: &StreamRow) -> Result<place::Decision, ControlError> {
        Ok(self.decide(stream, &self.store.routers().await?))
    }

    fn decide(&self, stream: &StreamRow, fleet: &[Arc<NodeRow>]) -> place::Decision {
        let carriers: Vec<NodeId> = stream.accepted.iter().map(|a| a.node.clone()).collect();
        let ask = place::EdgeAsk { region: "", carriers: &carriers, replicas: self.replicas };
        place::edge(fleet, &ask, &mut rand::rng())
    }

    /// The router the viewer joins, and its address there.
    async fn place(&self, stream: &StreamRow) -> Result<(NodeId, String), ControlError> {
        // Only who carries the stream can be picked: the fleet is not read for one viewer.
        let mut fleet = Vec::with_capacity(1);
        if let Some(carrier) = &stream.accepted {
            fleet.extend(self.store.node(carrier.node.clone()).await?);
        }
        let decision = self.decide(stream, &fleet);
        let url = decision.pick.as_ref().and_then(|pick| {
            let row = fleet.iter().find(|n| n.id == pick.node)?;
            whep_url(&row.addresses().whep_base_url, &stream.id)
        });
        match (decision.pick.clone(), url) {
            (Some(pick), Some(url)) => Ok((pick.node, url)),
            _ => {
                metrics::counter!(m::PLACEMENTS, "what" => "viewer", "result" => "refused")
                    .increment(1);
                tracing::info!(stream = %stream.id, why = decision.explain(), "no edge for a viewer");
                let why = "no router can take the viewer now";
                Err(ControlError::new(Reason::NodeAtCapacity, why)
                    .about("fanlight.Stream", stream.id.resource_name())
                    .retry_in(RETRY))
            }
        }
    }

    fn row(&self, i: &Invitation, stream: &StreamRow, edge: NodeId) -> ViewerRow {
        let now = self.store.now_us();
        let leeway = Duration::from_secs(LEEWAY_S);
        ViewerRow {
            name: i.name.clone(),
            user: i.user.clone(),
            grants: i.grants,
            role: role(&i.grants),
            phase: ViewerPhase::Invited,
            reason: String::new(),
            kicked: false,
            edge,
            epoch: stream.epoch,
            jti: fresh_uuid().to_string(),
            join_until_us: now.saturating_add(us(i.join_ttl + leeway)),
            create_us: now,
            connect_us: None,
            due_us: 0,
        }
    }

    fn mint(&self, claims: &JoinClaims) -> Result<String, ControlError> {
        m::count(m::TOKENS);
        self.token.mint(claims).map_err(|e| ControlError::new(Reason::Internal, e.to_string()))
    }

    /// A token for demonstrations: many sessions, for days, not in the store.
    pub fn demo_token(&self, stream: &StreamId, role: Role) -> Result<String, ControlError> {
        let sub = match role {
            Role::Controller => "demo-controller",
            Role::Observer => "demo-observer",
        };
        let sub =
            ViewerId::parse(sub).map_err(|e| ControlError::new(Reason::Internal, e.to_string()))?;
        self.mint(&JoinClaims {
            iss: JOIN_ISSUER.to_owned(),
            aud: JOIN_AUDIENCE.to_owned(),
            jti: Uuid::new_v4().to_string(),
            sub,
            s: stream.clone(),
            n: None,
            e: 0,
            r: role,
            br: 0,
            exp: unix_seconds() + DEMO_TTL.as_secs(),
            ms: 0,
            multi: true,
        })
    }

    /// Closes a viewer. Answers whether its router acknowledged; the bar is stored either way and
    /// is told again when the router links.
    pub async fn kick(&self, intent: KickViewer, deadline: Instant) -> Result<bool, ControlError> {
        let reason = intent.reason.clone();
        let rows = match self.store.kick_viewer(intent).await? {
            Once::Now(rows) | Once::Before(rows) => rows,
            Once::Answered(answer) => {
                let answer = fanlight_proto::control::v1::KickViewerResponse::decode(answer);
                return answer.map(|a| a.acknowledged).map_err(|_| unreadable());
            }
        };
        metrics::counter!(m::KICKS).increment(rows.len() as u64);
        let wait = KICK_WAIT.min(deadline.saturating_duration_since(Instant::now()) / 2);
        // While a stream moves its viewers may be on either router, and come to the other.
        let mut at = Vec::new();
        for row in &rows {
            at.push((row, row.edge.clone()));
            let stream = self.store.stream(row.name.stream.clone()).await?;
            let leaving = stream.as_ref().and_then(|s| Some((s, s.leaving.as_ref()?)));
            if let Some((stream, leaving)) = leaving {
                let origins = stream.accepted.iter().chain([&leaving.from]).map(|a| &a.node);
                at.extend(origins.filter(|n| **n != row.edge).map(|n| (row, n.clone())));
            }
        }
        let acks = at.iter().map(|(row, node)| self.close(row, node, &reason, wait));
        Ok(futures::future::join_all(acks).await.into_iter().all(|acked| acked))
    }

    async fn close(&self, row: &ViewerRow, at: &NodeId, reason: &str, wait: Duration) -> bool {
        let bar = Bar {
            token_ids: vec![row.jti.clone()],
            stream: row.name.stream.resource_name(),
            // Tokens do not carry the user: a banned user is refused a new token, and each of its
            // tokens is barred by itself.
            user: String::new(),
            until: Some(timestamp(row.join_until_us)),
        };
        // The bar first, so that the token is of no use by the time the session is closed.
        let barred =
            row.jti.is_empty() || self.links.act(at, Body::Bar(bar), wait).await == Some(Code::Ok);
        let kick = Kick { viewer: row.name.to_string(), reason: reason.to_owned() };
        let kicked = self.links.act(at, Body::Kick(kick), wait).await;
        // A viewer that never joined, or that the bar has closed already, is not there to kick.
        barred && matches!(kicked, Some(Code::Ok | Code::NotFound))
    }
}

/// A version 4 UUID. From the thread's generator, which is as strong as the system's and costs no
/// system call.
pub(crate) fn fresh_uuid() -> Uuid {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid()
}

fn role(grants: &ViewerGrants) -> Role {
    match grants.role() {
        ViewerRole::Controller => Role::Controller,
        ViewerRole::Observer | ViewerRole::Unspecified => Role::Observer,
    }
}

fn claims(i: &Invitation, row: &ViewerRow) -> JoinClaims {
    let max_session = i.grants.max_session.and_then(|d| Duration::try_from(d).ok());
    JoinClaims {
        iss: JOIN_ISSUER.to_owned(),
        aud: JOIN_AUDIENCE.to_owned(),
        jti: row.jti.clone(),
        sub: row.name.viewer.clone(),
        s: row.name.stream.clone(),
        n: Some(row.edge.clone()),
        e: row.epoch,
        r: row.role,
        br: i.grants.max_bitrate_bps,
        exp: unix_seconds() + i.join_ttl.as_secs().max(1),
        ms: max_session.unwrap_or_default().as_secs(),
        multi: false,
    }
}

fn recorded(answer: &Bytes) -> Result<CreateViewerResponse, ControlError> {
    CreateViewerResponse::decode(answer.clone()).map_err(|_| unreadable())
}

fn unreadable() -> ControlError {
    ControlError::new(Reason::Internal, "a recorded answer cannot be read")
}
