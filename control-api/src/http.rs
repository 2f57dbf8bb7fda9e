//! Plain HTTP on the backend-facing listener: the WHEP redirect and liveness. Not WHEP itself,
//! which is the router's, nor the operators' listener. Invariant: nothing of a request but its
//! stream id and its join token is read, and no answer depends on the token but for one thing: a
//! viewer that was watching on another router, and whose token's time is over, is given a ticket.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    response::Response,
    routing::{get, options},
};
use fanlight_ops::ticket;
use fanlight_proto::{
    id::{StreamId, ViewerName},
    reason::Reason,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::{
    clock::unix_seconds,
    metrics as m,
    store::{
        Store,
        rows::{GONE_RESTARTED, StreamRow, ViewerPhase},
    },
    token::TokenKey,
    want::ticket_key,
};

/// Longest base URL taken from a router's Hello; a longer one is as good as none.
const MAX_URL_BYTES: usize = 2048;

/// Longest token read, in bytes; ours have about 430.
const MAX_TOKEN_BYTES: usize = 4096;

/// What the redirect looks at.
type Seen = (Arc<dyn Store>, Arc<TokenKey>);

/// The routes.
pub fn routes(store: Arc<dyn Store>, token: Arc<TokenKey>) -> Router {
    Router::new()
        .route("/whep/{stream}", options(preflight).post(redirect))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state((store, token))
}

/// Browsers ask before a cross-origin POST.
async fn preflight() -> Response {
    let mut response = empty(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, OPTIONS"));
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("authorization, content-type"),
    );
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("3600"));
    response
}

/// Sends a WHEP client to the router that carries the stream.
async fn redirect(
    State((store, key)): State<Seen>,
    Path(stream): Path<String>,
    headers: HeaderMap,
) -> Response {
    match find(&*store, &key, &stream, bearer(&headers)).await {
        Ok(location) => {
            m::count_by(m::REDIRECTS, "result", "redirected");
            let mut response = empty(StatusCode::TEMPORARY_REDIRECT);
            response.headers_mut().insert(header::LOCATION, location);
            response
        }
        Err((status, reason, why)) => {
            m::count_by(m::REDIRECTS, "result", "refused");
            problem(status, reason, why)
        }
    }
}

type Refusal = (StatusCode, Reason, &'static str);

async fn find(
    store: &dyn Store,
    key: &TokenKey,
    stream: &str,
    token: Option<&str>,
) -> Result<HeaderValue, Refusal> {
    let unknown = (StatusCode::NOT_FOUND, Reason::StreamNotFound, "no such stream");
    let broken = (StatusCode::SERVICE_UNAVAILABLE, Reason::StoreUnavailable, "try again");
    let id = StreamId::parse(stream).map_err(|_| unknown)?;
    let row = store.stream(id).await.map_err(|_| broken)?.ok_or(unknown)?;
    let offline = (StatusCode::CONFLICT, Reason::DeviceOffline, "the stream has no router yet");
    let origin = row.accepted.as_ref().ok_or(offline)?;
    let node = store.node(origin.node.clone()).await.map_err(|_| broken)?.ok_or(offline)?;
    let url = whep_url(&node.addresses().whep_base_url, &row.id).ok_or(offline)?;
    let url = match token {
        Some(token) => ticketed(store, key, &row, token, url).await,
        None => url,
    };
    HeaderValue::from_str(&url).map_err(|_| offline)
}

/// A viewer's router died, or was left, after the time of its join token: nobody but we can vouch
/// that it was watching. It gets a ticket if its token is genuine and its row says that it is
/// connected to another router than the one it is sent to, or that its router was restarted under
/// it. A viewer that left or was kicked, and one that never joined, gets none, and so does one that
/// is where it belongs.
async fn ticketed(
    store: &dyn Store,
    key: &TokenKey,
    row: &StreamRow,
    token: &str,
    url: String,
) -> String {
    let now = unix_seconds();
    let claims = key.read(token).filter(|c| c.s == row.id && !c.multi && now > c.exp);
    let (Some(claims), Some(origin)) = (claims, &row.accepted) else {
        return url;
    };
    let name = ViewerName { stream: claims.s, viewer: claims.sub };
    let Ok(Some(viewer)) = store.viewer(name).await else {
        return url;
    };
    let was_watching = match viewer.phase {
        ViewerPhase::Connected => viewer.edge != origin.node,
        ViewerPhase::Gone => viewer.reason == GONE_RESTARTED,
        ViewerPhase::Invited => false,
    };
    if !was_watching || viewer.kicked || viewer.jti != claims.jti {
        return url;
    }
    m::count(m::TICKETS);
    let ticket = ticket::issue(&ticket_key(origin), row.id.as_str(), &claims.jti, now);
    ticket::on(&url, &ticket)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let fits = scheme.eq_ignore_ascii_case("bearer") && token.len() <= MAX_TOKEN_BYTES;
    fits.then_some(token.trim())
}

/// WHEP address of a stream on a router.
pub(crate) fn whep_url(base: &str, stream: &StreamId) -> Option<String> {
    let base = base.trim_end_matches('/');
    let fits = !base.is_empty() && base.len() <= MAX_URL_BYTES;
    // Ids are made of characters that need no escaping in a path.
    fits.then(|| format!("{base}/whep/{stream}"))
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    allow_any_origin(&mut response);
    response
}

fn problem(status: StatusCode, reason: Reason, detail: &str) -> Response {
    let body = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
        "detail": detail,
        "reason": reason.as_str(),
    });
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status != StatusCode::NOT_FOUND {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    allow_any_origin(&mut response);
    response
}

/// The redirect holds no secret and needs a token behind it, so any page may follow it.
fn allow_any_origin(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("location, retry-after"),
    );
}
