//! Tests of `admin` over real sockets.

use std::time::Duration;

use reqwest::{Client, StatusCode};

use super::*;
use crate::log::{self, LogConfig};

struct Fixture {
    url: String,
    admin: Admin,
    end: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn start() -> Fixture {
    let admin = Admin {
        metrics: Metrics::install(),
        readiness: Readiness::new(),
        log: log::init(&LogConfig::default()),
        drain: Drain::new(),
    };
    let server = AdminServer::bind("127.0.0.1:0".parse().unwrap(), admin.clone()).await.unwrap();
    let url = format!("http://{}", server.addr());
    let end = CancellationToken::new();
    let task = tokio::spawn(server.run(end.clone()));
    Fixture { url, admin, end, task }
}

async fn get(url: String) -> (StatusCode, String) {
    let answer = reqwest::get(url).await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

#[tokio::test]
async fn readiness_lists_components_and_turns_with_drain() {
    let f = start().await;
    let (status, body) = get(format!("{}/readyz", f.url)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "nothing known yet: {body}");
    f.admin.readiness.set("control", true, "");
    f.admin.readiness.set(format!("router {}", 1), false, "no link");
    let (status, body) = get(format!("{}/readyz", f.url)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains(r#""router 1":{"ready":false,"why":"no link"}"#), "{body}");
    f.admin.readiness.set("router 1", true, "");
    assert_eq!(get(format!("{}/readyz", f.url)).await.0, StatusCode::OK);

    let answer = Client::new().post(format!("{}/drain", f.url)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    f.admin.drain.started().await;
    let (status, body) = get(format!("{}/readyz", f.url)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains(r#""draining":true"#), "{body}");
    assert_eq!(get(format!("{}/livez", f.url)).await.0, StatusCode::OK, "draining is alive");
}

#[tokio::test]
async fn metrics_version_and_unknown_paths() {
    let f = start().await;
    let (status, body) = get(format!("{}/metrics", f.url)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("# TYPE fanlight_runtime_tasks gauge"), "{body}");
    let (_, body) = get(format!("{}/version", f.url)).await;
    assert!(body.contains(crate::VERSION));
    assert_eq!(get(format!("{}/nope", f.url)).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn log_level_can_be_changed_and_a_bad_one_is_refused() {
    let f = start().await;
    let put = async |body: Vec<u8>| {
        Client::new().put(format!("{}/log-level", f.url)).body(body).send().await.unwrap().status()
    };
    assert_eq!(put(b"info,fanlight=trace\n".to_vec()).await, StatusCode::NO_CONTENT);
    assert_eq!(get(format!("{}/log-level", f.url)).await.1, "info,fanlight=trace\n");
    assert_eq!(put(b"x=nope".to_vec()).await, StatusCode::BAD_REQUEST);
    assert_eq!(put(vec![0xff, 0xfe]).await, StatusCode::BAD_REQUEST);
    assert_eq!(put(vec![b'a'; 5000]).await, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_web_page_cannot_drain() {
    let f = start().await;
    let from_page = Client::new().post(format!("{}/drain", f.url)).header("origin", "https://x");
    assert_eq!(from_page.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    assert!(!f.admin.drain.is_draining());
}

#[tokio::test]
async fn a_taken_port_is_one_clear_line() {
    let f = start().await;
    let addr: SocketAddr = f.url.strip_prefix("http://").unwrap().parse().unwrap();
    let error = AdminServer::bind(addr, f.admin.clone()).await.unwrap_err().to_string();
    assert_eq!(error, format!("port in use: {addr} (admin listener)"));
}

#[tokio::test]
async fn it_ends_in_time_even_with_an_idle_connection() {
    let f = start().await;
    let addr = f.url.strip_prefix("http://").unwrap().to_owned();
    let _idle = tokio::net::TcpStream::connect(addr).await.unwrap();
    get(format!("{}/livez", f.url)).await;
    f.end.cancel();
    tokio::time::timeout(Duration::from_secs(2), f.task).await.unwrap().unwrap();
}
