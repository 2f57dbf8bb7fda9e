//! What every backend call passes through, as one chain: see [`wrap`]. Not the handlers, nor the
//! limits of connections (`incoming.rs`). Invariant: a call that is refused here is answered as a
//! gRPC status with a reason, never by a broken connection.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    body::Body,
    error_handling::HandleErrorLayer,
    extract::{Request, State},
    middleware::{Next, from_fn, from_fn_with_state},
    response::Response,
};
use fanlight_proto::{FILE_DESCRIPTOR_SET, reason::Reason};
use http::{HeaderMap, HeaderValue, header};
use prost::Message as _;
use tokio::time::Instant;
use tonic::Status;
use tower::{BoxError, ServiceBuilder, limit::GlobalConcurrencyLimitLayer};
use tracing::Instrument as _;

use crate::{
    auth::{Gate, Principal},
    error::ControlError,
    limit::Rates,
    metrics as m,
};

/// Deadline of a call that brings none.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
/// A longer deadline is refused: the caller would hold a slot for work that takes milliseconds.
pub const MAX_DEADLINE: Duration = Duration::from_secs(30);
/// Largest request. The largest honest one (a stream with 64 labels) is under 20 KB.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// Largest answer: a page of 1,000 streams with labels stays below it.
pub const MAX_RESPONSE_BYTES: usize = 16 * 1024 * 1024;

/// When the caller stops waiting; handlers read it from the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// Puts the chain around the gRPC services, outermost first.
pub fn wrap(
    services: tonic::service::Routes,
    max_calls: usize,
    gate: Arc<Gate>,
    rates: Arc<Rates>,
) -> axum::Router {
    let chain = ServiceBuilder::new()
        // One span, one counter and one timing per call, whatever happens below.
        .layer(from_fn(observe))
        // A call that the two layers below refuse is answered with a status.
        .layer(HandleErrorLayer::new(shed))
        // Too many in flight: refuse at once rather than queue.
        .load_shed()
        .layer(GlobalConcurrencyLimitLayer::new(max_calls))
        // Who calls, and whether it may call this.
        .layer(from_fn_with_state(gate, identify))
        // How often.
        .layer(from_fn_with_state(rates, limit_rate))
        // How long it may take.
        .layer(from_fn(limit_time));
    // Message sizes are limited where messages are decoded: `service::sized!`.
    services.into_axum_router().layer(chain)
}

/// Methods of our own services, `/package.Service/Method`. Bounds the label values that a caller
/// can make us keep. True: it answers a stream.
static METHODS: LazyLock<BTreeMap<String, bool>> = LazyLock::new(|| {
    let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut methods = BTreeMap::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let (package, service, name) = (file.package(), service.name(), method.name());
                let path = format!("/{package}.{service}/{name}");
                methods.insert(path, method.server_streaming());
            }
        }
    }
    methods
});

fn method_label(path: &str) -> &'static str {
    let known = METHODS.get_key_value(path).and_then(|(known, _)| known.rsplit('/').next());
    known.unwrap_or("other")
}

async fn observe(request: Request, next: Next) -> Response {
    let method = method_label(request.uri().path());
    let span = tracing::debug_span!("call", method);
    let begun = Instant::now();
    let response = next.run(request).instrument(span).await;
    // A successful answer says so in its trailers; a refusal has the status in its headers.
    let code = Status::from_header_map(response.headers()).map_or(tonic::Code::Ok, |s| s.code());
    let elapsed = begun.elapsed();
    metrics::counter!(m::CALLS, "method" => method, "code" => code_word(code)).increment(1);
    metrics::histogram!(m::CALL_SECONDS, "method" => method).record(elapsed.as_secs_f64());
    tracing::debug!(method, code = code_word(code), us = elapsed.as_micros(), "answered");
    response
}

async fn shed(_why: BoxError) -> Response {
    m::count(m::SHED);
    let why = "too many calls in flight";
    refuse(ControlError::new(Reason::Overloaded, why).retry_in(Duration::from_millis(500)))
}

async fn identify(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    match gate.admit(request.uri().path(), request.headers()) {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(refusal) => refuse(refusal),
    }
}

async fn limit_rate(State(rates): State<Arc<Rates>>, request: Request, next: Next) -> Response {
    let taken = request.extensions().get::<Principal>().map_or(Ok(()), |who| rates.take(who));
    match taken {
        Ok(()) => next.run(request).await,
        Err(refusal) => refuse(refusal),
    }
}

async fn limit_time(mut request: Request, next: Next) -> Response {
    // Health, reflection and what answers a stream may be watched for as long as the caller likes.
    if METHODS.get(request.uri().path()).is_none_or(|streams| *streams) {
        return next.run(request).await;
    }
    let limit = match deadline_of(request.headers()) {
        Ok(limit) => limit,
        Err(refusal) => {
            m::count_by(m::DEADLINES, "what", "refused");
            return refuse(refusal);
        }
    };
    let at = Instant::now() + limit;
    request.extensions_mut().insert(Deadline(at));
    match tokio::time::timeout_at(at, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            m::count_by(m::DEADLINES, "what", "passed");
            let why = format!("no answer within {limit:?}");
            refuse(ControlError::new(Reason::DeadlineExceeded, why))
        }
    }
}

/// The caller's `grpc-timeout`: up to eight digits and a unit.
fn deadline_of(headers: &HeaderMap) -> Result<Duration, ControlError> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(DEFAULT_DEADLINE);
    };
    let bad = || ControlError::field("grpc-timeout", "is not a gRPC timeout");
    let text = value.to_str().map_err(|_| bad())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(bad)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let n: u64 = digits.parse().map_err(|_| bad())?;
    let limit = match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return Err(bad()),
    };
    if limit > MAX_DEADLINE {
        let why = format!("{limit:?} is longer than the {MAX_DEADLINE:?} allowed");
        return Err(ControlError::field("grpc-timeout", why));
    }
    Ok(limit)
}

fn refuse(error: ControlError) -> Response {
    let retry = error.retry;
    let mut response = Status::from(error).into_http::<Body>();
    if let Some(after) = retry {
        // For proxies and plain HTTP clients, beside RetryInfo; whole seconds, rounded up.
        let seconds =
            HeaderValue::from(u32::try_from(after.as_millis().div_ceil(1000)).unwrap_or(u32::MAX));
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}

fn code_word(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn with(timeout: &'static str) -> Result<Duration, ControlError> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", HeaderValue::from_bytes(timeout.as_bytes()).unwrap());
        deadline_of(&headers)
    }

    #[test]
    fn deadlines_are_read_and_bounded() {
        assert_eq!(deadline_of(&HeaderMap::new()).unwrap(), DEFAULT_DEADLINE);
        assert_eq!(with("250m").unwrap(), Duration::from_millis(250));
        assert_eq!(with("30S").unwrap(), MAX_DEADLINE);
        for bad in ["31S", "1H", "99999999H", "", "S", "5", "5x", "-1S", "123456789m", "é"] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_our_methods_become_labels() {
        assert_eq!(method_label("/fanlight.control.v1.StreamService/GetStream"), "GetStream");
        assert_eq!(method_label("/fanlight.control.v1.StreamService/Nope"), "other");
        assert_eq!(method_label("/x"), "other");
    }
}
