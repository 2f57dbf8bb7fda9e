//! Server-sent events of a session (draft-ietf-wish-whep, the extension `server-sent-events`): by
//! them a viewer is told to join elsewhere. Not what causes them. Invariant: a session has at most
//! one event stream, which ends with it; so their number is bounded by the sessions'.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::to_bytes,
    extract::{Path, Request, State},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use fanlight_proto::reason::Reason;
use futures::stream::unfold;
use http::{Method, StatusCode, header};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    problem::Problem,
    whep::{Whep, authorized_session, find, no_session, not_allowed, require_type},
};

/// Relation of the link in the answer to a join.
const RELATION: &str = "urn:ietf:params:whep:ext:core:server-sent-events";
/// The one event there is.
const RECONNECT: &str = "reconnect";
/// Longest list of events, in bytes.
const LIST_BYTES_MAX: usize = 1_024;
/// Longest wait for it.
const LIST_DEADLINE: Duration = Duration::from_secs(5);
/// A comment is sent so often, so that nobody between takes the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The link by which a client finds the events of the session at `location`.
pub(crate) fn link(location: &str) -> String {
    format!("<{location}/events>; rel=\"{RELATION}\"; events=\"{RECONNECT}\"")
}

/// `/whep/{stream}/{session}/events`: which events are wanted, and so where they are read.
pub(crate) async fn subscribe(
    State(whep): State<Arc<Whep>>,
    Path((stream, session)): Path<(String, String)>,
    request: Request,
) -> Response {
    let done = match *request.method() {
        Method::OPTIONS => return StatusCode::OK.into_response(),
        Method::POST => begin(&whep, &stream, &session, request).await,
        _ => return not_allowed("POST, OPTIONS"),
    };
    done.unwrap_or_else(IntoResponse::into_response)
}

async fn begin(
    whep: &Whep,
    stream: &str,
    session: &str,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let found = authorized_session(whep, stream, session, &parts.headers)?;
    require_type(&parts.headers, "application/json")?;
    let list = tokio::time::timeout(LIST_DEADLINE, to_bytes(body, LIST_BYTES_MAX)).await;
    let list = list.ok().and_then(Result::ok).unwrap_or_default();
    let wanted: Vec<String> = serde_json::from_slice(&list).map_err(|_| unreadable())?;
    if !wanted.iter().any(|event| event == RECONNECT) {
        return Err(unreadable());
    }
    let location = format!("/whep/{stream}/{session}/events/{}", found.new_events());
    Ok((StatusCode::CREATED, [(header::LOCATION, location)]).into_response())
}

fn unreadable() -> Problem {
    let detail = "The body must be a list of events that has \"reconnect\".";
    Problem::new(StatusCode::BAD_REQUEST, Reason::InvalidArgument, detail)
}

/// `/whep/{stream}/{session}/events/{secret}`: read by an `EventSource`, which cannot show a token;
/// the secret in its address stands for it.
pub(crate) async fn stream(
    State(whep): State<Arc<Whep>>,
    Path((stream, session, secret)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    let found = match find(&whep, &stream, &session) {
        Ok(found) => found,
        Err(problem) => return problem.into_response(),
    };
    match *request.method() {
        Method::OPTIONS => StatusCode::OK.into_response(),
        Method::DELETE if found.end_events(&secret) => StatusCode::OK.into_response(),
        Method::GET => match found.read_events(&secret) {
            Some(end) => read(found.reconnects(), end),
            None => no_session().into_response(),
        },
        Method::DELETE => no_session().into_response(),
        _ => not_allowed("GET, DELETE, OPTIONS"),
    }
}

/// Holds nothing of the session but what tells its end.
fn read(mut urls: watch::Receiver<Option<Arc<str>>>, end: CancellationToken) -> Response {
    // What was told before is told again: the client may have missed it.
    urls.mark_changed();
    let events = unfold((urls, end), |(mut urls, end)| async move {
        loop {
            tokio::select! {
                changed = urls.changed() => changed.ok()?,
                () = end.cancelled() => return None,
            }
            let url = urls.borrow_and_update().clone();
            if let Some(url) = url {
                let data = serde_json::json!({ "url": &*url }).to_string();
                let event = Event::default().event(RECONNECT).data(data);
                return Some((Ok::<_, Infallible>(event), (urls, end)));
            }
        }
    });
    let alive = KeepAlive::new().interval(HEARTBEAT);
    ([(header::CACHE_CONTROL, "no-store")], Sse::new(events).keep_alive(alive)).into_response()
}
