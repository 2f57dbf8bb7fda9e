//! The viewers' door: WHEP over HTTP (draft-ietf-wish-whep). Translates requests into joins and
//! leaves, and refusals into problem details (RFC 9457). Not SDP and not TLS, which is ended in
//! front. Invariants: nothing is read of a body before token and type are in order; every answer
//! carries the CORS headers that a browser needs; no text of a library reaches a client.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Path, Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::any,
};
use fanlight_ops::ticket;
use fanlight_proto::{
    claims::{JoinClaims, Role},
    id::StreamId,
    reason::Reason,
};
use fanlight_router_core::{
    Answer, IceCredentials, JoinError, JoinRequest, LeaveReason, ParsedOffer, Role as CoreRole,
    SessionId, parse_offer,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use crate::{
    config::LimitsConfig,
    drain::Draining,
    events,
    metrics::NodeMetrics,
    problem::Problem,
    restart,
    sessions::{OpenError, Session, Sessions},
    shard::Command,
    stream::{Moved, SeatError, Stream},
    streams::Streams,
    token::{TokenError, TokenHash, Tokens},
};

/// Longest wait for a shard's answer to a join.
const JOIN_DEADLINE: Duration = Duration::from_secs(2);
/// Longest wait for the body of a POST.
const BODY_DEADLINE: Duration = Duration::from_secs(5);
/// Offers up to this size are read at once, which takes less than handing them to another thread:
/// browsers' have 3 to 9 kB.
const PARSED_AT_ONCE_BYTES_MAX: usize = 12 * 1024;
const SDP: &str = "application/sdp";
const SDP_FRAGMENT: &str = "application/trickle-ice-sdpfrag";
/// What a browser's script may read and send across origins, and for how long (in seconds) it may
/// remember that. `*` as origin is right because nothing here rests on cookies.
const CORS: [(&str, &str); 5] = [
    ("access-control-allow-origin", "*"),
    ("access-control-allow-methods", "POST, GET, HEAD, OPTIONS, PATCH, DELETE"),
    ("access-control-allow-headers", "Authorization, Content-Type, If-Match"),
    ("access-control-expose-headers", "Location, ETag, Link, Retry-After"),
    ("access-control-max-age", "86400"),
];

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct Whep {
    pub(crate) streams: Arc<Streams>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) metrics: NodeMetrics,
    /// No new joins: the router is being stopped or emptied.
    pub(crate) draining: Arc<Draining>,
    parsing: Arc<Semaphore>,
    rate: Mutex<JoinRate>,
    offer_bytes_max: usize,
}

impl Whep {
    pub(crate) fn new(
        streams: Arc<Streams>,
        sessions: Arc<Sessions>,
        tokens: Arc<Tokens>,
        metrics: NodeMetrics,
        draining: Arc<Draining>,
        limits: &LimitsConfig,
    ) -> Self {
        Self {
            streams,
            sessions,
            tokens,
            metrics,
            draining,
            parsing: Arc::new(Semaphore::new(limits.joins_parsing_max)),
            rate: Mutex::new(JoinRate::new(limits.joins_per_second_max, Instant::now())),
            offer_bytes_max: limits.offer_bytes_max,
        }
    }
}

/// The HTTP routes.
pub(crate) fn routes(whep: Arc<Whep>) -> Router {
    Router::new()
        .route("/whep/{stream}", any(endpoint))
        .route("/whep/{stream}/{session}", any(session))
        .route("/whep/{stream}/{session}/events", any(events::subscribe))
        .route("/whep/{stream}/{session}/events/{secret}", any(events::stream))
        .fallback(|| async {
            Problem::new(
                StatusCode::NOT_FOUND,
                Reason::StreamNotFound,
                "There is nothing at this path.",
            )
        })
        .layer(from_fn_with_state(Arc::clone(&whep), each_answer))
        .with_state(whep)
}

/// CORS headers and the request counter, on every answer.
async fn each_answer(State(whep): State<Arc<Whep>>, request: Request, next: Next) -> Response {
    let method = method_word(request.method());
    let mut response = next.run(request).await;
    for (name, value) in CORS {
        let name = HeaderName::from_static(name);
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    whep.metrics.whep(method, response.status().as_u16());
    response
}

fn method_word(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "POST",
        "GET" => "GET",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

/// `/whep/{stream}`
async fn endpoint(
    State(whep): State<Arc<Whep>>,
    Path(stream): Path<String>,
    request: Request,
) -> Response {
    match *request.method() {
        Method::POST => {
            let started = Instant::now();
            match join(&whep, &stream, request).await {
                Ok(joined) => {
                    whep.metrics.join_seconds().record(started.elapsed());
                    joined
                }
                Err(problem) => {
                    let name = "fanlight_router_joins_denied_total";
                    whep.metrics.count_reason(name, problem.reason().as_str());
                    problem.into_response()
                }
            }
        }
        // A preflight carries no token, so it is answered for any stream.
        Method::OPTIONS => (StatusCode::OK, [("accept-post", SDP)]).into_response(),
        // The same headers for both, so that a client can find out that this is WHEP.
        Method::GET | Method::HEAD => {
            (StatusCode::OK, [(header::CONTENT_TYPE, SDP), (header::CONTENT_LENGTH, "0")])
                .into_response()
        }
        _ => not_allowed("POST, GET, HEAD, OPTIONS"),
    }
}

/// `/whep/{stream}/{session}`
async fn session(
    State(whep): State<Arc<Whep>>,
    Path((stream, session)): Path<(String, String)>,
    request: Request,
) -> Response {
    let done = match *request.method() {
        Method::OPTIONS => return StatusCode::OK.into_response(),
        Method::DELETE => leave(&whep, &stream, &session, request.headers()),
        Method::PATCH => patch(&whep, &stream, &session, request).await,
        Method::GET | Method::HEAD => find(&whep, &stream, &session)
            .map(|_| (StatusCode::OK, [(header::CONTENT_LENGTH, "0")]).into_response()),
        _ => return not_allowed("DELETE, PATCH, GET, HEAD, OPTIONS"),
    };
    done.unwrap_or_else(IntoResponse::into_response)
}

pub(crate) fn not_allowed(allow: &'static str) -> Response {
    let problem = Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        Reason::Unsupported,
        "This resource does not know that method.",
    );
    problem.header(header::ALLOW, allow).into_response()
}

// ---- POST ----

async fn join(whep: &Whep, stream: &str, request: Request) -> Result<Response, Problem> {
    let known = StreamId::parse(stream).ok().and_then(|name| whep.streams.get(&name));
    if let Some(moved) = known.and_then(|stream| stream.moved()) {
        return Err(elsewhere(&moved));
    }
    if whep.draining.is_on() {
        return Err(Problem::busy(Reason::Draining, "This router is being stopped.", 1));
    }
    let (parts, body) = request.into_parts();
    let (claims, token) = authorize(whep, stream, &parts)?;
    require_type(&parts.headers, SDP)?;
    let stream = whep.streams.get(&claims.s).ok_or_else(unknown_stream)?;
    if !stream.is_live() {
        return Err(offline(&stream));
    }
    if !whep.rate.lock().take(Instant::now()) {
        return Err(Problem::busy(Reason::Overloaded, "Too many joins at once.", 1));
    }
    let offer = read_offer(whep, body).await?;
    let opened = whep.sessions.open(&stream, &claims, token);
    let opened = opened.map_err(|e| open_problem(&e, &stream))?;
    opened.ice.lock().remote_ufrag = offer.ice_ufrag().to_owned();
    // From here on the session is in the tables; the guard takes it out again unless the shard
    // has it, also when the client hangs up and this future is dropped.
    let mut guard = Unjoined { whep, id: Some(opened.id) };
    whep.metrics.count("fanlight_router_sessions_opened_total");
    // Whoever was barred while the body arrived was not among the sessions that were ended then.
    if whep.tokens.is_barred(&opened.token_id, stream.name(), opened.subject.as_str()) {
        return Err(token_problem(TokenError::Barred));
    }
    // Nor was one that came as the stream moved among those that were sent after it.
    if let Some(moved) = stream.moved() {
        return Err(elsewhere(&moved));
    }
    let answer = ask_shard(whep, &stream, &opened, &claims, offer, user_agent(&parts.headers));
    let answer = answer.await?;
    guard.id = None;
    tracing::info!(stream = %stream.name(), viewer = %opened.viewer, shard = opened.shard, "joined");
    Ok(created(&stream, &opened, answer))
}

/// Takes a session out of the tables when its join did not succeed.
struct Unjoined<'a> {
    whep: &'a Whep,
    id: Option<SessionId>,
}

impl Drop for Unjoined<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.id.take().and_then(|id| self.whep.sessions.close(id)) {
            // If the shard took the join all the same, this ends it there.
            self.whep.sessions.leave(&session, LeaveReason::Deleted);
            let name = "fanlight_router_sessions_closed_total";
            self.whep.metrics.count_reason(name, "JOIN_FAILED");
        }
    }
}

async fn read_offer(whep: &Whep, body: Body) -> Result<ParsedOffer, Problem> {
    let max = whep.offer_bytes_max;
    let body = tokio::time::timeout(BODY_DEADLINE, to_bytes(body, max))
        .await
        .map_err(|_| bad_sdp("The offer did not arrive in time."))?
        .map_err(|_| too_large(max))?;
    let sdp = String::from_utf8(body.into()).map_err(|_| bad_sdp("The offer is not UTF-8."))?;
    if sdp.len() <= PARSED_AT_ONCE_BYTES_MAX {
        return parse_offer(&sdp).map_err(|e| offer_problem(&e));
    }
    let permit = Arc::clone(&whep.parsing)
        .try_acquire_owned()
        .map_err(|_| Problem::busy(Reason::Overloaded, "Too many joins at once.", 1))?;
    // One made to be slow takes milliseconds: off the runtime's threads, and off the shard's.
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        parse_offer(&sdp)
    })
    .await
    .map_err(|_| internal())?
    .map_err(|e| offer_problem(&e))
}

async fn ask_shard(
    whep: &Whep,
    stream: &Stream,
    session: &Session,
    claims: &JoinClaims,
    offer: ParsedOffer,
    user_agent: Option<Arc<str>>,
) -> Result<Answer, Problem> {
    let request = JoinRequest {
        id: session.id,
        stream: stream.key(),
        offer,
        viewer: session.viewer.as_str().into(),
        role: core_role(claims.r),
        max_session: (claims.ms > 0).then(|| Duration::from_secs(claims.ms)),
        user_agent,
    };
    let busy = || Problem::busy(Reason::Overloaded, "The router is overloaded.", 1);
    let (reply, answer) = oneshot::channel();
    let shard = whep.sessions.shard(session).ok_or_else(internal)?;
    shard.join(Command::Join { request: Box::new(request), reply }).map_err(|_| busy())?;
    match tokio::time::timeout(JOIN_DEADLINE, answer).await {
        Ok(Ok(joined)) => joined.map_err(|e| join_problem(&e, stream)),
        Ok(Err(_)) => Err(internal()),
        Err(_) => Err(busy()),
    }
}

fn created(stream: &Stream, session: &Session, answer: Answer) -> Response {
    let location = format!("/whep/{}/{}", stream.name(), session.url_id);
    let events = events::link(&location);
    (
        StatusCode::CREATED,
        [
            (header::CONTENT_TYPE, SDP.to_owned()),
            (header::LOCATION, location),
            (header::ETAG, session.ice.lock().etag.clone()),
            (header::CACHE_CONTROL, "no-store".to_owned()),
            (header::LINK, events),
        ],
        answer.sdp,
    )
        .into_response()
}

// ---- DELETE, PATCH ----

fn leave(
    whep: &Whep,
    stream: &str,
    session: &str,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let session = authorized_session(whep, stream, session, headers)?;
    whep.sessions.leave(&session, LeaveReason::Deleted);
    Ok(StatusCode::OK.into_response())
}

/// Trickled candidates are taken and not needed: the answer's candidates are complete, and a lite
/// agent learns its peer's from checks. New credentials restart ICE.
async fn patch(
    whep: &Whep,
    stream: &str,
    session: &str,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let session = authorized_session(whep, stream, session, &parts.headers)?;
    require_type(&parts.headers, SDP_FRAGMENT)?;
    check_tag(&session, &parts.headers)?;
    let body = tokio::time::timeout(BODY_DEADLINE, to_bytes(body, restart::FRAGMENT_BYTES_MAX))
        .await
        .map_err(|_| bad_sdp("The fragment did not arrive in time."))?
        .map_err(|_| too_large(restart::FRAGMENT_BYTES_MAX))?;
    let text = std::str::from_utf8(&body).map_err(|_| bad_sdp("The fragment is not UTF-8."))?;
    let named = restart::credentials(text).map_err(|e| bad_sdp(e.to_string()))?;
    let Some(remote) = named.filter(|c| c.ufrag != session.ice.lock().remote_ufrag) else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    restart_ice(whep, &session, remote).await
}

async fn restart_ice(
    whep: &Whep,
    session: &Session,
    remote: IceCredentials,
) -> Result<Response, Problem> {
    let remote_ufrag = remote.ufrag.clone();
    let busy = || Problem::busy(Reason::Overloaded, "The router is overloaded.", 1);
    let (reply, answer) = oneshot::channel();
    let shard = whep.sessions.shard(session).ok_or_else(internal)?;
    let command = Command::RestartIce { session: session.id, remote, reply };
    shard.join(command).map_err(|_| busy())?;
    let local = tokio::time::timeout(JOIN_DEADLINE, answer)
        .await
        .map_err(|_| busy())?
        .map_err(|_| internal())?
        .ok_or_else(no_session)?;
    let etag = session.ice.lock().restarted(remote_ufrag);
    let kind = SDP_FRAGMENT.to_owned();
    let headers = [(header::CONTENT_TYPE, kind), (header::ETAG, etag)];
    Ok((StatusCode::OK, headers, restart::fragment(&local)).into_response())
}

fn check_tag(session: &Session, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(tag) = headers.get(header::IF_MATCH) else {
        return Err(Problem::new(
            StatusCode::PRECONDITION_REQUIRED,
            Reason::InvalidArgument,
            "A PATCH needs If-Match.",
        ));
    };
    // Examples of the draft send the asterisk in quotes.
    let tag = tag.as_bytes();
    if tag != b"*" && tag != b"\"*\"" && tag != session.ice.lock().etag.as_bytes() {
        return Err(Problem::new(
            StatusCode::PRECONDITION_FAILED,
            Reason::EtagMismatch,
            "If-Match is not the session's entity tag.",
        ));
    }
    Ok(())
}

pub(crate) fn find(whep: &Whep, stream: &str, session: &str) -> Result<Arc<Session>, Problem> {
    let found = whep.sessions.by_url(session);
    found.filter(|s| s.stream.name().as_str() == stream).ok_or_else(no_session)
}

pub(crate) fn no_session() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        Reason::SessionNotFound,
        "There is no such session, or it has ended.",
    )
}

/// A session's own token is good for it for as long as the session lasts.
pub(crate) fn authorized_session(
    whep: &Whep,
    stream: &str,
    session: &str,
    headers: &HeaderMap,
) -> Result<Arc<Session>, Problem> {
    let token = bearer(headers).ok_or_else(|| token_problem(TokenError::Missing))?;
    let name = StreamId::parse(stream).map_err(|_| unknown_stream())?;
    let found = find(whep, stream, session);
    // The token that opened the session was checked then: its signature is not checked again.
    if let Ok(session) = &found
        && session.was_opened_by(TokenHash::of(token))
    {
        let subject = session.subject.as_str();
        if whep.tokens.is_barred(&session.token_id, session.stream.name(), subject) {
            return Err(token_problem(TokenError::Barred));
        }
        return found;
    }
    let claims = whep.tokens.verify_session(token, &name).map_err(token_problem)?;
    let session = found?;
    if claims.jti != session.token_id {
        return Err(token_problem(TokenError::Foreign));
    }
    Ok(session)
}

// ---- checks ----

fn authorize(
    whep: &Whep,
    stream: &str,
    parts: &http::request::Parts,
) -> Result<(JoinClaims, TokenHash), Problem> {
    let token = bearer(&parts.headers).ok_or_else(|| token_problem(TokenError::Missing))?;
    let name = StreamId::parse(stream).map_err(|_| unknown_stream())?;
    let claims = match whep.tokens.verify_join(token, &name) {
        // Its holder was watching when the stream moved here: another router says so, or the
        // control API. Everything else about the token is checked as ever.
        Err(TokenError::Expired) => {
            let claims = whep.tokens.verify_session(token, &name).map_err(token_problem)?;
            if !has_ticket(whep, &name, &claims, parts.uri.query()) {
                return Err(token_problem(TokenError::Expired));
            }
            whep.metrics.count("fanlight_router_tickets_taken_total");
            claims
        }
        verified => verified.map_err(token_problem)?,
    };
    Ok((claims, TokenHash::of(token)))
}

fn has_ticket(whep: &Whep, name: &StreamId, claims: &JoinClaims, query: Option<&str>) -> bool {
    let pairs = query.unwrap_or("").split('&').filter_map(|pair| pair.split_once('='));
    let given = pairs.into_iter().find(|(key, _)| *key == ticket::PARAMETER);
    let (Some((_, given)), Some(stream)) = (given, whep.streams.get(name)) else { return false };
    let key = stream.ticket_key();
    ticket::is_good(&key, name.as_str(), &claims.jti, given, crate::token::unix_s())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

pub(crate) fn require_type(headers: &HeaderMap, wanted: &'static str) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let essence = given.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    let problem = Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Reason::UnsupportedMediaType,
        format!("The body's type must be {wanted}."),
    );
    Err(if wanted == SDP {
        problem.header(HeaderName::from_static("accept-post"), SDP)
    } else {
        problem
    })
}

fn user_agent(headers: &HeaderMap) -> Option<Arc<str>> {
    let value = headers.get(header::USER_AGENT)?.to_str().ok()?;
    Some(value.chars().take(256).collect::<String>().into())
}

fn core_role(role: Role) -> CoreRole {
    match role {
        Role::Observer => CoreRole::Observer,
        Role::Controller => CoreRole::Controller,
    }
}

// ---- problems ----

fn token_problem(e: TokenError) -> Problem {
    let status = match e {
        TokenError::Missing | TokenError::Invalid | TokenError::Expired => StatusCode::UNAUTHORIZED,
        TokenError::Foreign | TokenError::Barred => StatusCode::FORBIDDEN,
    };
    let problem = Problem::new(status, e.reason(), format!("Refused: {e}."));
    match e {
        TokenError::Missing => problem.header(header::WWW_AUTHENTICATE, "Bearer"),
        TokenError::Invalid | TokenError::Expired => {
            problem.header(header::WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"")
        }
        TokenError::Foreign | TokenError::Barred => problem,
    }
}

fn unknown_stream() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        Reason::StreamNotFound,
        "This router does not serve that stream.",
    )
}

fn offline(stream: &Stream) -> Problem {
    let problem = Problem::new(
        StatusCode::CONFLICT,
        Reason::DeviceOffline,
        "The device sends no picture at present.",
    );
    problem.header(header::RETRY_AFTER, if stream.is_new() { "0" } else { "1" })
}

/// 307: the stream is live on another router, and so is what the request asks for.
fn elsewhere(moved: &Moved) -> Problem {
    let detail = "The stream is on another router now.";
    Problem::new(StatusCode::TEMPORARY_REDIRECT, Reason::OriginDraining, detail)
        .location(&moved.url)
}

fn offer_problem(e: &JoinError) -> Problem {
    match e {
        JoinError::OfferTooLarge { max, .. } => too_large(*max),
        JoinError::BadOffer(why) => bad_sdp(format!("The offer cannot be answered: {why}.")),
        JoinError::NoCommonCodec { offered, needed } => Problem::new(
            StatusCode::NOT_ACCEPTABLE,
            Reason::NoCommonCodec,
            "The offer has no codec that decodes this stream.",
        )
        .with("offered", offered.clone())
        .with("needed", needed.clone()),
        _ => internal(),
    }
}

pub(crate) fn bad_sdp(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, Reason::BadSdp, detail)
}

fn too_large(max: usize) -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        Reason::TooLarge,
        format!("An offer may have {max} bytes."),
    )
}

fn internal() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, Reason::Internal, "The router failed.")
}

fn open_problem(e: &OpenError, stream: &Stream) -> Problem {
    match e {
        OpenError::Full => Problem::busy(Reason::NodeAtCapacity, "The router is full.", 5),
        OpenError::Seat(SeatError::Full) => {
            Problem::busy(Reason::StreamLimit, "The stream has as many viewers as it may.", 5)
        }
        OpenError::Seat(SeatError::Offline) => offline(stream),
        OpenError::Seat(SeatError::Gone) => unknown_stream(),
        OpenError::Seat(SeatError::StaleEpoch) => Problem::new(
            StatusCode::CONFLICT,
            Reason::StaleEpoch,
            "The stream has moved; this router has not heard of it yet.",
        )
        .header(header::RETRY_AFTER, "1"),
    }
}

fn join_problem(e: &JoinError, stream: &Stream) -> Problem {
    match e {
        JoinError::OfferTooLarge { .. }
        | JoinError::BadOffer(_)
        | JoinError::NoCommonCodec { .. } => offer_problem(e),
        JoinError::UnknownStream => unknown_stream(),
        JoinError::DeviceOffline => offline(stream),
        JoinError::Full => Problem::busy(Reason::NodeAtCapacity, "The router is full.", 5),
        // A later version of the core may refuse for reasons not known here.
        JoinError::DuplicateSession | JoinError::Internal | _ => internal(),
    }
}

/// A token bucket that holds one second's joins.
#[derive(Debug)]
struct JoinRate {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl JoinRate {
    fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, tokens: per_second, at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + gained).min(self.per_second);
        self.at = now;
        let ok = self.tokens >= 1.0;
        if ok {
            self.tokens -= 1.0;
        }
        ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_are_limited_per_second_and_recover() {
        let start = Instant::now();
        let mut rate = JoinRate::new(10, start);
        assert_eq!((0..20).filter(|_| rate.take(start)).count(), 10);
        let later = start + Duration::from_millis(500);
        assert_eq!((0..20).filter(|_| rate.take(later)).count(), 5);
    }

    #[test]
    fn the_bearer_token_is_read_whatever_the_case_of_the_scheme() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers), None);
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("bEaReR  abc "));
        assert_eq!(bearer(&headers), Some("abc"));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic abc"));
        assert_eq!(bearer(&headers), None);
    }
}
