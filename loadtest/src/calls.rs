//! Unary gRPC calls as cheap as a load can make them: HTTP/2 by hand over a few connections, the
//! request's bytes made once. Not a client for anybody else: no retries, no balancing. Invariant: a
//! call counts as answered only when its trailers say OK.

use std::net::SocketAddr;

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Uri, header};
use prost::Message;
use tokio::net::TcpStream;

/// Receive window of one call's answer; the connection's is sixteen times that.
const WINDOW_BYTES: u32 = 1 << 20;
/// Bytes in front of a gRPC message: not compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Why a call was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The server answered with another status than OK.
    #[error("the server answered {code}: {message}")]
    Refused {
        /// gRPC code, as in the trailers.
        code: String,
        /// As in the trailers, percent encoded.
        message: String,
    },
    /// The connection or the stream broke.
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    /// The answer is no gRPC message.
    #[error("the answer is no message of gRPC: {0}")]
    NoMessage(&'static str),
}

/// A request that can be sent any number of times.
#[derive(Clone, Debug)]
pub struct Prepared {
    uri: Uri,
    body: Bytes,
}

impl Prepared {
    /// For `/package.Service/Method`.
    ///
    /// # Errors
    /// A path that makes no URI.
    pub fn new(server: SocketAddr, path: &str, message: &impl Message) -> anyhow::Result<Self> {
        let uri = format!("http://{server}{path}").parse().context("the call's URI")?;
        Ok(Self { uri, body: framed(message) })
    }

    /// The same method with another message.
    #[must_use]
    pub fn with(&self, message: &impl Message) -> Self {
        Self { uri: self.uri.clone(), body: framed(message) }
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut body = BytesMut::with_capacity(PREFIX_BYTES + length);
    body.put_u8(0);
    body.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    body.put(message.encode_to_vec().as_slice());
    body.freeze()
}

/// One connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Line {
    send: SendRequest<Bytes>,
}

impl Line {
    /// Connects, by HTTP/2 from the first byte. Its task ends with the connection.
    ///
    /// # Errors
    /// Nobody listens, or who does speaks no HTTP/2.
    pub async fn connect(server: SocketAddr) -> anyhow::Result<Self> {
        let tcp = TcpStream::connect(server).await.with_context(|| format!("{server}"))?;
        tcp.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES * 16);
        let (send, connection) = builder.handshake(tcp).await.context("HTTP/2")?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection of the load ended");
            }
        });
        Ok(Self { send })
    }

    /// Calls; gives the answer's message.
    ///
    /// # Errors
    /// Any status but OK, or a broken connection.
    pub async fn call(&self, call: &Prepared) -> Result<Bytes, CallError> {
        let mut send = self.send.clone().ready().await?;
        let mut request = http::Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = call.uri.clone();
        *request.version_mut() = http::Version::HTTP_2;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        let (response, mut stream) = send.send_request(request, false)?;
        stream.send_data(call.body.clone(), true)?;
        let response = response.await?;
        if response.headers().contains_key("grpc-status") {
            // Refused before there was a message.
            outcome(response.headers())?;
        }
        let mut body = response.into_body();
        let mut answer = BytesMut::new();
        while let Some(part) = body.data().await {
            let part = part?;
            body.flow_control().release_capacity(part.len())?;
            answer.extend_from_slice(&part);
        }
        let trailers = body.trailers().await?.ok_or(CallError::NoMessage("no trailers"))?;
        outcome(&trailers)?;
        let message = answer.freeze();
        if message.len() < PREFIX_BYTES {
            return Err(CallError::NoMessage("no message"));
        }
        Ok(message.slice(PREFIX_BYTES..))
    }
}

fn outcome(headers: &HeaderMap) -> Result<(), CallError> {
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    match text("grpc-status").as_str() {
        "0" => Ok(()),
        code => Err(CallError::Refused { code: code.to_owned(), message: text("grpc-message") }),
    }
}
