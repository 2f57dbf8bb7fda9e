//! The HTTP client that leaves this process: deliveries, and what the older routes ask of a router.
//! Not what is sent. Invariant: no answer is waited for longer than its limit, none is read beyond
//! its bound, and redirects are not followed.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use fanlight_ops::pki::provider;
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::time::timeout;

use super::{ANSWER_WAIT, Delivery, Post};

/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Idle connections kept to one host.
const IDLE: usize = 8;

/// A client for plain HTTP and HTTPS.
#[derive(Clone, Debug)]
pub struct HttpClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl HttpClient {
    /// Trusts the public CAs, and those in the file.
    ///
    /// # Errors
    /// A file that cannot be read or holds no certificate.
    pub fn new(ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(path) = ca_file {
            let shown = path.display();
            let certs = CertificateDer::pem_file_iter(path)
                .map_err(|e| anyhow::anyhow!("cannot read {shown}: {e}"))?;
            let mut n = 0;
            for cert in certs {
                roots.add(cert.map_err(|e| anyhow::anyhow!("{shown}: {e}"))?)?;
                n += 1;
            }
            anyhow::ensure!(n > 0, "{shown} holds no certificate");
        }
        let tls = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(Arc::new(roots))
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(connector);
        Ok(Self(client))
    }

    /// Sends a request and reads its answer, of at most `most` bytes, within `wait`.
    ///
    /// # Errors
    /// A sentence that says what failed.
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        most: usize,
        wait: Duration,
    ) -> Result<Response<Bytes>, String> {
        let work = async {
            let response = self.0.request(request).await.map_err(|e| {
                // The source names the address and the system's word.
                std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string)
            })?;
            let (head, body) = response.into_parts();
            let read = Limited::new(body, most).collect().await;
            let body = read.map_err(|e| format!("its answer cannot be read: {e}"))?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        timeout(wait, work).await.map_err(|_| format!("no answer within {wait:?}"))?
    }
}

/// An endpoint reached by HTTP.
#[derive(Debug)]
pub struct HttpPost {
    client: HttpClient,
    uri: Uri,
}

impl HttpPost {
    /// POSTs to this address.
    ///
    /// # Errors
    /// As [`HttpClient::new`]; an address that is none.
    pub fn new(url: &str, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        Ok(Self { client: HttpClient::new(ca_file)?, uri: url.parse()? })
    }
}

impl Post for HttpPost {
    fn post(&self, delivery: Delivery) -> BoxFuture<'_, Result<u16, String>> {
        async move {
            let mut request = Request::new(Full::new(Bytes::from(delivery.body)));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = self.uri.clone();
            let headers = request.headers_mut();
            let content = HeaderValue::from_static("application/cloudevents+json; charset=utf-8");
            headers.insert(header::CONTENT_TYPE, content);
            headers.insert(header::USER_AGENT, HeaderValue::from_static("fanlight"));
            headers.insert("fanlight-timestamp", HeaderValue::from(delivery.timestamp));
            let signature =
                HeaderValue::from_str(&delivery.signature).map_err(|e| e.to_string())?;
            headers.insert("fanlight-signature", signature);
            // What the endpoint says is not read but for its status.
            let answer = self.client.send(request, 64 * 1024, ANSWER_WAIT).await?;
            Ok(answer.status().as_u16())
        }
        .boxed()
    }
}
