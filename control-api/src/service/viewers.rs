//! `ViewerService`. Translates only; who places and mints is `invite.rs`. Invariant: a join token
//! is in the answer of CreateViewer and nowhere else, neither in lists nor in logs.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fanlight_proto::{
    control::v1::{
        BatchCreateViewersRequest, BatchCreateViewersResponse, CreateViewerRequest,
        CreateViewerResponse, CreateViewerResult, GetViewerRequest, KickViewerRequest,
        KickViewerResponse, ListViewersRequest, ListViewersResponse, Viewer, WatchViewersRequest,
        WatchViewersResponse, create_viewer_result, viewer_service_server::ViewerService,
    },
    id::{StreamId, ViewerId, ViewerName},
    types::v1::{ViewerGrants, ViewerRole},
};
use futures::stream;
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{
    Parts, batch, caller,
    check::{Fields, MAX_LONG},
    deadline,
    streams::{method, stream_name},
    translate,
    viewer_watch::ViewerSource,
    watch::{self, Start, Watch, position},
};
use crate::{
    auth::Principal,
    config::MAX_JOIN_TTL,
    error::{ControlError, bad_id},
    invite::{Invitation, fresh_uuid},
    page::{self, Pager},
    store::KickViewer,
};

/// Answers are kept as long as the longest token lives.
const KEEP: Duration = MAX_JOIN_TTL;
/// Parent that stands for all streams.
const ALL: &str = "streams/-";

/// The service.
#[derive(Debug)]
pub(crate) struct Viewers(pub(crate) Arc<Parts>);

#[tonic::async_trait]
impl ViewerService for Viewers {
    async fn create_viewer(
        &self,
        request: Request<CreateViewerRequest>,
    ) -> Result<Response<CreateViewerResponse>, Status> {
        let who = caller(&request)?;
        Ok(Response::new(self.create_one(&who, request.into_inner()).await?))
    }

    async fn batch_create_viewers(
        &self,
        request: Request<BatchCreateViewersRequest>,
    ) -> Result<Response<BatchCreateViewersResponse>, Status> {
        let who = caller(&request)?;
        let body = request.into_inner();
        batch::check(body.requests.len())?;
        let parent = body.parent;
        let same = |r: &CreateViewerRequest| r.parent.is_empty() || r.parent == parent;
        if !body.requests.iter().all(same) {
            let why = "must be empty, or the parent of the batch";
            return Err(ControlError::field("requests.parent", why).into());
        }
        let items = body.requests.into_iter().map(|mut request| {
            request.parent.clone_from(&parent);
            self.create_one(&who, request)
        });
        let results = batch::run(stream::iter(items)).await;
        let now = self.0.store.now_us();
        let result = |r: Result<CreateViewerResponse, Status>| CreateViewerResult {
            result: Some(match r {
                Ok(answer) => create_viewer_result::Result::Response(answer),
                Err(e) => create_viewer_result::Result::Error(batch::item_status(&e, now)),
            }),
        };
        let results = results.into_iter().map(result).collect();
        Ok(Response::new(BatchCreateViewersResponse { results }))
    }

    type WatchViewersStream = Watch<WatchViewersResponse>;

    async fn watch_viewers(
        &self,
        request: Request<WatchViewersRequest>,
    ) -> Result<Response<Self::WatchViewersStream>, Status> {
        let who = caller(&request)?;
        let body = request.into_inner();
        let mut fields = Fields::new();
        fields.filter(&body.filter);
        fields.done()?;
        let stream = self.parent(&who, &body.parent).await?;
        let begin = match body.resume_token.as_str() {
            "" => Start::State,
            token => Start::After(position("resume_token", token)?),
        };
        Ok(Response::new(watch::start(&self.0, ViewerSource::new(who, stream), begin)?))
    }

    async fn get_viewer(
        &self,
        request: Request<GetViewerRequest>,
    ) -> Result<Response<Viewer>, Status> {
        let who = caller(&request)?;
        let name = request.into_inner().name;
        let name = ViewerName::parse(&name).map_err(bad_id("name"))?;
        self.seen(&who, &name).await?;
        let row = self.0.store.viewer(name.clone()).await?;
        let row = row.ok_or_else(|| ControlError::no_viewer(name.to_string()))?;
        Ok(Response::new(translate::viewer(&row)))
    }

    async fn list_viewers(
        &self,
        request: Request<ListViewersRequest>,
    ) -> Result<Response<ListViewersResponse>, Status> {
        let who = caller(&request)?;
        let body = request.into_inner();
        let mut fields = Fields::new();
        fields.filter(&body.filter);
        fields.done()?;
        let stream = self.parent(&who, &body.parent).await?;
        let pager = Pager::new(self.0.token.seal(), &["ListViewers", &body.parent, who.realm()]);
        let after = pager.after(&body.page_token)?;
        let after =
            after.map(|a| ViewerName::parse(&a)).transpose().map_err(bad_id("page_token"))?;
        let size = page::size(body.page_size)?;
        let page = self.0.store.page_viewers(stream, after, size).await?;
        let last = page.rows.last().filter(|_| page.more);
        let next_page_token = last.map(|r| pager.token(&r.name.to_string())).unwrap_or_default();
        let mut viewers = Vec::with_capacity(page.rows.len());
        for row in &page.rows {
            // Of `streams/-` a confined caller is told what is its own; a page may be short.
            if who.tenant.is_none() || !self.0.is_foreign(&who, &row.name.stream).await? {
                viewers.push(translate::viewer(row));
            }
        }
        Ok(Response::new(ListViewersResponse { viewers, next_page_token }))
    }

    async fn kick_viewer(
        &self,
        request: Request<KickViewerRequest>,
    ) -> Result<Response<KickViewerResponse>, Status> {
        let deadline = deadline(&request);
        let who = caller(&request)?;
        let body = request.into_inner();
        let mut fields = Fields::new();
        let name = fields.id("name", ViewerName::parse(&body.name));
        fields.text("reason", &body.reason);
        let ban = fields.duration("ban", body.ban, MAX_LONG).unwrap_or_default();
        let key = fields.request(&method("KickViewer", &who), &body.request_id, &body, KEEP);
        fields.done()?;
        let name = name.ok_or_else(|| ControlError::field("name", "must be set"))?;
        self.seen(&who, &name).await?;
        let intent = KickViewer { name, reason: body.reason, ban, request: key };
        let acknowledged = self.0.inviter.kick(intent, deadline).await?;
        let answer = KickViewerResponse { acknowledged };
        // Not acknowledged is no final answer: the same call again asks the router again.
        if let Some(key) = key.filter(|_| acknowledged) {
            let bytes = Bytes::from(answer.encode_to_vec());
            self.0.store.finish_request(key, Some(bytes)).await?;
        }
        Ok(Response::new(answer))
    }
}

impl Viewers {
    async fn create_one(
        &self,
        who: &Principal,
        body: CreateViewerRequest,
    ) -> Result<CreateViewerResponse, Status> {
        let invitation = self.read_create(who, &body)?;
        if self.0.is_foreign(who, &invitation.name.stream).await? {
            let name = invitation.name.stream.resource_name();
            return Err(ControlError::no_stream(name).into());
        }
        Ok(self.0.inviter.invite(&invitation).await?)
    }

    /// The stream that is meant; `None`: all of them.
    async fn parent(
        &self,
        who: &Principal,
        parent: &str,
    ) -> Result<Option<StreamId>, ControlError> {
        if parent == ALL {
            return Ok(None);
        }
        let id = stream_name("parent", parent)?;
        self.0.stream_of(who, &id).await?;
        Ok(Some(id))
    }

    /// Refuses what is another tenant's as if it were not there.
    async fn seen(&self, who: &Principal, name: &ViewerName) -> Result<(), ControlError> {
        if self.0.is_foreign(who, &name.stream).await? {
            return Err(ControlError::no_viewer(name.to_string()));
        }
        Ok(())
    }

    fn read_create(
        &self,
        who: &Principal,
        body: &CreateViewerRequest,
    ) -> Result<Invitation, ControlError> {
        let mut fields = Fields::new();
        let stream = fields.id("parent", StreamId::from_resource_name(&body.parent));
        let fresh = || format!("v-{}", fresh_uuid().simple());
        let viewer = match body.viewer_id.as_str() {
            "" => fields.id("viewer_id", ViewerId::parse(&fresh())),
            id => fields.id("viewer_id", ViewerId::parse(id)),
        };
        let given = body.viewer.clone().unwrap_or_default();
        fields.word("viewer.user", &given.user);
        let grants = read_grants(&mut fields, given.grants.unwrap_or_default());
        let asked = fields.duration("join_ttl", body.join_ttl, MAX_JOIN_TTL);
        let join_ttl = asked.filter(|d| !d.is_zero()).unwrap_or(self.0.join_ttl);
        let ip = &body.client_ip;
        let known = ip.is_empty() || ip.parse::<std::net::IpAddr>().is_ok();
        fields.must("client_ip", known, "is not an IP address");
        let request = fields.request(&method("CreateViewer", who), &body.request_id, body, KEEP);
        if let (Some(stream), Some(viewer)) = (&stream, &viewer) {
            let name = ViewerName { stream: stream.clone(), viewer: viewer.clone() }.to_string();
            let same = given.name.is_empty() || given.name == name;
            fields.must("viewer.name", same, "must be empty, or agree with viewer_id");
        }
        fields.done()?;
        let (stream, viewer) =
            stream.zip(viewer).ok_or_else(|| ControlError::field("parent", "must be set"))?;
        Ok(Invitation {
            name: ViewerName { stream, viewer },
            user: given.user,
            grants,
            join_ttl,
            request,
        })
    }
}

/// Grants as they are stored: the role is decided, the rest bounded.
fn read_grants(fields: &mut Fields, mut grants: ViewerGrants) -> ViewerGrants {
    match ViewerRole::try_from(grants.role) {
        // The least privilege is the default.
        Ok(ViewerRole::Unspecified) => grants.role = ViewerRole::Observer.into(),
        Ok(ViewerRole::Observer | ViewerRole::Controller) => {}
        Err(_) => fields.wrong("viewer.grants.role", "must be OBSERVER or CONTROLLER"),
    }
    fields.duration("viewer.grants.max_session", grants.max_session, MAX_LONG);
    fields.must("viewer.grants.priority", grants.priority <= 255, "is above 255");
    grants
}
