//! `StreamService`. Translates only; who places is `steward.rs`. Invariant: a creation goes on to
//! its end even when its caller hangs up, so that a retry finds it whole.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fanlight_proto::{
    control::v1::{
        CreateStreamRequest, DeleteStreamRequest, DeleteStreamResponse, GetStreamRequest,
        ListStreamsRequest, ListStreamsResponse, MoveStreamRequest, RequestKeyframeRequest,
        RequestKeyframeResponse, Stream, stream_service_server::StreamService,
    },
    id::{DeviceId, NodeId, StreamId},
    node::v1::{Keyframe, action::Action as Body},
    reason::Reason,
    types::v1::StreamState,
};
use prost::Message as _;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use super::{Parts, check::Fields, deadline, translate};
use crate::{
    error::{ControlError, bad_id},
    page::{self, Pager},
    steward::Created,
    store::{CreateStream, DeleteStream, Once},
};

/// Answers of creations and deletions are kept for a day.
const KEEP: Duration = Duration::from_secs(86_400);
/// Wait for a router to take a keyframe request.
const KEYFRAME_WAIT: Duration = Duration::from_secs(1);

/// The service.
#[derive(Debug)]
pub(crate) struct Streams(pub(crate) Arc<Parts>);

#[tonic::async_trait]
impl StreamService for Streams {
    async fn create_stream(
        &self,
        request: Request<CreateStreamRequest>,
    ) -> Result<Response<Stream>, Status> {
        let deadline = deadline(&request);
        let body = request.into_inner();
        let intent = read_create(&body)?;
        if body.validate_only {
            return Ok(Response::new(self.validated(&intent, body.allow_pending).await?));
        }
        let parts = Arc::clone(&self.0);
        // A task of its own: dropped with the call, it would leave a half-made stream.
        let work = async move {
            tokio::select! {
                done = create(&parts, intent, deadline, body.allow_pending) => done,
                () = parts.shutdown.triggered() => {
                    Err(ControlError::new(Reason::Draining, "this replica is stopping")
                        .retry_in(Duration::from_secs(1)))
                }
            }
        };
        let done = tokio::spawn(work).await;
        let gone = |_| ControlError::new(Reason::Internal, "the creation ended unexpectedly");
        Ok(Response::new(done.map_err(gone)??))
    }

    async fn get_stream(
        &self,
        request: Request<GetStreamRequest>,
    ) -> Result<Response<Stream>, Status> {
        let id = stream_name("name", &request.into_inner().name)?;
        let row = self.0.store.stream(id.clone()).await?;
        let row = row.ok_or_else(|| ControlError::no_stream(id.resource_name()))?;
        Ok(Response::new(translate::stream(&row)))
    }

    async fn list_streams(
        &self,
        request: Request<ListStreamsRequest>,
    ) -> Result<Response<ListStreamsResponse>, Status> {
        let body = request.into_inner();
        let mut fields = Fields::new();
        fields.filter(&body.filter);
        fields.done()?;
        let pager = Pager::new(self.0.token.seal(), &["ListStreams"]);
        let after = pager.after(&body.page_token)?;
        let after = after.map(|a| StreamId::parse(&a)).transpose().map_err(bad_id("page_token"))?;
        let page = self.0.store.page_streams(after, page::size(body.page_size)?).await?;
        let last = page.rows.last().filter(|_| page.more);
        Ok(Response::new(ListStreamsResponse {
            next_page_token: last.map(|r| pager.token(r.id.as_str())).unwrap_or_default(),
            streams: page.rows.iter().map(|r| translate::stream(r)).collect(),
        }))
    }

    async fn delete_stream(
        &self,
        request: Request<DeleteStreamRequest>,
    ) -> Result<Response<DeleteStreamResponse>, Status> {
        let body = request.into_inner();
        let mut fields = Fields::new();
        let id = fields.id("name", StreamId::from_resource_name(&body.name));
        let version = translate::version(&body.etag);
        fields.must("etag", body.etag.is_empty() || version.is_some(), "is not an etag of ours");
        let request = fields.request("DeleteStream", &body.request_id, &body, KEEP);
        fields.done()?;
        let id = id.ok_or_else(unread)?;
        let intent = DeleteStream { id, version, allow_missing: body.allow_missing, request };
        let answer = match self.0.store.delete_stream(intent).await? {
            Once::Now(viewers_closed) | Once::Before(viewers_closed) => {
                DeleteStreamResponse { viewers_closed }
            }
            Once::Answered(answer) => decode(answer)?,
        };
        Ok(Response::new(answer))
    }

    async fn move_stream(
        &self,
        request: Request<MoveStreamRequest>,
    ) -> Result<Response<Stream>, Status> {
        let deadline = deadline(&request);
        let body = request.into_inner();
        let mut fields = Fields::new();
        let id = fields.id("name", StreamId::from_resource_name(&body.name));
        let target = match body.target_node.as_str() {
            "" => None,
            node => fields.id("target_node", NodeId::from_resource_name(node)),
        };
        fields.done()?;
        let id = id.ok_or_else(unread)?;
        let row = self.0.steward.move_stream(&id, target.as_ref(), deadline).await?;
        Ok(Response::new(translate::stream(&row)))
    }

    async fn request_keyframe(
        &self,
        request: Request<RequestKeyframeRequest>,
    ) -> Result<Response<RequestKeyframeResponse>, Status> {
        let id = stream_name("name", &request.into_inner().name)?;
        let row = self.0.store.stream(id.clone()).await?;
        let row = row.ok_or_else(|| ControlError::no_stream(id.resource_name()))?;
        let unserved = || {
            let why = "the stream's router did not take the request";
            ControlError::new(Reason::OriginLost, why)
                .about("fanlight.Stream", id.resource_name())
                .retry_in(KEYFRAME_WAIT)
        };
        let origin = row.accepted.as_ref().ok_or_else(unserved)?;
        let ask = Body::Keyframe(Keyframe { stream: id.resource_name() });
        if self.0.links.act(&origin.node, ask, KEYFRAME_WAIT).await != Some(Code::Ok) {
            return Err(unserved().into());
        }
        Ok(Response::new(RequestKeyframeResponse {}))
    }
}

impl Streams {
    async fn validated(
        &self,
        i: &CreateStream,
        allow_pending: bool,
    ) -> Result<Stream, ControlError> {
        if self.0.store.stream(i.id.clone()).await?.is_some() {
            return Err(ControlError::new(Reason::StreamExists, "the stream exists")
                .about("fanlight.Stream", i.id.resource_name()));
        }
        if !allow_pending {
            self.0.steward.check_device(i).await?;
        }
        let mut stream = Stream::clone(&i.spec);
        stream.name = i.id.resource_name();
        stream.device = i.device.resource_name();
        stream.state = StreamState::Pending.into();
        Ok(stream)
    }
}

async fn create(
    parts: &Parts,
    intent: CreateStream,
    deadline: Instant,
    allow_pending: bool,
) -> Result<Stream, ControlError> {
    let request = intent.request;
    let row = match parts.steward.create(intent, deadline, allow_pending).await? {
        Created::Answered(answer) => return decode(answer),
        Created::Row(row) => row,
    };
    let answer = translate::stream(&row);
    if let Some(key) = request {
        parts.store.finish_request(key, Some(Bytes::from(answer.encode_to_vec()))).await?;
    }
    Ok(answer)
}

fn read_create(body: &CreateStreamRequest) -> Result<CreateStream, ControlError> {
    let mut fields = Fields::new();
    let request = fields.request("CreateStream", &body.request_id, body, KEEP);
    let Some(stream) = &body.stream else {
        fields.wrong("stream", "must be set");
        fields.done()?;
        return Err(unread());
    };
    let device = fields.id("stream.device", DeviceId::from_resource_name(&stream.device));
    let id = match (body.stream_id.as_str(), &device) {
        ("", Some(device)) => fields.id("stream_id", StreamId::parse(device.as_str())),
        ("", None) => None,
        (id, _) => fields.id("stream_id", StreamId::parse(id)),
    };
    if let Some(id) = &id {
        let same = stream.name.is_empty() || stream.name == id.resource_name();
        fields.must("stream.name", same, "must be empty, or agree with stream_id");
    }
    fields.stream(stream);
    fields.done()?;
    let (id, device) = id.zip(device).ok_or_else(unread)?;
    // What is output only is not taken from the caller.
    let spec = Stream {
        tenant: stream.tenant.clone(),
        labels: stream.labels.clone(),
        video: stream.video.clone(),
        audio: stream.audio,
        limits: stream.limits,
        preferred_region: stream.preferred_region.clone(),
        ..Stream::default()
    };
    Ok(CreateStream { id, device, spec: Arc::new(spec), request })
}

/// A stream's name in a field.
pub(super) fn stream_name(field: &str, name: &str) -> Result<StreamId, ControlError> {
    StreamId::from_resource_name(name).map_err(bad_id(field))
}

/// A recorded answer.
pub(super) fn decode<M: prost::Message + Default>(answer: Bytes) -> Result<M, ControlError> {
    let why = "a recorded answer cannot be read";
    M::decode(answer).map_err(|_| ControlError::new(Reason::Internal, why))
}

/// A field that was checked is missing after the check: a fault of this file.
fn unread() -> ControlError {
    ControlError::new(Reason::Internal, "a checked field is missing")
}
