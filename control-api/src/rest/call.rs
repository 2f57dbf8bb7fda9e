//! gRPC calls within the process: bytes of a message in, bytes of the answer out, through the same
//! chain that calls from outside pass. Not JSON. Invariant: of the outer request only its
//! credentials and its deadline go on to the inner one.

use std::pin::Pin;

use axum::{Router, body::Body};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use fanlight_proto::reason::Reason;
use futures::{Stream, stream::unfold};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use tonic::{Code, Status};
use tower::ServiceExt as _;

use crate::{error::ControlError, layers::MAX_RESPONSE_BYTES};

/// Bytes in front of a message: a flag and its length.
const FRAME: usize = 5;
/// Headers that go on.
const PASSED: [&str; 2] = ["authorization", "grpc-timeout"];

/// Messages of an answer that is a stream.
pub(super) type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Calls one method.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    inner: Router,
    path: String,
}

impl Caller {
    pub(super) fn new(inner: Router, path: String) -> Self {
        Self { inner, path }
    }

    /// Another method on the same chain.
    pub(super) fn to(&self, rpc: &str) -> Self {
        Self::new(self.inner.clone(), format!("/fanlight.control.v1.{rpc}"))
    }

    /// The one message of the answer.
    pub(super) async fn unary(
        &self,
        headers: &HeaderMap,
        message: Vec<u8>,
    ) -> Result<Bytes, Status> {
        let body = self.begin(headers, message).await?;
        let read = Limited::new(body, MAX_RESPONSE_BYTES + FRAME).collect().await;
        let read = read.map_err(|e| broken(&format!("the answer cannot be read: {e}")))?;
        if let Some(status) = read.trailers().and_then(Status::from_header_map)
            && status.code() != Code::Ok
        {
            return Err(status);
        }
        let mut bytes = BytesMut::from(read.to_bytes().as_ref());
        take_message(&mut bytes).ok_or_else(|| broken("the answer is no message"))
    }

    /// The messages of the answer, until its end or a refusal.
    pub(super) async fn stream(
        &self,
        headers: &HeaderMap,
        message: Vec<u8>,
    ) -> Result<Messages, Status> {
        let body = self.begin(headers, message).await?;
        let stream = unfold((Some(body), BytesMut::new()), |(body, mut bytes)| async move {
            let mut body = body?;
            loop {
                if let Some(message) = take_message(&mut bytes) {
                    return Some((Ok(message), (Some(body), bytes)));
                }
                let frame = match body.frame().await? {
                    Ok(frame) => frame,
                    Err(e) => return Some((Err(broken(&e.to_string())), (None, bytes))),
                };
                match frame.into_data() {
                    Ok(data) => bytes.extend_from_slice(&data),
                    Err(frame) => {
                        let status = frame.trailers_ref().and_then(Status::from_header_map);
                        let status = status.filter(|s| s.code() != Code::Ok)?;
                        return Some((Err(status), (None, bytes)));
                    }
                }
            }
        });
        Ok(Box::pin(stream))
    }

    async fn begin(&self, headers: &HeaderMap, message: Vec<u8>) -> Result<Body, Status> {
        let mut framed = BytesMut::with_capacity(FRAME + message.len());
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).map_err(|_| broken("too long"))?);
        framed.extend_from_slice(&message);
        let mut request = Request::new(Body::from(framed.freeze()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::try_from(&self.path).map_err(|e| broken(&e.to_string()))?;
        let inner = request.headers_mut();
        inner.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        inner.insert(header::TE, HeaderValue::from_static("trailers"));
        for name in PASSED {
            if let Some(value) = headers.get(name) {
                inner.insert(name, value.clone());
            }
        }
        let response = self.inner.clone().oneshot(request).await;
        let response = response.unwrap_or_else(|never| match never {});
        match Status::from_header_map(response.headers()) {
            Some(status) if status.code() != Code::Ok => Err(status),
            _ => Ok(response.into_body()),
        }
    }
}

/// The first message, when it is whole.
fn take_message(bytes: &mut BytesMut) -> Option<Bytes> {
    let length = bytes.get(1..FRAME)?.try_into().ok().map(u32::from_be_bytes)?;
    let whole = FRAME.checked_add(usize::try_from(length).ok()?)?;
    if bytes.len() < whole {
        return None;
    }
    let mut message = bytes.split_to(whole);
    message.advance(FRAME);
    Some(message.freeze())
}

fn broken(why: &str) -> Status {
    ControlError::new(Reason::Internal, why).into()
}
