//! Dialling: an endpoint in, an HTTP/2 channel out. Not the handshake of NodeLink. Invariant: only
//! `https` with our CA is dialled outside tests.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use rand::seq::SliceRandom as _;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::{LinkConfig, LinkError, MAX_ENDPOINTS};

/// A replica on the other side of the fleet answers well within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A dead peer is noticed after [`KEEPALIVE`] + [`KEEPALIVE_TIMEOUT`], the lease's length.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) type DialError = Box<dyn std::error::Error + Send + Sync>;
pub(super) type Dialer =
    Arc<dyn Fn(String) -> BoxFuture<'static, Result<Channel, DialError>> + Send + Sync>;

/// The settings of every channel, tests' included.
pub(super) fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
}

/// Dials with the node's certificate. Endpoints of the configuration are checked here, so that a
/// misspelt one is a mistake at start and not a dial that never works.
pub(super) fn tls_dialer(cfg: &LinkConfig) -> Result<Dialer, LinkError> {
    if cfg.endpoints.is_empty() {
        return Err(LinkError::NoEndpoint);
    }
    let pem = cfg.identity.pem();
    let tls = ClientTlsConfig::new()
        .identity(Identity::from_pem(&pem.cert_pem, &pem.key_pem))
        .ca_certificate(Certificate::from_pem(&pem.ca_pem))
        .domain_name(&cfg.server_name);
    for endpoint in &cfg.endpoints {
        prepare(endpoint, &tls).map_err(|why| LinkError::BadEndpoint {
            endpoint: endpoint.chars().take(200).collect(),
            why: why.to_string(),
        })?;
    }
    Ok(Arc::new(move |endpoint| {
        let tls = tls.clone();
        async move { Ok(prepare(&endpoint, &tls)?.connect().await?) }.boxed()
    }))
}

fn prepare(endpoint: &str, tls: &ClientTlsConfig) -> Result<Endpoint, DialError> {
    if !endpoint.starts_with("https://") {
        return Err("it does not begin with https://".into());
    }
    Ok(tuned(Endpoint::from_shared(endpoint.to_owned())?).tls_config(tls.clone())?)
}

/// Endpoints in random order, so that nodes spread over replicas.
pub(super) fn shuffled(endpoints: &[String]) -> Vec<String> {
    let mut all: Vec<String> = endpoints.iter().take(MAX_ENDPOINTS).cloned().collect();
    all.shuffle(&mut rand::rng());
    all
}

/// An error with all its causes on one line: tonic's own text is only "transport error".
pub(super) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
