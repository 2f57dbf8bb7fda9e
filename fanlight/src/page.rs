//! Serves the viewer page and player, embedded in the binary, and `/config.json`. Not the WHEP
//! endpoint. Invariant: only files of `web/` that a browser needs are served.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use fanlight_ops::http::{HttpLimits, serve as serve_bounded};
use rust_embed::RustEmbed;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[derive(RustEmbed)]
#[folder = "../web"]
#[include = "*.html"]
#[include = "*.css"]
#[include = "*.js"]
#[include = "*.svg"]
#[exclude = "test/*"]
#[exclude = "node_modules/*"]
struct Files;

/// One stream as the page needs it.
#[derive(Clone, Debug, Serialize)]
pub struct PageStream {
    /// `streams/{stream}`.
    pub name: String,
    /// What the tab is called.
    pub label: String,
    /// Where to post the offer.
    pub whep_url: String,
    /// Join token.
    pub token: String,
}

/// What `/config.json` says.
#[derive(Clone, Debug, Serialize)]
pub struct PageConfig {
    /// Title of the page.
    pub title: String,
    /// The streams, first one shown first.
    pub streams: Vec<PageStream>,
}

/// Serves the page until the token is cancelled.
pub async fn serve(listener: TcpListener, config: PageConfig, end: CancellationToken) {
    serve_bounded(listener, routes(config), HttpLimits::default(), end).await;
}

/// The page's routes.
pub fn routes(config: PageConfig) -> Router {
    Router::new()
        .route("/", get(|| async { file("index.html") }))
        .route("/config.json", get(settings))
        .route("/{*path}", get(|Path(path): Path<String>| async move { file(&path) }))
        .with_state(Arc::new(config))
}

fn file(path: &str) -> Response {
    let Some(found) = Files::get(path) else {
        return (StatusCode::NOT_FOUND, "no such file\n").into_response();
    };
    let mime = mime_guess::from_path(path).first_or_octet_stream();
    let mut response = found.data.into_owned().into_response();
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(mime.as_ref()) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    // Revalidated each time, so that a new binary is a new page.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    secure(headers);
    response
}

fn secure(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'self'; style-src 'self' 'unsafe-inline'; connect-src *; \
             media-src 'self' blob: mediastream:; frame-ancestors 'self'",
        ),
    );
}

/// The settings, with WHEP addresses as this browser reaches them: a router that listens on all
/// addresses is named by the host that the page itself was asked by.
async fn settings(State(config): State<Arc<PageConfig>>, headers: HeaderMap) -> Response {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let mut config = PageConfig::clone(&config);
    for stream in &mut config.streams {
        stream.whep_url = reachable(&stream.whep_url, host);
    }
    let mut response = axum::Json(config).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    secure(response.headers_mut());
    response
}

/// `url` with an unspecified host replaced by the host of the page's own address.
fn reachable(url: &str, host: Option<&str>) -> String {
    let parts = || {
        let (scheme, rest) = url.split_once("://")?;
        let (authority, path) = rest.split_once('/')?;
        let (name, port) = authority.rsplit_once(':')?;
        let ip: IpAddr = name.trim_matches(['[', ']']).parse().ok()?;
        let page: http::uri::Authority = host?.parse().ok()?;
        ip.is_unspecified().then(|| format!("{scheme}://{}:{port}/{path}", page.host()))
    };
    parts().unwrap_or_else(|| url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_on_all_addresses_is_named_as_the_page_was() {
        let url = "http://0.0.0.0:9000/whep/a";
        assert_eq!(reachable(url, Some("phone.lan:8080")), "http://phone.lan:9000/whep/a");
        assert_eq!(
            reachable("http://[::]:9000/whep/a", Some("[::1]:80")),
            "http://[::1]:9000/whep/a"
        );
        assert_eq!(reachable(url, None), url);
        let loopback = "http://127.0.0.1:9000/whep/a";
        assert_eq!(reachable(loopback, Some("phone.lan:8080")), loopback);
    }

    #[test]
    fn only_what_a_browser_needs_is_embedded() {
        let names: Vec<_> = Files::iter().collect();
        assert!(names.iter().any(|n| n == "index.html"));
        assert!(names.iter().any(|n| n == "player/fanlight-player.js"));
        assert!(names.iter().all(|n| !n.starts_with("test/") && !n.ends_with(".mjs")));
    }
}
