//! `ViewerService`. Translates only; who places and mints is `invite.rs`. Invariant: a join token
//! is in the answer of CreateViewer and nowhere else, neither in lists nor in logs.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fanlight_proto::{
    control::v1::{
        CreateViewerRequest, CreateViewerResponse, GetViewerRequest, KickViewerRequest,
        KickViewerResponse, ListViewersRequest, ListViewersResponse, Viewer,
        viewer_service_server::ViewerService,
    },
    id::{StreamId, ViewerId, ViewerName},
    types::v1::{ViewerGrants, ViewerRole},
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{
    Parts,
    check::{Fields, MAX_LONG},
    deadline,
    streams::stream_name,
    translate,
};
use crate::{
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
        let invitation = self.read_create(&request.into_inner())?;
        Ok(Response::new(self.0.inviter.invite(&invitation).await?))
    }

    async fn get_viewer(
        &self,
        request: Request<GetViewerRequest>,
    ) -> Result<Response<Viewer>, Status> {
        let name = request.into_inner().name;
        let name = ViewerName::parse(&name).map_err(bad_id("name"))?;
        let row = self.0.store.viewer(name.clone()).await?;
        let row = row.ok_or_else(|| ControlError::no_viewer(name.to_string()))?;
        Ok(Response::new(translate::viewer(&row)))
    }

    async fn list_viewers(
        &self,
        request: Request<ListViewersRequest>,
    ) -> Result<Response<ListViewersResponse>, Status> {
        let body = request.into_inner();
        let mut fields = Fields::new();
        fields.filter(&body.filter);
        fields.done()?;
        let stream = match body.parent.as_str() {
            ALL => None,
            parent => Some(stream_name("parent", parent)?),
        };
        if let Some(id) = &stream
            && self.0.store.stream(id.clone()).await?.is_none()
        {
            return Err(ControlError::no_stream(id.resource_name()).into());
        }
        let pager = Pager::new(self.0.token.seal(), &["ListViewers", &body.parent]);
        let after = pager.after(&body.page_token)?;
        let after =
            after.map(|a| ViewerName::parse(&a)).transpose().map_err(bad_id("page_token"))?;
        let page = self.0.store.page_viewers(stream, after, page::size(body.page_size)?).await?;
        let last = page.rows.last().filter(|_| page.more);
        Ok(Response::new(ListViewersResponse {
            next_page_token: last.map(|r| pager.token(&r.name.to_string())).unwrap_or_default(),
            viewers: page.rows.iter().map(|r| translate::viewer(r)).collect(),
        }))
    }

    async fn kick_viewer(
        &self,
        request: Request<KickViewerRequest>,
    ) -> Result<Response<KickViewerResponse>, Status> {
        let deadline = deadline(&request);
        let body = request.into_inner();
        let mut fields = Fields::new();
        let name = fields.id("name", ViewerName::parse(&body.name));
        fields.text("reason", &body.reason);
        let ban = fields.duration("ban", body.ban, MAX_LONG).unwrap_or_default();
        let key = fields.request("KickViewer", &body.request_id, &body, KEEP);
        fields.done()?;
        let name = name.ok_or_else(|| ControlError::field("name", "must be set"))?;
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
    fn read_create(&self, body: &CreateViewerRequest) -> Result<Invitation, ControlError> {
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
        let request = fields.request("CreateViewer", &body.request_id, body, KEEP);
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
