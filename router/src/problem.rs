//! Problem details (RFC 9457): the body of every refusal over HTTP. Not the decision. Invariant:
//! `reason` is a word of the API's closed list, and `detail` is written here, never by a library.

use axum::response::{IntoResponse, Response};
use fanlight_proto::reason::Reason;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Map, Value};

/// One refusal. Boxed, because it is the rare half of many results.
#[derive(Debug)]
pub(crate) struct Problem(Box<Inner>);

#[derive(Debug)]
struct Inner {
    status: StatusCode,
    reason: Reason,
    detail: String,
    headers: HeaderMap,
    more: Map<String, Value>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, reason: Reason, detail: impl Into<String>) -> Self {
        let (headers, more) = (HeaderMap::new(), Map::new());
        Self(Box::new(Inner { status, reason, detail: detail.into(), headers, more }))
    }

    /// 503: the same request may succeed elsewhere, or here after `retry_after_s`.
    pub(crate) fn busy(reason: Reason, detail: &'static str, retry_after_s: u64) -> Self {
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, reason, detail);
        problem.0.headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
        problem
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.0.headers.insert(name, HeaderValue::from_static(value));
        self
    }

    /// Says where else to ask. An address that is no header value is left out.
    pub(crate) fn location(mut self, url: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(url) {
            self.0.headers.insert(header::LOCATION, value);
        }
        self
    }

    /// Adds a member.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.more.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn reason(&self) -> Reason {
        self.0.reason
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Inner { status, reason, detail, headers, more: mut body } = *self.0;
        let word = reason.as_str();
        body.insert("type".into(), format!("urn:fanlight:problem:{word}").into());
        body.insert("title".into(), status.canonical_reason().unwrap_or("Error").into());
        body.insert("status".into(), status.as_u16().into());
        body.insert("reason".into(), word.into());
        body.insert("detail".into(), detail.into());
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (status, kind, Value::Object(body).to_string()).into_response();
        response.headers_mut().extend(headers);
        response
    }
}
