//! Refusals as problem documents (RFC 9457). Not the reasons themselves. Invariant: a document says
//! the same machine word as the gRPC status it was made of, and `Retry-After` stands exactly where
//! trying again can help.

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The HTTP status of a gRPC code.
pub fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => StatusCode::CONFLICT,
        // A position that is no longer kept: list again.
        Code::OutOfRange => StatusCode::GONE,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// A refusal as JSON.
pub fn document(status: &Status) -> Value {
    let details = status.get_error_details();
    let http = http_status(status.code());
    let mut out = json!({
        "type": "about:blank",
        "title": http.canonical_reason().unwrap_or_default(),
        "status": http.as_u16(),
        "detail": status.message(),
    });
    if let Some(info) = details.error_info() {
        out["reason"] = info.reason.clone().into();
    }
    if let Some(about) = details.resource_info() {
        out["resource"] = about.resource_name.clone().into();
    }
    if let Some(bad) = details.bad_request() {
        let fields = bad.field_violations.iter();
        out["fields"] = fields.map(|v| json!({ "field": v.field, "why": v.description })).collect();
    }
    if let Some(after) = details.retry_info().and_then(|r| r.retry_delay) {
        out["retry_after_s"] = after.as_secs_f64().into();
    }
    out
}

/// A refusal as a response.
pub fn problem(status: &Status) -> Response {
    let details = status.get_error_details();
    let mut response = Response::new(Body::from(document(status).to_string()));
    *response.status_mut() = http_status(status.code());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status.code() == Code::Unauthenticated {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(after) = details.retry_info().and_then(|r| r.retry_delay) {
        let seconds = u32::try_from(after.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
