//! `StreamService`. Translates only; who places is `steward.rs`. Invariant: a creation goes on to
//! its end even when its caller hangs up, so that a retry finds it whole.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fanlight_proto::{
    control::v1::{
        BatchCreateStreamsRequest, BatchCreateStreamsResponse, BatchDeleteStreamsRequest,
        BatchDeleteStreamsResponse, CreateStreamRequest, CreateStreamResult, DeleteStreamRequest,
        DeleteStreamResponse, DeleteStreamResult, GetStreamRequest, ListStreamsRequest,
        ListStreamsResponse, MoveStreamRequest, RequestKeyframeRequest, RequestKeyframeResponse,
        Stream, UpdateStreamRequest, WatchStreamsRequest, WatchStreamsResponse,
        create_stream_result, delete_stream_result, stream_service_server::StreamService,
    },
    id::{DeviceId, NodeId, StreamId},
    node::v1::{Keyframe, action::Action as Body},
    reason::Reason,
    types::v1::StreamState,
};
use futures::stream;
use prost::Message as _;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use super::{
    Parts, batch, caller,
    check::Fields,
    deadline,
    stream_update::{read_update, validated_update},
    stream_watch::StreamSource,
    translate,
    watch::{self, Start, Watch, position},
};
use crate::{
    auth::Principal,
    error::{ControlError, bad_id},
    page::{self, Pager},
    steward::Created,
    store::{CreateStream, DeleteStream, Once, rows::StreamRow},
};

/// Answers of creations and deletions are kept for a day.
pub(super) const KEEP: Duration = Duration::from_secs(86_400);
/// Wait for a router to take a keyframe request.
const KEYFRAME_WAIT: Duration = Duration::from_secs(1);

/// Rows looked at in one go for a caller that sees only some, and how many times for one page.
pub(super) const SCAN: usize = 1000;
const MAX_SCANS: usize = 20;

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
        let who = caller(&request)?;
        Ok(Response::new(self.create_one(&who, request.into_inner(), deadline).await?))
    }

    async fn get_stream(
        &self,
        request: Request<GetStreamRequest>,
    ) -> Result<Response<Stream>, Status> {
        let who = caller(&request)?;
        let id = stream_name("name", &request.into_inner().name)?;
        let row = self.0.stream_of(&who, &id).await?;
        Ok(Response::new(translate::stream(&row)))
    }

    async fn list_streams(
        &self,
        request: Request<ListStreamsRequest>,
    ) -> Result<Response<ListStreamsResponse>, Status> {
        let who = caller(&request)?;
        let body = request.into_inner();
        let mut fields = Fields::new();
        fields.filter(&body.filter);
        fields.done()?;
        let pager = Pager::new(self.0.token.seal(), &["ListStreams", who.realm()]);
        let after = pager.after(&body.page_token)?;
        let after = after.map(|a| StreamId::parse(&a)).transpose().map_err(bad_id("page_token"))?;
        let size = page::size(body.page_size)?;
        let (rows, next) = self.0.streams_after(&who, after, size).await?;
        Ok(Response::new(ListStreamsResponse {
            next_page_token: next.map(|id| pager.token(id.as_str())).unwrap_or_default(),
            streams: rows.iter().map(|r| translate::stream(r)).collect(),
        }))
    }

    async fn update_stream(
        &self,
        request: Request<UpdateStreamRequest>,
    ) -> Result<Response<Stream>, Status> {
        let deadline = deadline(&request);
        let who = caller(&request)?;
        let body = request.into_inner();
        let (intent, given) = read_update(&who, &body)?;
        let row = match self.0.stream_of(&who, &intent.id).await {
            Ok(row) => row,
            Err(e) if e.reason == Reason::StreamNotFound && body.allow_missing => {
                let create = CreateStreamRequest {
                    stream_id: intent.id.as_str().to_owned(),
                    stream: Some(given),
                    request_id: body.request_id,
                    allow_pending: true,
                    validate_only: body.validate_only,
                };
                return Ok(Response::new(self.create_one(&who, create, deadline).await?));
            }
            Err(e) => return Err(e.into()),
        };
        if body.validate_only {
            return Ok(Response::new(validated_update(&row, &intent)?));
        }
        let key = intent.request;
        let answer = match self.0.store.update_stream(intent).await? {
            Once::Answered(answer) => return Ok(Response::new(decode(answer)?)),
            Once::Now(row) | Once::Before(row) => translate::stream(&row),
        };
        if let Some(key) = key {
            let bytes = Bytes::from(answer.encode_to_vec());
            self.0.store.finish_request(key, Some(bytes)).await?;
        }
        Ok(Response::new(answer))
    }

    async fn delete_stream(
        &self,
        request: Request<DeleteStreamRequest>,
    ) -> Result<Response<DeleteStreamResponse>, Status> {
        let who = caller(&request)?;
        Ok(Response::new(self.delete_one(&who, request.into_inner()).await?))
    }

    async fn batch_create_streams(
        &self,
        request: Request<BatchCreateStreamsRequest>,
    ) -> Result<Response<BatchCreateStreamsResponse>, Status> {
        let deadline = deadline(&request);
        let who = caller(&request)?;
        let requests = request.into_inner().requests;
        batch::check(requests.len())?;
        let items = requests.into_iter().map(|r| self.create_one(&who, r, deadline));
        let results = batch::run(stream::iter(items)).await;
        let now = self.0.store.now_us();
        let result = |r: Result<Stream, Status>| CreateStreamResult {
            result: Some(match r {
                Ok(stream) => create_stream_result::Result::Stream(stream),
                Err(e) => create_stream_result::Result::Error(batch::item_status(&e, now)),
            }),
        };
        let results = results.into_iter().map(result).collect();
        Ok(Response::new(BatchCreateStreamsResponse { results }))
    }

    async fn batch_delete_streams(
        &self,
        request: Request<BatchDeleteStreamsRequest>,
    ) -> Result<Response<BatchDeleteStreamsResponse>, Status> {
        let who = caller(&request)?;
        let requests = request.into_inner().requests;
        batch::check(requests.len())?;
        let items = requests.into_iter().map(|r| self.delete_one(&who, r));
        let results = batch::run(stream::iter(items)).await;
        let now = self.0.store.now_us();
        let result = |r: Result<DeleteStreamResponse, Status>| DeleteStreamResult {
            result: Some(match r {
                Ok(done) => delete_stream_result::Result::Response(done),
                Err(e) => delete_stream_result::Result::Error(batch::item_status(&e, now)),
            }),
        };
        let results = results.into_iter().map(result).collect();
        Ok(Response::new(BatchDeleteStreamsResponse { results }))
    }

    type WatchStreamsStream = Watch<WatchStreamsResponse>;

    async fn watch_streams(
        &self,
        request: Request<WatchStreamsRequest>,
    ) -> Result<Response<Self::WatchStreamsStream>, Status> {
        let who = caller(&request)?;
        let body = request.into_inner();
        let mut fields = Fields::new();
        fields.filter(&body.filter);
        fields.done()?;
        let begin = match body.resume_token.as_str() {
            "" => Start::State,
            token => Start::After(position("resume_token", token)?),
        };
        Ok(Response::new(watch::start(&self.0, StreamSource(who), begin)?))
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
        let who = caller(&request)?;
        let id = stream_name("name", &request.into_inner().name)?;
        let row = self.0.stream_of(&who, &id).await?;
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
    async fn create_one(
        &self,
        who: &Principal,
        body: CreateStreamRequest,
        deadline: Instant,
    ) -> Result<Stream, Status> {
        let intent = read_create(who, &body)?;
        if body.validate_only {
            return Ok(self.validated(&intent, body.allow_pending).await?);
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
        Ok(done.map_err(gone)??)
    }

    async fn delete_one(
        &self,
        who: &Principal,
        body: DeleteStreamRequest,
    ) -> Result<DeleteStreamResponse, Status> {
        let mut fields = Fields::new();
        let id = fields.id("name", StreamId::from_resource_name(&body.name));
        let version = translate::version(&body.etag);
        fields.must("etag", body.etag.is_empty() || version.is_some(), "is not an etag of ours");
        let request = fields.request(&method("DeleteStream", who), &body.request_id, &body, KEEP);
        fields.done()?;
        let id = id.ok_or_else(unread)?;
        // Another tenant's stream is not there: neither is it ended, nor is anything recorded.
        if self.0.is_foreign(who, &id).await? {
            if body.allow_missing {
                return Ok(DeleteStreamResponse::default());
            }
            return Err(ControlError::no_stream(id.resource_name()).into());
        }
        let intent = DeleteStream { id, version, allow_missing: body.allow_missing, request };
        Ok(match self.0.store.delete_stream(intent).await? {
            Once::Now(viewers_closed) | Once::Before(viewers_closed) => {
                DeleteStreamResponse { viewers_closed }
            }
            Once::Answered(answer) => decode(answer)?,
        })
    }

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

fn read_create(who: &Principal, body: &CreateStreamRequest) -> Result<CreateStream, ControlError> {
    let mut fields = Fields::new();
    let request = fields.request(&method("CreateStream", who), &body.request_id, body, KEEP);
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
    let tenant = who.tenant_of_new(&stream.tenant)?;
    let (id, device) = id.zip(device).ok_or_else(unread)?;
    // What is output only is not taken from the caller.
    let spec = Stream {
        tenant,
        labels: stream.labels.clone(),
        video: stream.video.clone(),
        audio: stream.audio,
        limits: stream.limits,
        preferred_region: stream.preferred_region.clone(),
        ..Stream::default()
    };
    Ok(CreateStream { id, device, spec: Arc::new(spec), request })
}

/// A method as it stands in a call's fingerprint.
pub(super) fn method(name: &str, who: &Principal) -> String {
    format!("{name}\0{}", who.realm())
}

impl Parts {
    /// A stream that exists for the caller.
    pub(super) async fn stream_of(
        &self,
        who: &Principal,
        id: &StreamId,
    ) -> Result<Arc<StreamRow>, ControlError> {
        let row = self.store.stream(id.clone()).await?;
        let row = row.filter(|row| who.sees(&row.spec.tenant));
        row.ok_or_else(|| ControlError::no_stream(id.resource_name()))
    }

    /// True when the stream is there, and another tenant's.
    pub(super) async fn is_foreign(
        &self,
        who: &Principal,
        id: &StreamId,
    ) -> Result<bool, ControlError> {
        let row = self.store.stream(id.clone()).await?;
        Ok(row.is_some_and(|row| !who.sees(&row.spec.tenant)))
    }

    /// Streams that exist for the caller, and the name to read on after.
    pub(super) async fn streams_after(
        &self,
        who: &Principal,
        mut after: Option<StreamId>,
        size: usize,
    ) -> Result<(Vec<Arc<StreamRow>>, Option<StreamId>), ControlError> {
        let mut rows = Vec::new();
        for _ in 0..MAX_SCANS {
            // Of all tenants' streams a page is read; a confined caller looks at larger ones.
            let want = if who.tenant.is_some() { SCAN } else { size - rows.len() };
            let page = self.store.page_streams(after.clone(), want).await?;
            for row in page.rows {
                if rows.len() == size {
                    return Ok((rows, after));
                }
                after = Some(row.id.clone());
                if who.sees(&row.spec.tenant) {
                    rows.push(row);
                }
            }
            if !page.more {
                return Ok((rows, None));
            }
            if rows.len() == size {
                break;
            }
        }
        // A page may be short while there are more: the token says so.
        Ok((rows, after))
    }
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
pub(super) fn unread() -> ControlError {
    ControlError::new(Reason::Internal, "a checked field is missing")
}
