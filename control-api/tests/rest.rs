//! The services as JSON, the session routes of the older service, and webhooks over real HTTP.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    response::IntoResponse as _,
    routing::post,
};
use common::{FakeNode, Replica, SOON, router_hello};
use fanlight_control::{
    auth::Scope,
    backend_token::{Args, mint},
    config::WebhookConfig,
};
use fanlight_proto::types::v1::NodeAddresses;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

async fn ask(replica: &Replica, verb: &str, path: &str, body: Option<Value>) -> Answer {
    ask_as(replica, verb, path, body, None).await
}

async fn ask_as(
    replica: &Replica,
    verb: &str,
    path: &str,
    body: Option<Value>,
    token: Option<&str>,
) -> Answer {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut request = http::Request::builder()
        .method(verb)
        .uri(format!("http://{}{path}", replica.api.grpc_addr()))
        .header("content-type", "application/json");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = body.map(|b| b.to_string()).unwrap_or_default();
    let request = request.body(Full::from(body)).unwrap();
    let response = tokio::time::timeout(SOON, client.request(request)).await.unwrap().unwrap();
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer { status: head.status.as_u16(), headers: head.headers, body }
}

/// A router's WHEP endpoint that answers all offers but those that hold `bad`.
async fn whep() -> (String, Arc<Mutex<Vec<(String, String, String)>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let offer = |State(heard): State<Arc<Mutex<Vec<_>>>>,
                 Path(stream): Path<String>,
                 headers: HeaderMap,
                 body: String| async move {
        let auth = headers["authorization"].to_str().unwrap().to_owned();
        heard.lock().push((stream, auth, body.clone()));
        if body.contains("bad") {
            let why = json!({ "reason": "NO_COMMON_CODEC", "detail": "offer H.264" });
            return (StatusCode::NOT_ACCEPTABLE, why.to_string()).into_response();
        }
        (StatusCode::CREATED, [("location", "/whep/s/1")], "v=0 answer").into_response()
    };
    let app = Router::new().route("/whep/{stream}", post(offer)).with_state(Arc::clone(&heard));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (base, heard)
}

#[tokio::test]
async fn streams_and_viewers_live_their_life_over_json() {
    let replica = Replica::start().await;
    let _router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    let body = json!({ "stream": { "device": "devices/a", "labels": { "k": "v" } } });
    let made = ask(&replica, "POST", "/v1/streams", Some(body.clone())).await;
    assert_eq!((made.status, &made.body["name"]), (200, &json!("streams/a")), "{}", made.body);
    assert_eq!(made.body["assignment"]["origin"]["node"], "nodes/r1");
    assert!(made.body["assignment"]["epoch"].is_string(), "64 bits are a string");

    let again = ask(&replica, "POST", "/v1/streams", Some(body)).await;
    assert_eq!((again.status, &again.body["reason"]), (409, &json!("STREAM_EXISTS")));
    assert_eq!(again.headers["content-type"], "application/problem+json");
    let patch = json!({ "stream": { "labels": { "x": "y" }, "etag": made.body["etag"] } });
    let path = "/v1/streams/a?updateMask=labels";
    let patched = ask(&replica, "PATCH", path, Some(patch.clone())).await;
    assert_eq!((patched.status, &patched.body["labels"]), (200, &json!({ "x": "y" })));
    let stale = ask(&replica, "PATCH", path, Some(patch)).await;
    assert_eq!((stale.status, &stale.body["reason"]), (409, &json!("ETAG_MISMATCH")));

    let invite = json!({ "viewerId": "v1", "viewer": { "user": "u" }, "joinTtl": "30s" });
    let viewer = ask(&replica, "POST", "/v1/streams/a/viewers", Some(invite)).await;
    assert_eq!(viewer.status, 200, "{}", viewer.body);
    assert!(viewer.body["joinToken"].as_str().unwrap().len() > 100);
    let read = ask(&replica, "GET", "/v1/streams/a/viewers/v1", None).await;
    assert_eq!((read.status, &read.body["state"]), (200, &json!("VIEWER_STATE_INVITED")));
    let list = ask(&replica, "GET", "/v1/streams/-/viewers?pageSize=10", None).await;
    assert_eq!(list.body["viewers"].as_array().unwrap().len(), 1);
    let kicked = ask(&replica, "POST", "/v1/streams/a/viewers/v1/kick", Some(json!({}))).await;
    assert_eq!((kicked.status, &kicked.body["acknowledged"]), (200, &json!(true)));
    let why = ask(&replica, "GET", "/v1/streams/a/placement", None).await;
    assert_eq!(why.body["chosen"], "nodes/r1");
    let nodes = ask(&replica, "GET", "/v1/nodes", None).await;
    assert_eq!(nodes.body["nodes"].as_array().unwrap().len(), 2);
    let events = ask(&replica, "GET", "/v1/events?types=fanlight.viewer.&page_size=1", None).await;
    assert_eq!(events.body["events"][0]["type"], "fanlight.viewer.invited.v1");
    let ended = ask(&replica, "DELETE", "/v1/streams/a", None).await;
    assert_eq!(ended.status, 200);
    let gone = ask(&replica, "GET", "/v1/streams/a", None).await;
    assert_eq!((gone.status, &gone.body["reason"]), (404, &json!("STREAM_NOT_FOUND")));
    assert_eq!(gone.body["resource"], "streams/a");
}

#[tokio::test]
async fn what_is_wrong_is_a_problem_that_names_it() {
    let replica = Replica::start().await;
    for (verb, path, body, status, reason) in [
        ("POST", "/v1/streams", Some(json!({ "strem": {} })), 400, "INVALID_ARGUMENT"),
        ("POST", "/v1/streams", Some(json!([])), 400, "INVALID_ARGUMENT"),
        ("GET", "/v1/streams?nope=1", None, 400, "INVALID_ARGUMENT"),
        ("GET", "/v1/streams?pageSize=x", None, 400, "INVALID_ARGUMENT"),
        ("GET", "/v1/streams/a%2Fviewers%2Fb", None, 400, "INVALID_ARGUMENT"),
        ("GET", "/v1/streams/a", None, 404, "STREAM_NOT_FOUND"),
        ("GET", "/v1/events?position=7", None, 410, "POSITION_EXPIRED"),
        ("GET", "/v1/webhooks/x/deadLetters", None, 404, "WEBHOOK_NOT_FOUND"),
        (
            "POST",
            "/v1/streams",
            Some(json!({ "requestId": "x".repeat(300_000) })),
            400,
            "TOO_LARGE",
        ),
    ] {
        let answer = ask(&replica, verb, path, body).await;
        assert_eq!(
            (answer.status, &answer.body["reason"]),
            (status, &json!(reason)),
            "{verb} {path}"
        );
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{path}");
    }
    let fields = ask(&replica, "POST", "/v1/streams", Some(json!({ "stream": {} }))).await;
    assert_eq!(fields.body["fields"][0]["field"], "stream.device", "{}", fields.body);
}

#[tokio::test]
async fn a_watch_is_one_document_a_line() {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    let replica = Replica::start().await;
    let mut tcp = tokio::net::TcpStream::connect(replica.api.grpc_addr()).await.unwrap();
    tcp.write_all(b"GET /v1/streams:watch HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut lines = BufReader::new(tcp).lines();
    let mut next = async || loop {
        let line = tokio::time::timeout(SOON, lines.next_line()).await.unwrap().unwrap().unwrap();
        if line.starts_with('{') {
            return serde_json::from_str::<Value>(&line).unwrap();
        }
    };
    assert_eq!(next().await["kind"], "WATCH_KIND_BOOKMARK");
    let body = json!({ "stream": { "device": "devices/a" }, "allowPending": true });
    ask(&replica, "POST", "/v1/streams", Some(body)).await;
    let added = next().await;
    assert_eq!(
        (&added["kind"], &added["stream"]["name"]),
        (&json!("WATCH_KIND_ADDED"), &json!("streams/a"))
    );
}

#[tokio::test]
async fn json_callers_need_the_same_token() {
    let dir = tempfile::tempdir().unwrap();
    let args = Args {
        key_file: dir.path().join("key.pem"),
        jwks_file: Some(dir.path().join("keys.json")),
        subject: "b".to_owned(),
        issuer: "fanlight-backend".to_owned(),
        tenant: "acme".to_owned(),
        scopes: vec![Scope::StreamsRead],
        ttl_s: 60,
    };
    let token = mint(&args).unwrap();
    let keys = args.jwks_file.clone();
    let replica = Replica::with(|cfg| cfg.backend_keys_file = keys).await;
    let refused = ask(&replica, "GET", "/v1/streams", None).await;
    assert_eq!((refused.status, &refused.body["reason"]), (401, &json!("TOKEN_MISSING")));
    assert_eq!(refused.headers["www-authenticate"], "Bearer");
    assert_eq!(ask_as(&replica, "GET", "/v1/streams", None, Some(&token)).await.status, 200);
    let refused = ask_as(&replica, "GET", "/v1/nodes", None, Some(&token)).await;
    assert_eq!((refused.status, &refused.body["reason"]), (403, &json!("SCOPE_MISSING")));
    assert_eq!(ask(&replica, "GET", "/api/media/sessions", None).await.status, 401);
}

#[tokio::test]
async fn the_older_session_routes_make_a_viewer_and_pass_its_offer_to_the_router() {
    let replica = Replica::start().await;
    let (base, heard) = whep().await;
    let mut hello = router_hello("r1", 1);
    let addresses = NodeAddresses {
        quic: vec!["127.0.0.1:4433".to_owned()],
        whep_base_url: base,
        ..NodeAddresses::default()
    };
    hello.addresses = Some(addresses);
    let _router = FakeNode::link(&replica, hello).await;
    replica.serving("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;

    let sessions = "/api/media/sessions";
    let offer = |sdp: &str| json!({ "type": "offer", "sdp": sdp });
    let body = json!({ "deviceId": "a", "userId": "u", "offer": offer("v=0 offer") });
    let made = ask(&replica, "POST", sessions, Some(body)).await;
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.body["answer"], json!({ "type": "answer", "sdp": "v=0 answer" }));
    let (stream, auth, sdp) = heard.lock()[0].clone();
    assert_eq!((stream.as_str(), sdp.as_str()), ("a", "v=0 offer"));
    assert!(auth.starts_with("Bearer ey"), "{auth}");

    let id = made.body["sessionId"].as_str().unwrap().to_owned();
    let at = |rest: &str| format!("{sessions}/{id}{rest}");
    let read = ask(&replica, "GET", &at(""), None).await;
    assert_eq!(
        (read.status, &read.body["userId"], &read.body["state"]),
        (200, &json!("u"), &json!("connecting"))
    );
    let list = ask(&replica, "GET", sessions, None).await;
    assert_eq!(
        (&list.body["total"], &list.body["sessions"][0]["sessionId"]),
        (&json!(1), &json!(id))
    );
    for n in 0..50 {
        let taken = ask(&replica, "POST", &at("/ice-candidate"), Some(json!({ "n": n }))).await;
        assert_eq!(taken.status, 200);
    }
    assert_eq!(ask(&replica, "POST", &at("/ice-candidate"), None).await.status, 429);
    assert_eq!(ask(&replica, "POST", &at("/answer"), None).await.status, 501);
    let stats = ask(&replica, "GET", "/api/media/stats", None).await;
    assert_eq!((&stats.body["totalSessions"], &stats.body["streams"]), (&json!(1), &json!(1)));
    assert_eq!(ask(&replica, "GET", "/health", None).await.body["status"], "ok");
    assert_eq!(ask(&replica, "DELETE", &at(""), None).await.status, 200);
    assert_eq!(ask(&replica, "GET", &at(""), None).await.body["state"], "closed");
    assert_eq!(ask(&replica, "GET", sessions, None).await.body["total"], 0);

    // What the router says of an offer is what the caller hears, and nothing is left behind.
    let body = json!({ "deviceId": "a", "offer": "bad" });
    let refused = ask(&replica, "POST", sessions, Some(body)).await;
    assert_eq!((refused.status, &refused.body["reason"]), (400, &json!("NO_COMMON_CODEC")));
    assert_eq!(ask(&replica, "GET", sessions, None).await.body["total"], 0);
    let unknown =
        ask(&replica, "POST", sessions, Some(json!({ "deviceId": "x", "offer": "o" }))).await;
    assert_eq!((unknown.status, &unknown.body["reason"]), (404, &json!("DEVICE_UNKNOWN")));
    let nowhere = ask(&replica, "GET", &format!("{sessions}/x~y"), None).await;
    assert_eq!((nowhere.status, &nowhere.body["reason"]), (404, &json!("SESSION_NOT_FOUND")));
}

/// What a webhook's receiver heard.
type Deliveries = tokio::sync::mpsc::UnboundedReceiver<(HeaderMap, Vec<u8>)>;

/// A receiver that refuses its first deliveries.
async fn receiver(refusals: usize) -> (String, Deliveries) {
    let (tx, rx) = tokio::sync::mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let left = Arc::new(Mutex::new(refusals));
    let take = move |headers: HeaderMap, body: Bytes| {
        let (tx, left) = (tx.clone(), Arc::clone(&left));
        async move {
            let mut left = left.lock();
            if *left > 0 {
                *left -= 1;
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            tx.send((headers, body.to_vec())).unwrap();
            StatusCode::NO_CONTENT
        }
    };
    let app = Router::new().route("/hook", post(take));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, rx)
}

#[tokio::test]
async fn events_reach_a_receiver_signed_and_again_after_a_refusal() {
    use std::os::unix::fs::PermissionsExt as _;
    let (url, mut heard) = receiver(1).await;
    let dir = tempfile::tempdir().unwrap();
    let secret_file = dir.path().join("secret");
    std::fs::write(&secret_file, "a secret of some length\n").unwrap();
    std::fs::set_permissions(&secret_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let webhook = WebhookConfig {
        name: "platform".to_owned(),
        url,
        secret_file,
        types: vec!["fanlight.stream.".to_owned()],
        ..WebhookConfig::default()
    };
    let replica = Replica::with(|cfg| cfg.webhooks = vec![webhook]).await;
    // The relay has claimed; what happens before that is not for a new webhook.
    let claim = || {
        let (hook, nobody) = ("platform".to_owned(), "nobody".to_owned());
        replica.api.store().claim_relay(hook, nobody, std::time::Duration::ZERO)
    };
    while claim().await.unwrap().is_some() {
        tokio::task::yield_now().await;
    }
    let body = json!({ "stream": { "device": "devices/a" }, "allowPending": true });
    ask(&replica, "POST", "/v1/streams", Some(body)).await;
    let mut types = Vec::new();
    for _ in 0..2 {
        let (headers, body) = tokio::time::timeout(SOON, heard.recv()).await.unwrap().unwrap();
        assert_eq!(headers["content-type"], "application/cloudevents+json; charset=utf-8");
        let timestamp = headers["fanlight-timestamp"].to_str().unwrap();
        let key =
            aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"a secret of some length");
        let signed = [timestamp.as_bytes(), b".", &body].concat();
        let tag = aws_lc_rs::hmac::sign(&key, &signed);
        let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(headers["fanlight-signature"], format!("v1={hex}"));
        let event: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&event["specversion"], &event["subject"]),
            (&json!("1.0"), &json!("streams/a"))
        );
        types.push(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(types, ["fanlight.stream.created.v1", "fanlight.stream.starved.v1"]);
    let dead = ask(&replica, "GET", "/v1/webhooks/platform/deadLetters", None).await;
    assert_eq!((dead.status, &dead.body), (200, &json!({})));
}
