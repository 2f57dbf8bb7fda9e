//! The real binary as a process: what `fanlight demo` serves and how it ends, and how every role
//! answers to mistakes in its configuration. Not the picture: that is tested in a browser (`e2e/`).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use fanlight_ops::metrics::{MetricDoc, MetricKind};
use fanlight_proto::control::v1::{
    ListNodesRequest, ListStreamsRequest, node_service_client::NodeServiceClient,
    stream_service_client::StreamServiceClient,
};
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use tokio::process::{Child, Command};

/// Generous: the tests may share two cores with a compiler.
const START: Duration = Duration::from_secs(60);

fn fanlight() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanlight"));
    command.kill_on_drop(true).stdin(Stdio::null());
    // A developer's own settings are not part of the test.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FANLIGHT_")) {
        command.env_remove(name);
    }
    command
}

async fn output(args: &[&str]) -> Output {
    let run = fanlight().args(args).output();
    tokio::time::timeout(START, run).await.expect("it goes on").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The one line that a mistake is answered with.
async fn complaint(args: &[&str]) -> String {
    let out = output(args).await;
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{args:?}: {err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{args:?}: {err}");
    assert!(out.stdout.is_empty(), "{args:?}: {}", text(&out.stdout));
    err.trim_end().to_owned()
}

struct Demo {
    child: Child,
    ready: Value,
    http: Client,
    _dir: tempfile::TempDir,
}

impl Demo {
    async fn start(listen: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready.json");
        let mut command = fanlight();
        command.args(["demo", "--listen", listen, "--ready-json"]).arg(&path).args(args);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let ready = wait_ready(&path, &mut child).await;
        Self { child, ready, http: Client::new(), _dir: dir }
    }

    fn str(&self, pointer: &str) -> &str {
        let value = self.ready.pointer(pointer).and_then(Value::as_str);
        value.unwrap_or_else(|| panic!("{pointer} is missing in {:#}", self.ready))
    }

    async fn get(&self, url: String) -> reqwest::Response {
        self.http.get(url).send().await.unwrap()
    }

    /// Sends a signal and gives the exit code and how long it took.
    async fn end(&mut self, signal: &str) -> (Option<i32>, Duration) {
        let pid = self.child.id().unwrap();
        let since = Instant::now();
        let kill = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status();
        assert!(kill.await.unwrap().success());
        let ended = tokio::time::timeout(START, self.child.wait()).await.expect("it goes on");
        (ended.unwrap().code(), since.elapsed())
    }
}

async fn wait_ready(path: &Path, child: &mut Child) -> Value {
    let deadline = Instant::now() + START;
    while !path.exists() {
        assert!(Instant::now() < deadline, "not ready in {START:?}");
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it was ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It appears whole or not at all.
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[tokio::test]
async fn the_demo_serves_what_it_announces_and_ends_in_time() {
    let two = ["--devices", "2", "--routers", "2", "--size", "240x320"];
    let mut demo = Demo::start("127.0.0.1:0", &two).await;
    announces_everything(&demo);
    serves_the_page(&demo).await;
    answers_operators(&demo).await;
    answers_backends(&demo).await;
    answers_viewers(&demo).await;

    let input_log = PathBuf::from(demo.str("/streams/0/input_log"));
    assert!(input_log.exists());
    // An idle connection, as browsers keep them, must not hold up the end.
    let (code, took) = demo.end("TERM").await;
    assert_eq!(code, Some(0));
    assert!(took <= Duration::from_secs(2), "{took:?}");
    assert!(!input_log.parent().unwrap().exists(), "its folder is gone with it");
}

fn announces_everything(demo: &Demo) {
    for key in ["page_url", "whep_url", "join_token", "observer_token", "grpc_addr", "metrics_url"]
    {
        assert!(!demo.str(&format!("/{key}")).is_empty());
    }
    for n in 0..2 {
        for key in ["name", "whep_url", "join_token", "adb_addr", "input_log"] {
            assert!(!demo.str(&format!("/streams/{n}/{key}")).is_empty());
        }
        for key in ["node", "whep_addr", "quic_addr", "ice_addrs/0"] {
            assert!(!demo.str(&format!("/routers/{n}/{key}")).is_empty());
        }
    }
    assert_eq!(demo.str("/whep_url"), demo.str("/streams/0/whep_url"));
}

async fn serves_the_page(demo: &Demo) {
    let page = demo.str("/page_url");
    let cases = [
        ("", "text/html"),
        ("app.js", "text/javascript"),
        ("player/fanlight-player.js", "text/javascript"),
        ("style.css", "text/css"),
        ("favicon.svg", "image/svg+xml"),
        ("config.json", "application/json"),
    ];
    for (path, kind) in cases {
        let answer = demo.get(format!("{page}{path}")).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert!(header("content-type").starts_with(kind), "{path}: {}", header("content-type"));
        assert!(header("content-security-policy").contains("default-src 'self'"));
        assert_eq!(header("x-content-type-options"), "nosniff");
        let cache = if path == "config.json" { "no-store" } else { "no-cache" };
        assert_eq!(header("cache-control"), cache, "{path}");
    }
    let config: Value = demo.get(format!("{page}config.json")).await.json().await.unwrap();
    assert_eq!(config["streams"][1]["whep_url"], demo.ready["streams"][1]["whep_url"]);
    for path in ["nope.js", "test/whep.test.mjs", "package.json", "%2e%2e/Cargo.toml"] {
        let answer = demo.get(format!("{page}{path}")).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
    }
}

async fn answers_operators(demo: &Demo) {
    let admin = demo.str("/admin_url");
    for path in ["livez", "readyz", "version", "log-level"] {
        assert_eq!(demo.get(format!("{admin}/{path}")).await.status(), StatusCode::OK, "{path}");
    }
    let metrics = demo.get(demo.str("/metrics_url").to_owned()).await.text().await.unwrap();
    let families: BTreeSet<(&str, &str)> = metrics
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE "))
        .filter_map(|l| l.split_once(' '))
        .collect();
    let docs: Vec<MetricDoc> = [
        fanlight_ops::metrics::METRICS,
        fanlight_router::METRICS,
        fanlight_control::metrics::METRICS,
        fanlight_ingest::metrics::METRICS,
        fanlight_device_sim::metrics::METRICS,
    ]
    .concat();
    for (name, kind) in &families {
        let doc = docs.iter().find(|d| d.name == *name);
        let doc = doc.unwrap_or_else(|| panic!("{name} is not documented"));
        let documented = match doc.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        assert_eq!(*kind, documented, "{name}");
        let help = metrics.lines().any(|l| l.starts_with(&format!("# HELP {name} ")));
        assert!(help, "{name} has no help text");
    }
    // One of each part that a demo without a viewer must have moved already.
    for name in [
        "fanlight_build_info",
        "fanlight_process_resident_bytes",
        "fanlight_runtime_tasks",
        "fanlight_nodelink_links_opened_total",
        "fanlight_nodelink_heartbeats_total",
        "fanlight_nodelink_applies_total",
        "fanlight_control_calls_total",
        "fanlight_control_links_opened_total",
        "fanlight_control_placements_total",
        "fanlight_ingest_devices",
        "fanlight_ingest_adb_connects_opened_total",
        "fanlight_router_streams_wanted_total",
        "fanlight_router_shard_busy_permille",
    ] {
        assert!(families.iter().any(|(n, _)| *n == name), "{name} is missing:\n{metrics}");
    }
}

async fn answers_backends(demo: &Demo) {
    let grpc = format!("http://{}", demo.str("/grpc_addr"));
    let mut streams = StreamServiceClient::connect(grpc.clone()).await.unwrap();
    let list = streams.list_streams(ListStreamsRequest::default()).await.unwrap().into_inner();
    let mut names: Vec<String> = list.streams.into_iter().map(|s| s.name).collect();
    names.sort();
    assert_eq!(names, ["streams/phone-1", "streams/phone-2"]);
    let mut nodes = NodeServiceClient::connect(grpc).await.unwrap();
    let list = nodes.list_nodes(ListNodesRequest::default()).await.unwrap().into_inner();
    let mut names: Vec<String> = list.nodes.into_iter().map(|n| n.name).collect();
    names.sort();
    assert_eq!(names, ["nodes/router-1", "nodes/router-2", "nodes/worker-1"]);
}

async fn answers_viewers(demo: &Demo) {
    let url = demo.str("/whep_url");
    let options = demo.http.request(Method::OPTIONS, url).send().await.unwrap();
    assert!(options.status().is_success(), "{}", options.status());
    let offer = || demo.http.post(url).header("content-type", "application/sdp").body("v=0\r\n");
    assert_eq!(offer().send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let foreign = demo.str("/streams/1/join_token");
    let refused = offer().bearer_auth(foreign).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let refused = offer().bearer_auth(demo.str("/join_token")).send().await.unwrap();
    assert_eq!(
        refused.status(),
        StatusCode::BAD_REQUEST,
        "live, the token is good, the offer is not"
    );
}

#[tokio::test]
async fn a_page_on_all_addresses_names_routers_by_the_host_it_was_asked_by() {
    let mut demo = Demo::start("0.0.0.0:0", &["--size", "240x320", "--static"]).await;
    let page = demo.str("/page_url").to_owned();
    assert!(page.starts_with("http://127.0.0.1:"), "one that can be opened: {page}");
    assert!(demo.str("/whep_url").starts_with("http://127.0.0.1:"));
    let config = demo.http.get(format!("{page}config.json")).header("host", "demo.example:1");
    let config: Value = config.send().await.unwrap().json().await.unwrap();
    let url = config["streams"][0]["whep_url"].as_str().unwrap();
    assert!(url.starts_with("http://demo.example:"), "{url}");
    assert_eq!(demo.end("INT").await.0, Some(0));
}

#[tokio::test]
async fn a_taken_port_is_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let line = complaint(&["demo", "--listen", &addr]).await;
    assert_eq!(line, format!("fanlight: port in use: {addr} (the demo's page)"));
    let line = complaint(&["device-sim", "--adb-listen", &addr]).await;
    assert!(line.contains(&addr) && line.contains("in use"), "{line}");
}

#[tokio::test]
async fn an_unknown_key_is_one_clear_line_in_every_role() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fanlight.toml");
    std::fs::write(&file, "admin_lisen = '127.0.0.1:0'\n").unwrap();
    let path = file.to_str().unwrap();
    for role in ["router", "ingest", "control", "device-sim"] {
        let line = complaint(&[role, "--config", path]).await;
        let want = format!(
            "fanlight: configuration: admin_lisen (from {path}): unknown key; did you mean \
             \"admin_listen\"?"
        );
        assert_eq!(line, want, "{role}");
    }
}

#[tokio::test]
async fn check_says_yes_or_no_and_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    std::fs::write(&file, "admin_listen = 'nowhere'\n[log]\nfilter = 3\n").unwrap();
    for role in ["router", "ingest", "control", "device-sim"] {
        let good = output(&[role, "--check"]).await;
        assert_eq!(good.status.code(), Some(0), "{role}: {}", text(&good.stderr));
        assert!(good.stdout.is_empty() && good.stderr.is_empty(), "{role}");
        let bad = output(&[role, "--check", "--config", file.to_str().unwrap()]).await;
        assert_eq!(bad.status.code(), Some(1), "{role}");
        let err = text(&bad.stderr);
        assert!(err.contains("admin_listen") && err.contains("log.filter"), "{role}: {err}");
    }
}

#[tokio::test]
async fn what_print_config_shows_can_be_given_back() {
    let dir = tempfile::tempdir().unwrap();
    for role in ["router", "ingest", "control", "device-sim"] {
        let shown = output(&[role, "--admin-listen", "127.0.0.1:7", "--print-config"]).await;
        assert_eq!(shown.status.code(), Some(0), "{role}: {}", text(&shown.stderr));
        let shown = text(&shown.stdout);
        assert!(shown.contains("admin_listen = \"127.0.0.1:7\""), "{role}: {shown}");
        let file = dir.path().join("again.toml");
        std::fs::write(&file, &shown).unwrap();
        let again = output(&[role, "--config", file.to_str().unwrap(), "--print-config"]).await;
        assert_eq!(text(&again.stdout), shown, "{role}: {}", text(&again.stderr));
    }
}

#[tokio::test]
async fn the_environment_is_read_and_flags_go_over_it() {
    let run = |args: &'static [&'static str]| {
        let mut command = fanlight();
        command.args(args).env("FANLIGHT_LOG__FILTER", "error").env("FANLIGHT_FPS", "25");
        command.output()
    };
    let shown = text(&run(&["device-sim", "--print-config"]).await.unwrap().stdout);
    assert!(shown.contains("filter = \"error\"") && shown.contains("fps = 25"), "{shown}");
    let shown = text(&run(&["device-sim", "--fps", "50", "--print-config"]).await.unwrap().stdout);
    assert!(shown.contains("fps = 50"), "{shown}");
}

#[tokio::test]
async fn certificates_are_made_once_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, node) = (dir.path().join("ca"), dir.path().join("router-1"));
    let (ca, node) = (ca.to_str().unwrap(), node.to_str().unwrap());
    let issue = ["pki", "issue", "--dir", ca, "--node", "router-1", "--out", node];
    assert!(complaint(&issue).await.contains("holds no CA"));
    for _ in 0..2 {
        assert_eq!(output(&["pki", "init", "--dir", ca]).await.status.code(), Some(0));
    }
    assert_eq!(output(&issue).await.status.code(), Some(0));
    assert!(complaint(&issue).await.contains("already holds"));
    let identity = fanlight_ops::pki::NodeIdentity::load(Path::new(node)).unwrap();
    assert_eq!(identity.node().as_str(), "router-1");
}
