//! A WHEP proxy for browsers: passes requests on and puts a relay path into the candidates of each
//! answer. Not a reverse proxy for production. Invariant: only the answer's candidates change.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{HeaderMap, HeaderName, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Impairment, PathCounts, Relay};
use crate::viewer::with_candidates;

/// Largest body either way.
const BODY_BYTES: usize = 256 << 10;
/// Headers that belong to one connection and not to the request.
const HOP_BY_HOP: [HeaderName; 4] =
    [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// What a proxy needs to know.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// `http://host:port` of the router's WHEP listener.
    pub upstream: String,
    /// The relay that answers lead to.
    pub relay: Relay,
}

/// A bound proxy.
#[derive(Debug)]
pub struct Proxy {
    listener: tokio::net::TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    relay: Relay,
    http: reqwest::Client,
}

/// Body of `PUT /-/impairment`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rules {
    up: Impairment,
    down: Impairment,
}

impl Proxy {
    /// Binds.
    ///
    /// # Errors
    /// The address is taken.
    pub async fn bind(config: ProxyConfig) -> anyhow::Result<Self> {
        let ProxyConfig { listen, upstream, relay } = config;
        let listener = tokio::net::TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        let upstream = upstream.trim_end_matches('/').to_owned();
        let shared = Arc::new(Shared { upstream, relay, http: reqwest::Client::new() });
        Ok(Self { listener, address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the token is cancelled.
    ///
    /// # Errors
    /// The listener fails.
    pub async fn serve(self, end: CancellationToken) -> anyhow::Result<()> {
        let routes = Router::new()
            .route("/-/impairment", axum::routing::put(change))
            .route("/-/counts", get(counts))
            .fallback(pass)
            .with_state(self.shared);
        let serve = axum::serve(self.listener, routes);
        tokio::select! {
            served = serve => Ok(served?),
            () = end.cancelled() => Ok(()),
        }
    }
}

/// Makes the network better or worse while somebody watches.
async fn change(State(shared): State<Arc<Shared>>, Json(rules): Json<Rules>) -> Response {
    if let Some(mistake) = rules.up.mistake().or_else(|| rules.down.mistake()) {
        return (StatusCode::BAD_REQUEST, mistake).into_response();
    }
    shared.relay.change(rules.up, rules.down);
    StatusCode::NO_CONTENT.into_response()
}

async fn counts(State(shared): State<Arc<Shared>>) -> Json<Vec<PathCounts>> {
    Json(shared.relay.counts())
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    match forward(&shared, request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    }
}

async fn forward(shared: &Shared, request: Request) -> anyhow::Result<Response> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let body = to_bytes(body, BODY_BYTES).await.context("the request's body")?;
    let response = shared
        .http
        .request(parts.method, format!("{}{path}", shared.upstream))
        .headers(kept(&parts.headers))
        .body(body)
        .send()
        .await
        .context("the router")?;
    let (status, headers) = (response.status(), kept(response.headers()));
    let bytes = response.bytes().await.context("the router's answer")?;
    anyhow::ensure!(bytes.len() <= BODY_BYTES, "the router's answer is too long");
    let sdp = headers.get(header::CONTENT_TYPE).is_some_and(|t| t == "application/sdp");
    let body = if sdp && status == StatusCode::CREATED {
        let answer = std::str::from_utf8(&bytes).context("the answer is not UTF-8")?;
        Body::from(with_candidates(answer, &|router| {
            // Without a path the answer stays as it is, and the test will see a perfect network.
            shared.relay.open(router).unwrap_or(router)
        }))
    } else {
        Body::from(bytes)
    };
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    Ok(answer)
}

fn kept(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in HOP_BY_HOP {
        kept.remove(name);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A router as far as the proxy sees one.
    async fn router() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = || async {
            let headers = [("content-type", "application/sdp"), ("location", "/whep/a/1")];
            let sdp = "v=0\r\na=candidate:1 1 udp 1 127.0.0.1 4242 typ host\r\n";
            (StatusCode::CREATED, headers, sdp)
        };
        let routes = Router::new().route("/whep/a", axum::routing::post(answer));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        address
    }

    #[tokio::test]
    async fn an_answer_leads_through_the_relay_and_all_else_is_passed_on() {
        let relay = Relay::start(Impairment::default(), Impairment::default(), 1).unwrap();
        let upstream = format!("http://{}/", router().await);
        let listen = "127.0.0.1:0".parse().unwrap();
        let proxy = Proxy::bind(ProxyConfig { listen, upstream, relay }).await.unwrap();
        let base = format!("http://{}", proxy.address());
        let end = CancellationToken::new();
        let served = tokio::spawn(proxy.serve(end.clone()));
        let http = reqwest::Client::new();

        let answer = http.post(format!("{base}/whep/a")).body("v=0").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        assert_eq!(answer.headers()["location"], "/whep/a/1");
        let sdp = answer.text().await.unwrap();
        assert!(sdp.contains(" 127.0.0.1 ") && !sdp.contains(" 4242 "), "{sdp}");
        let missing = http.get(format!("{base}/other")).send().await.unwrap();
        assert_eq!(missing.status(), StatusCode::NOT_FOUND);

        let put = |rules: &'static str| {
            let request = http.put(format!("{base}/-/impairment"));
            request.header("content-type", "application/json").body(rules).send()
        };
        let worse = put(r#"{"down":{"loss":0.05,"delay_ms":20}}"#).await.unwrap();
        assert_eq!(worse.status(), StatusCode::NO_CONTENT);
        let wrong = put(r#"{"down":{"loss":5}}"#).await.unwrap();
        assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
        end.cancel();
        served.await.unwrap().unwrap();
    }
}
