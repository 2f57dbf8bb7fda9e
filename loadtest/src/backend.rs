//! The platform's backend: creates streams and asks for join tokens by gRPC, as a customer would.
//! Not the load. Invariant: a token is used once.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use fanlight_proto::{
    control::v1::{
        CreateStreamRequest, CreateViewerRequest, CreateViewerResponse, GetStreamRequest, Stream,
        Viewer, stream_service_client::StreamServiceClient,
        viewer_service_client::ViewerServiceClient,
    },
    types::v1::{StreamState, ViewerGrants, ViewerRole},
};
use futures::{StreamExt as _, TryStreamExt as _};
use tonic::{Code, transport::Channel};

/// Time for a stream to be live.
const LIVE: Duration = Duration::from_secs(30);
/// Time for a viewer to be placed.
const PLACED: Duration = Duration::from_secs(60);
/// Between two looks or tries.
const AGAIN: Duration = Duration::from_millis(50);
/// Calls at once.
const CALLS: usize = 16;
/// How long a token may wait to be used: the longest that is given.
const TOKEN_LIFE_S: i64 = 600;

/// One invitation.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// Which of the load's streams, from zero.
    pub stream: usize,
    /// May send input.
    pub controller: bool,
    /// Where to post.
    pub url: String,
    /// The token.
    pub token: String,
    /// Other addresses for it, the better first.
    pub fallbacks: Vec<String>,
}

/// Client of the control API.
#[derive(Clone, Debug)]
pub struct Backend {
    channel: Channel,
}

impl Backend {
    /// Connects.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn connect(grpc: SocketAddr) -> anyhow::Result<Self> {
        let channel = Channel::from_shared(format!("http://{grpc}"))?
            .connect()
            .await
            .context("the control API's gRPC listener")?;
        Ok(Self { channel })
    }

    /// Creates a stream per device and waits until each is live.
    ///
    /// # Errors
    /// A refusal, or half a minute without a picture.
    pub async fn streams(&self, devices: &[String]) -> anyhow::Result<()> {
        let mut client = StreamServiceClient::new(self.channel.clone());
        let deadline = tokio::time::Instant::now() + LIVE;
        for device in devices {
            let stream = Stream { device: format!("devices/{device}"), ..Stream::default() };
            let request = CreateStreamRequest {
                stream: Some(stream),
                allow_pending: true,
                ..CreateStreamRequest::default()
            };
            // The device is known once the worker's link has said so.
            while let Err(status) = client.create_stream(request.clone()).await {
                if status.code() == Code::AlreadyExists {
                    break;
                }
                let wait = matches!(status.code(), Code::FailedPrecondition | Code::Unavailable)
                    || status.code() == Code::ResourceExhausted;
                anyhow::ensure!(
                    wait && tokio::time::Instant::now() < deadline,
                    "stream of {device}: {status}"
                );
                tokio::time::sleep(AGAIN).await;
            }
        }
        for device in devices {
            loop {
                let request = GetStreamRequest { name: format!("streams/{device}") };
                let stream = client.get_stream(request).await?.into_inner();
                if stream.state() == StreamState::Live {
                    break;
                }
                anyhow::ensure!(
                    tokio::time::Instant::now() < deadline,
                    "stream {device} is not live but {:?} {}",
                    stream.state(),
                    stream.reason
                );
                tokio::time::sleep(AGAIN).await;
            }
        }
        Ok(())
    }

    /// Tokens for `count` viewers, spread over the streams in turn. The first viewer of each
    /// stream may send input when `controllers` is set.
    ///
    /// # Errors
    /// The control API refuses one.
    pub async fn tickets(
        &self,
        devices: &[String],
        count: usize,
        controllers: bool,
    ) -> anyhow::Result<Vec<Ticket>> {
        let calls = (0..count).map(|n| {
            let stream = n % devices.len().max(1);
            let controller = controllers && n < devices.len();
            let name = devices.get(stream).cloned().unwrap_or_default();
            self.ticket(name, stream, controller)
        });
        futures::stream::iter(calls).buffered(CALLS).try_collect().await
    }

    /// One token.
    ///
    /// # Errors
    /// The control API refuses it.
    pub async fn ticket(
        &self,
        name: String,
        stream: usize,
        controller: bool,
    ) -> anyhow::Result<Ticket> {
        let request = invitation(&name, controller);
        let mut client = ViewerServiceClient::new(self.channel.clone());
        let deadline = tokio::time::Instant::now() + PLACED;
        let answer = loop {
            match client.create_viewer(request.clone()).await {
                Ok(answer) => break answer.into_inner(),
                // Placement takes what it placed since the last heartbeat for load: a crowd that
                // is invited at once has to wait for the router to say otherwise.
                Err(status)
                    if status.code() == Code::ResourceExhausted
                        && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(status) => return Err(status).context("CreateViewer"),
            }
        };
        Ok(ticket(stream, controller, answer))
    }

    /// One token, asked for once and for no longer than `limit`.
    ///
    /// # Errors
    /// The control API refuses it, is not there, or says nothing in time.
    pub async fn ticket_now(
        &self,
        name: &str,
        stream: usize,
        limit: Duration,
    ) -> anyhow::Result<Ticket> {
        let mut client = ViewerServiceClient::new(self.channel.clone());
        let call = client.create_viewer(invitation(name, false));
        let answer = tokio::time::timeout(limit, call).await.context("CreateViewer")??;
        Ok(ticket(stream, false, answer.into_inner()))
    }

    /// State of a stream, and the router that it is assigned to.
    ///
    /// # Errors
    /// The control API does not know it, is not there, or says nothing in time.
    pub async fn origin(
        &self,
        name: &str,
        limit: Duration,
    ) -> anyhow::Result<(StreamState, Option<String>)> {
        let mut client = StreamServiceClient::new(self.channel.clone());
        let call = client.get_stream(GetStreamRequest { name: format!("streams/{name}") });
        let stream = tokio::time::timeout(limit, call).await.context("GetStream")??.into_inner();
        let state = stream.state();
        let origin = stream.assignment.and_then(|a| a.origin).map(|node| node.node);
        Ok((state, origin.and_then(|node| Some(node.strip_prefix("nodes/")?.to_owned()))))
    }
}

fn invitation(name: &str, controller: bool) -> CreateViewerRequest {
    let role = if controller { ViewerRole::Controller } else { ViewerRole::Observer };
    let grants = ViewerGrants { role: role.into(), ..ViewerGrants::default() };
    CreateViewerRequest {
        parent: format!("streams/{name}"),
        viewer: Some(Viewer { grants: Some(grants), ..Viewer::default() }),
        join_ttl: Some(prost_types::Duration { seconds: TOKEN_LIFE_S, nanos: 0 }),
        ..CreateViewerRequest::default()
    }
}

fn ticket(stream: usize, controller: bool, answer: CreateViewerResponse) -> Ticket {
    let CreateViewerResponse { whep_url, join_token, fallback_whep_urls, .. } = answer;
    Ticket { stream, controller, url: whep_url, token: join_token, fallbacks: fallback_whep_urls }
}
