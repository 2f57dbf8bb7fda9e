//! The session routes of the older media service, for platforms that still speak them:
//! `/api/media/sessions`. A session is a viewer; its offer goes to the viewer's router by WHEP.
//! Not a place for new features. Invariant: a session can be read, listed and ended on any replica,
//! because all of it but its count of candidates stands in the store.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State, rejection::JsonRejection},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use bytes::Bytes;
use fanlight_proto::{
    control::v1::{
        CreateStreamRequest, CreateViewerRequest, CreateViewerResponse, GetViewerRequest,
        KickViewerRequest, KickViewerResponse, ListStreamsRequest, ListStreamsResponse,
        ListViewersRequest, ListViewersResponse, Stream, Viewer, ViewerState,
    },
    id::{StreamId, ViewerName},
    reason::Reason,
    types::v1::{StreamState, ViewerGrants, ViewerRole},
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use super::{call::Caller, problem::problem};
use crate::{error::ControlError, webhook::post::HttpClient};

/// Largest body: an offer is at most 32 kB.
const MAX_BODY: usize = 64 * 1024;
/// Candidates of one session; more are refused, as they were.
const MAX_CANDIDATES: u32 = 50;
/// Sessions whose candidates are counted; at the bound the count of the oldest is forgotten.
const MAX_COUNTED: usize = 10_000;
/// Longest wait for the router's answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Largest answer of a router.
const MAX_ANSWER: usize = 64 * 1024;
/// Between the stream and the viewer in a session's id. Viewer ids made here do not hold it.
const SEPARATOR: char = '~';

/// What the routes work with.
#[derive(Debug)]
struct Sessions {
    caller: Caller,
    http: HttpClient,
    counted: Mutex<Candidates>,
}

/// How many sessions came, and candidates by session with its place among them.
type Candidates = (u64, BTreeMap<String, (u64, u32)>);

/// The routes. `inner` is the chain with the gRPC services in it.
///
/// # Errors
/// As [`HttpClient::new`].
pub fn routes(inner: &Router) -> anyhow::Result<Router> {
    let sessions = Arc::new(Sessions {
        caller: Caller::new(inner.clone(), String::new()),
        http: HttpClient::new(None)?,
        counted: Mutex::default(),
    });
    Ok(Router::new()
        .route("/api/media/sessions", get(list).post(create))
        .route("/api/media/sessions/{session}", get(read).delete(end))
        .route("/api/media/sessions/{session}/answer", post(answer))
        .route("/api/media/sessions/{session}/ice-candidate", post(candidate))
        .route("/api/media/stats", get(stats))
        .route("/health", get(|| async { Json(json!({ "status": "ok" })) }))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(sessions))
}

/// Body of a creation.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewSession {
    device_id: String,
    #[serde(default)]
    user_id: String,
    offer: Description,
}

/// A session description, bare or as browsers write it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Description {
    Bare(String),
    Typed { sdp: String },
}

type Answer = Result<Response, Status>;

fn told(answer: Answer) -> Response {
    answer.unwrap_or_else(|status| problem(&status))
}

async fn create(
    State(sessions): State<Arc<Sessions>>,
    headers: HeaderMap,
    body: Result<Json<NewSession>, JsonRejection>,
) -> Response {
    told(async { sessions.create(&headers, read_json(body)?).await }.await)
}

async fn list(State(sessions): State<Arc<Sessions>>, headers: HeaderMap) -> Response {
    told(sessions.list(&headers).await)
}

async fn read(
    State(sessions): State<Arc<Sessions>>,
    Path(session): Path<String>,
    headers: HeaderMap,
) -> Response {
    told(sessions.viewer(&headers, &session).await.map(|v| Json(shown(&v)).into_response()))
}

async fn end(
    State(sessions): State<Arc<Sessions>>,
    Path(session): Path<String>,
    headers: HeaderMap,
) -> Response {
    told(sessions.end(&headers, &session).await)
}

/// The answer was given when the session was made; there is none to take.
async fn answer(
    State(sessions): State<Arc<Sessions>>,
    Path(session): Path<String>,
    headers: HeaderMap,
) -> Response {
    told(
        async {
            sessions.viewer(&headers, &session).await?;
            let why = "the session was answered when it was made; its offer comes from the viewer";
            Err(ControlError::new(Reason::Unsupported, why).into())
        }
        .await,
    )
}

async fn candidate(
    State(sessions): State<Arc<Sessions>>,
    Path(session): Path<String>,
    headers: HeaderMap,
) -> Response {
    told(sessions.candidate(&headers, &session).await)
}

async fn stats(State(sessions): State<Arc<Sessions>>, headers: HeaderMap) -> Response {
    told(sessions.stats(&headers).await)
}

fn read_json<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Status> {
    body.map(|Json(read)| read).map_err(|e| {
        if e.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return ControlError::new(Reason::TooLarge, e.body_text()).into();
        }
        ControlError::field("body", e.body_text()).into()
    })
}

impl Sessions {
    async fn call<Q: prost::Message, A: prost::Message + Default>(
        &self,
        headers: &HeaderMap,
        rpc: &str,
        request: &Q,
    ) -> Result<A, Status> {
        let bytes = self.caller.to(rpc).unary(headers, request.encode_to_vec()).await?;
        let fault = |_| ControlError::new(Reason::Internal, "an answer cannot be read");
        Ok(A::decode(bytes).map_err(fault)?)
    }

    async fn create(&self, headers: &HeaderMap, new: NewSession) -> Answer {
        let stream = StreamId::parse(&new.device_id)
            .map_err(|e| ControlError::field("deviceId", e.to_string()))?;
        let invited = match self.invite(headers, &stream, &new.user_id).await {
            // The older service captured a device when it was first asked for.
            Err(e) if word(&e) == Reason::StreamNotFound.as_str() => {
                self.create_stream(headers, &stream).await?;
                self.invite(headers, &stream, &new.user_id).await?
            }
            other => other?,
        };
        let viewer = invited.viewer.clone().unwrap_or_default();
        let offer = match new.offer {
            Description::Bare(sdp) | Description::Typed { sdp } => sdp,
        };
        let answer = match self.exchange(&invited, offer).await {
            Ok(answer) => answer,
            Err(refusal) => {
                // Without an answer the session is of no use, nor is its token.
                let kick = KickViewerRequest { name: viewer.name, ..Default::default() };
                let kicked: Result<KickViewerResponse, _> =
                    self.call(headers, "ViewerService/KickViewer", &kick).await;
                if let Err(e) = kicked {
                    tracing::debug!(error = %e, "the viewer of a failed session stays invited");
                }
                return Err(refusal.into());
            }
        };
        let mut session = shown(&viewer);
        session["answer"] = json!({ "type": "answer", "sdp": answer });
        Ok((StatusCode::CREATED, Json(session)).into_response())
    }

    async fn invite(
        &self,
        headers: &HeaderMap,
        stream: &StreamId,
        user: &str,
    ) -> Result<CreateViewerResponse, Status> {
        // Every viewer of the older service could control the device.
        let grants = ViewerGrants {
            role: ViewerRole::Controller.into(),
            clipboard: true,
            ..ViewerGrants::default()
        };
        let request = CreateViewerRequest {
            parent: stream.resource_name(),
            viewer_id: format!("m-{}", Uuid::new_v4().simple()),
            viewer: Some(Viewer {
                user: user.to_owned(),
                grants: Some(grants),
                ..Viewer::default()
            }),
            ..CreateViewerRequest::default()
        };
        self.call(headers, "ViewerService/CreateViewer", &request).await
    }

    async fn create_stream(&self, headers: &HeaderMap, stream: &StreamId) -> Result<(), Status> {
        let request = CreateStreamRequest {
            stream: Some(Stream { device: format!("devices/{stream}"), ..Stream::default() }),
            ..CreateStreamRequest::default()
        };
        let made: Result<Stream, _> =
            self.call(headers, "StreamService/CreateStream", &request).await;
        match made {
            // Two sessions at once: the other one made it.
            Err(e) if word(&e) == Reason::StreamExists.as_str() => Ok(()),
            other => other.map(drop),
        }
    }

    /// The viewer's offer to its router, by WHEP.
    async fn exchange(
        &self,
        invited: &CreateViewerResponse,
        offer: String,
    ) -> Result<String, ControlError> {
        let broken = |why: String| {
            ControlError::new(Reason::OriginLost, format!("the router gave no answer: {why}"))
                .retry_in(Duration::from_secs(1))
        };
        let mut request = Request::new(Full::new(Bytes::from(offer)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = invited.whep_url.parse().map_err(|_| broken("no address".into()))?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/sdp"));
        let token = HeaderValue::from_str(&format!("Bearer {}", invited.join_token));
        headers.insert(header::AUTHORIZATION, token.map_err(|e| broken(e.to_string()))?);
        let answer = self.http.send(request, MAX_ANSWER, ANSWER_WAIT).await.map_err(broken)?;
        let body = String::from_utf8_lossy(answer.body()).into_owned();
        match answer.status() {
            StatusCode::CREATED => Ok(body),
            status => {
                // The router says why in a problem document with a machine word of ours.
                let said: Value = serde_json::from_str(&body).unwrap_or_default();
                let reason = said["reason"].as_str().and_then(Reason::parse);
                let detail = said["detail"].as_str().map(ToOwned::to_owned);
                let why = detail.unwrap_or_else(|| format!("HTTP status {status}"));
                let error = reason.map(|r| ControlError::new(r, why.clone()));
                Err(error.unwrap_or_else(|| broken(why)))
            }
        }
    }

    async fn viewer(&self, headers: &HeaderMap, session: &str) -> Result<Viewer, Status> {
        let unknown = || {
            ControlError::new(Reason::SessionNotFound, "no such session")
                .about("fanlight.Session", session.chars().take(300).collect::<String>())
        };
        let (stream, viewer) = session.rsplit_once(SEPARATOR).ok_or_else(unknown)?;
        let name = format!("streams/{stream}/viewers/{viewer}");
        ViewerName::parse(&name).map_err(|_| unknown())?;
        let read = self.call(headers, "ViewerService/GetViewer", &GetViewerRequest { name }).await;
        read.map_err(|e: Status| if e.code() == Code::NotFound { unknown().into() } else { e })
    }

    async fn list(&self, headers: &HeaderMap) -> Answer {
        let viewers = self.viewers(headers).await?;
        let sessions: Vec<_> = viewers.iter().filter(|v| is_session(v)).map(shown).collect();
        Ok(Json(json!({ "total": sessions.len(), "sessions": sessions })).into_response())
    }

    /// The first thousand viewers, as the older service never had more.
    async fn viewers(&self, headers: &HeaderMap) -> Result<Vec<Viewer>, Status> {
        let parent = "streams/-".to_owned();
        let request = ListViewersRequest { parent, page_size: 1000, ..Default::default() };
        let list: ListViewersResponse =
            self.call(headers, "ViewerService/ListViewers", &request).await?;
        Ok(list.viewers)
    }

    async fn end(&self, headers: &HeaderMap, session: &str) -> Answer {
        let viewer = self.viewer(headers, session).await?;
        let kick = KickViewerRequest {
            name: viewer.name,
            reason: "the session was ended".to_owned(),
            ..KickViewerRequest::default()
        };
        let _: KickViewerResponse = self.call(headers, "ViewerService/KickViewer", &kick).await?;
        self.counted.lock().1.remove(session);
        Ok(Json(json!({ "message": "session closed", "sessionId": session })).into_response())
    }

    /// Routers are ICE-lite and learn a viewer's address from its checks: candidates are counted
    /// and need not be passed on.
    async fn candidate(&self, headers: &HeaderMap, session: &str) -> Answer {
        self.viewer(headers, session).await?;
        if self.count(session) > MAX_CANDIDATES {
            let why = format!("a session may name {MAX_CANDIDATES} candidates");
            return Err(ControlError::new(Reason::StreamLimit, why).into());
        }
        Ok(Json(json!({ "message": "candidate taken" })).into_response())
    }

    fn count(&self, session: &str) -> u32 {
        let (arrivals, counted) = &mut *self.counted.lock();
        *arrivals += 1;
        if counted.len() >= MAX_COUNTED && !counted.contains_key(session) {
            let oldest = counted.iter().min_by_key(|(_, (at, _))| *at).map(|(s, _)| s.clone());
            if let Some(oldest) = oldest {
                counted.remove(&oldest);
            }
        }
        let (_, n) = counted.entry(session.to_owned()).or_insert((*arrivals, 0));
        *n = n.saturating_add(1);
        *n
    }

    async fn stats(&self, headers: &HeaderMap) -> Answer {
        let viewers = self.viewers(headers).await?;
        let request = ListStreamsRequest { page_size: 1000, ..Default::default() };
        let streams: ListStreamsResponse =
            self.call(headers, "StreamService/ListStreams", &request).await?;
        let in_state = |state: ViewerState| viewers.iter().filter(|v| v.state() == state).count();
        let live = streams.streams.iter().filter(|s| s.state() == StreamState::Live);
        Ok(Json(json!({
            "totalSessions": viewers.iter().filter(|v| v.state() != ViewerState::Gone).count(),
            "activeSessions": in_state(ViewerState::Connected),
            "streams": streams.streams.len(),
            "liveStreams": live.count(),
        }))
        .into_response())
    }
}

/// A viewer that these routes made.
fn is_session(viewer: &Viewer) -> bool {
    let id = viewer.name.rsplit('/').next().unwrap_or_default();
    id.starts_with("m-") && viewer.state() != ViewerState::Gone
}

/// A session as the older service showed it.
fn shown(viewer: &Viewer) -> Value {
    let (stream, id) = match ViewerName::parse(&viewer.name) {
        Ok(name) => (name.stream.to_string(), name.viewer.to_string()),
        Err(_) => Default::default(),
    };
    let state = match viewer.state() {
        ViewerState::Connected => "connected",
        ViewerState::Gone => "closed",
        _ => "connecting",
    };
    json!({
        "sessionId": format!("{stream}{SEPARATOR}{id}"),
        "deviceId": stream,
        "userId": viewer.user,
        "state": state,
    })
}

fn word(status: &Status) -> String {
    status.get_details_error_info().map(|i| i.reason).unwrap_or_default()
}
