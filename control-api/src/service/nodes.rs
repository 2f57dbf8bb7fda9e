//! `NodeService`. Translates only: what a drain leads to is the steward's, what is picked the
//! placement's. Invariant: what a list shows is one snapshot per page.

use std::{sync::Arc, time::Duration};

use fanlight_proto::{
    control::v1::{
        DrainNodeRequest, ExplainPlacementRequest, ExplainPlacementResponse, GetNodeRequest,
        ListNodesRequest, ListNodesResponse, Node, PlacementKind, UndrainNodeRequest,
        explain_placement_response::Candidate, node_service_server::NodeService,
    },
    id::NodeId,
    reason::Reason,
};
use tonic::{Request, Response, Status};

use super::{Parts, caller, check::Fields, streams::stream_name, translate};
use crate::{
    error::{ControlError, bad_id},
    metrics as m,
    page::{self, Pager},
};

/// Longest time that a drain leaves viewers.
const MAX_DRAIN: Duration = Duration::from_secs(3_600);

/// The service.
#[derive(Debug)]
pub(crate) struct Nodes(pub(crate) Arc<Parts>);

#[tonic::async_trait]
impl NodeService for Nodes {
    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        let name = request.into_inner().name;
        let id = NodeId::from_resource_name(&name).map_err(bad_id("name"))?;
        let row = self.0.store.node(id.clone()).await?.ok_or_else(|| {
            ControlError::new(Reason::NodeNotFound, "no such node")
                .about("fanlight.Node", id.resource_name())
        })?;
        Ok(Response::new(translate::node(&row)))
    }

    async fn drain_node(
        &self,
        request: Request<DrainNodeRequest>,
    ) -> Result<Response<Node>, Status> {
        let body = request.into_inner();
        let mut fields = Fields::new();
        let id = fields.id("name", NodeId::from_resource_name(&body.name));
        let deadline = fields.duration("deadline", body.deadline, MAX_DRAIN);
        fields.done()?;
        let id = id.ok_or_else(|| ControlError::field("name", "must be set"))?;
        let known = self.0.store.node(id.clone()).await?;
        if known.is_some_and(|n| !n.is_router()) {
            let why = "an ingest worker has its devices to itself: they cannot be moved away";
            return Err(ControlError::field("name", why).into());
        }
        let deadline = deadline.unwrap_or(self.0.drain_deadline);
        let row = self.0.store.drain_node(id, deadline).await?;
        m::count_by(m::DRAINS, "what", "begun");
        tracing::info!(node = %row.id, ?deadline, "a node is drained");
        Ok(Response::new(translate::node(&row)))
    }

    async fn undrain_node(
        &self,
        request: Request<UndrainNodeRequest>,
    ) -> Result<Response<Node>, Status> {
        let name = request.into_inner().name;
        let id = NodeId::from_resource_name(&name).map_err(bad_id("name"))?;
        let row = self.0.store.undrain_node(id).await?;
        m::count_by(m::DRAINS, "what", "undone");
        tracing::info!(node = %row.id, "a drain is undone");
        Ok(Response::new(translate::node(&row)))
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let body = request.into_inner();
        let mut fields = Fields::new();
        fields.filter(&body.filter);
        fields.done()?;
        let pager = Pager::new(self.0.token.seal(), &["ListNodes"]);
        let after = pager.after(&body.page_token)?;
        let after = after.map(|a| NodeId::parse(&a)).transpose().map_err(bad_id("page_token"))?;
        let page = self.0.store.page_nodes(after, page::size(body.page_size)?).await?;
        let last = page.rows.last().filter(|_| page.more);
        Ok(Response::new(ListNodesResponse {
            next_page_token: last.map(|r| pager.token(r.id.as_str())).unwrap_or_default(),
            nodes: page.rows.iter().map(|r| translate::node(r)).collect(),
        }))
    }

    async fn explain_placement(
        &self,
        request: Request<ExplainPlacementRequest>,
    ) -> Result<Response<ExplainPlacementResponse>, Status> {
        let who = caller(&request)?;
        let body = request.into_inner();
        let row = self.0.stream_of(&who, &stream_name("stream", &body.stream)?).await?;
        let kind = match body.kind() {
            PlacementKind::Unspecified if row.accepted.is_none() => PlacementKind::Origin,
            PlacementKind::Unspecified => PlacementKind::Edge,
            kind => kind,
        };
        let decision = match kind {
            PlacementKind::Edge => self.0.inviter.explain(&row).await?,
            _ => self.0.steward.explain(&row).await?,
        };
        let carries = |node: &NodeId| row.accepted.as_ref().is_some_and(|a| a.node == *node);
        let candidate = |c: &crate::place::Candidate| Candidate {
            node: c.node.resource_name(),
            corrected_stress_permille: c.stress_permille,
            already_carries_stream: carries(&c.node),
            excluded_by: c.excluded.map(|why| why.to_string()).unwrap_or_default(),
            region_step: c.step.into(),
        };
        Ok(Response::new(ExplainPlacementResponse {
            candidates: decision.candidates.iter().map(candidate).collect(),
            chosen: decision.pick.map(|c| c.node.resource_name()).unwrap_or_default(),
            kind: kind.into(),
        }))
    }
}
