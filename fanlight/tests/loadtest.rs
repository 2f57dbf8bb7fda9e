//! The experiments of `fanlight loadtest` as a person runs them: the real binary, its own child
//! processes, the files that a script reads. Small loads: what is checked is that each command
//! measures what it says and fails when it cannot, not how fast anything is.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    path::Path,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{process::Command, sync::Mutex};

/// Generous: the tests may share two cores with a compiler.
const LIMIT: Duration = Duration::from_secs(180);
/// One experiment at a time: each wants the machine for itself.
static ONE: Mutex<()> = Mutex::const_new(());

fn loadtest(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanlight"));
    command.kill_on_drop(true).stdin(Stdio::null()).arg("loadtest").args(args);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FANLIGHT_")) {
        command.env_remove(name);
    }
    command
}

async fn output(args: &[&str]) -> Output {
    let run = loadtest(args).output();
    tokio::time::timeout(LIMIT, run).await.expect("it goes on").unwrap()
}

/// Runs an experiment that has to succeed; gives its figures.
async fn figures(args: &[&str]) -> Value {
    let _one = ONE.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (json, jsonl, html) = (at("out.json"), at("out.jsonl"), at("out.html"));
    let files = ["--json", &json, "--jsonl", &jsonl, "--html", &html];
    let out = output(&[args, &files[..]].concat()).await;
    let (text, err) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(0), "{text}\n{err}");
    let figures: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(figures["command"], args[0]);
    for line in std::fs::read_to_string(&jsonl).unwrap().lines() {
        let sample: Value = serde_json::from_str(line).unwrap();
        assert!(sample["rss_bytes"].as_u64().unwrap() > 0, "{sample}");
    }
    assert!(std::fs::read_to_string(&html).unwrap().contains("<svg"));
    figures
}

/// Figures that scripts rely on, as numbers.
fn numbers(figures: &Value, names: &[&str]) {
    for name in names {
        assert!(figures[name].is_number(), "{name} in {figures:#}");
    }
}

#[tokio::test]
async fn fanout_verifies_every_packet_and_names_its_figures() {
    let args = ["fanout", "--viewers", "6", "--streams", "2", "--seconds", "3"];
    let figures = figures(&[&args[..], &["--allow-unmeasured"]].concat()).await;
    numbers(&figures, &["burst_us", "server_cpu_ns_per_packet", "server_rss_bytes_per_viewer"]);
    // On a machine that is busy elsewhere these may lie beyond the router's last bucket; then they
    // have to say so.
    for name in ["added_latency_us_p50", "added_latency_us_p99", "lease_holder_latency_us_p99"] {
        let named = figures["not_measured"].as_array().unwrap().contains(&name.into());
        assert_eq!(figures[name].is_number(), !named, "{name} in {figures:#}");
    }
    assert_eq!(figures["viewers"], 6);
    let expected = figures["packets_expected"].as_u64().unwrap();
    // Six viewers, three seconds, 60 pictures of at least four packets; half of that when busy.
    assert!(expected > 6 * 3 * 60 * 4 / 2, "{figures:#}");
    assert_eq!(figures["frames_corrupt"], 0, "{figures:#}");
    let lost = figures["packets_lost"].as_u64().unwrap();
    assert_eq!(figures["packets_verified"].as_u64().unwrap() + lost, expected);
    assert!(lost * 10 < expected, "{figures:#}");
    assert!(figures["feedbacks_sent"].as_u64().unwrap() > 0, "{figures:#}");
}

#[tokio::test]
async fn join_gives_times_and_the_cost_without_asking_the_encoder() {
    let args = ["join", "--joins", "12", "--rate", "20", "--cost-joins", "20"];
    let figures = figures(&args).await;
    numbers(
        &figures,
        &[
            "post_to_keyframe_ms_p50",
            "post_to_keyframe_ms_p95",
            "post_to_newest_ms_p95",
            "joins_per_server_cpu_s",
        ],
    );
    assert_eq!((&figures["joins"], &figures["failed"]), (&12.into(), &0.into()));
    assert_eq!(figures["encoder_keyframe_requests"], 0, "{figures:#}");
    let at = |name: &str| figures[name].as_f64().unwrap();
    assert!(at("post_to_answer_ms_p50") <= at("post_to_keyframe_ms_p50"));
    assert!(at("post_to_keyframe_ms_p50") <= at("post_to_newest_ms_p50"));
}

#[tokio::test]
async fn a_static_screen_can_be_joined() {
    let args = ["join", "--static", "--joins", "8", "--rate", "20", "--cost-joins", "0"];
    let figures = figures(&args).await;
    assert_eq!((&figures["joins"], &figures["failed"]), (&8.into(), &0.into()));
    assert_eq!(figures["encoder_keyframe_requests"], 0, "{figures:#}");
}

#[tokio::test]
async fn loss_is_really_lost_and_repairs_are_counted() {
    let args = ["loss", "--others", "2", "--lossy", "3", "--loss-percent", "5", "--seconds", "4"];
    let figures = figures(&args).await;
    numbers(
        &figures,
        &["frames_complete_ratio", "encoder_keyframe_requests", "other_viewers_latency_us_p99"],
    );
    let lost = figures["path_loss_percent"].as_f64().unwrap();
    assert!((3.0..7.0).contains(&lost), "{figures:#}");
    assert!(figures["packets_repaired"].as_u64().unwrap() > 20, "{figures:#}");
    assert!(figures["frames_complete_ratio"].as_f64().unwrap() > 0.9, "{figures:#}");
    assert_eq!(figures["frames_corrupt"], 0);
}

#[tokio::test]
async fn a_worker_behind_a_line_that_loses_brings_its_pictures_through() {
    let args = ["hop", "--loss-percent", "3", "--seconds", "4"];
    let figures = figures(&args).await;
    numbers(&figures, &["frames_on_time_ratio", "frame_ms_p50", "frame_ms_p99"]);
    assert!(figures["line_loss_percent"].as_f64().unwrap() > 0.5, "{figures:#}");
    assert!(figures["frames_published"].as_u64().unwrap() > 4 * 60 / 2, "{figures:#}");
    assert!(figures["frames_complete_ratio"].as_f64().unwrap() > 0.9, "{figures:#}");
    assert_eq!(figures["frames_undecodable"], 0, "{figures:#}");
    assert_eq!(figures["frames_corrupt"], 0, "{figures:#}");
}

#[tokio::test]
async fn a_worker_on_a_narrow_line_asks_its_device_for_less_and_breaks_no_picture() {
    let args = ["hop", "--loss-percent", "0", "--squeeze-bps", "2000000", "--seconds", "5"];
    let figures = figures(&args).await;
    assert!(figures["worker_bitrate_changes"].as_f64().unwrap() >= 1.0, "{figures:#}");
    assert!(figures["frames_complete_ratio"].as_f64().unwrap() > 0.5, "{figures:#}");
    assert_eq!(figures["frames_undecodable"], 0, "{figures:#}");
    assert_eq!(figures["frames_corrupt"], 0, "{figures:#}");
}

#[tokio::test]
async fn churn_leaves_nobody_behind() {
    let args = [
        "churn",
        "--allow-unmeasured",
        "--stayers",
        "3",
        "--rate",
        "5",
        "--hold",
        "1",
        "--seconds",
        "5",
    ];
    let figures = figures(&args).await;
    numbers(&figures, &["memory_growth_bytes_per_hour", "packets_lost", "vanished"]);
    assert_eq!((&figures["joins"], &figures["failed"]), (&25.into(), &0.into()));
    assert_eq!(figures["viewers_left_over"], 0);
    assert_eq!(figures["sessions_left_over"], 0);
}

#[tokio::test]
async fn clicks_arrive_once_each() {
    let args = ["clicks", "--allow-unmeasured", "--viewers", "3", "--seconds", "3"];
    let figures = figures(&args).await;
    numbers(&figures, &["click_latency_us_p50", "click_latency_us_p99"]);
    assert_eq!(figures["clicks_sent"], 60);
    assert_eq!((&figures["clicks_lost"], &figures["clicks_unknown"]), (&0.into(), &0.into()));
}

#[tokio::test]
async fn hostile_viewers_do_not_reach_the_others() {
    let args = ["abuse", "--others", "3", "--hostile", "2", "--seconds", "2"];
    let kinds = ["--kind", "nack-flood", "--kind", "forged-rtcp", "--kind", "stun-flood"];
    let figures = figures(&[&args[..], &kinds[..]].concat()).await;
    for kind in ["nack_flood", "forged_rtcp", "stun_flood"] {
        numbers(&figures, &[&format!("{kind}_other_viewers_latency_us_p99")]);
        let kind = &figures["kinds"][kind];
        assert!(kind["hostile_packets_sent"].as_u64().unwrap() > 500, "{kind:#}");
    }
    assert_eq!(figures["viewer_panics"], 0);
}

#[tokio::test]
async fn control_counts_calls_and_times_them_from_when_they_were_due() {
    let small = ["--streams", "20", "--routers", "4", "--workers", "2"];
    let args = ["control", "--seconds", "1", "--rate", "200"];
    let figures = figures(&[&args[..], &small[..]].concat()).await;
    numbers(
        &figures,
        &["create_viewer_per_s", "create_viewer_server_cpu_us", "stream_pairs_per_s"],
    );
    numbers(&figures, &["latency_ms_p50", "latency_ms_p99", "server_rss_bytes"]);
    assert_eq!((&figures["errors"], &figures["panics"]), (&0.into(), &0.into()));
    // Two nodes hold each stream.
    assert_eq!(figures["work_held_by_nodes"], 40, "{figures:#}");
    let reached = figures["rate_reached_per_s"].as_f64().unwrap();
    assert!((150.0..=250.0).contains(&reached), "{figures:#}");
}

#[tokio::test]
async fn chaos_tells_what_people_saw_of_a_lost_control_api_and_a_lost_origin() {
    let small = ["--viewers", "6", "--devices", "2", "--workers", "1", "--routers", "2"];
    let slow = ["--fps", "10", "--bitrate-bps", "200000", "--observe-seconds", "30"];
    let args = ["chaos", "--faults", "control_kill,origin_kill"];
    let figures = figures(&[&args[..], &small[..], &slow[..]].concat()).await;
    for fault in ["control_kill", "origin_kill"] {
        numbers(
            &figures,
            &[&format!("{fault}_freeze_ms_max"), &format!("{fault}_steady_after_ms")],
        );
        assert_eq!(figures[format!("{fault}_viewers_lost")], 0, "{figures:#}");
    }
    assert_eq!(figures["dual_origin_intervals"], 0, "{figures:#}");
    assert_eq!((&figures["frames_corrupt"], &figures["panics"]), (&0.into(), &0.into()));
    let rejoins = |n: usize| figures["outcomes"][n]["rejoins"].as_u64().unwrap();
    assert!(rejoins(1) > 0, "somebody watched the origin that died: {figures:#}");
}

#[tokio::test]
async fn what_cannot_be_started_or_read_is_one_clear_line() {
    let _one = ONE.lock().await;
    for (args, word) in [
        (&["fanout", "--source", "/nowhere.h264"][..], "/nowhere.h264"),
        (&["fanout", "--server-exe", "/nowhere/fanlight"][..], "/nowhere/fanlight"),
        (&["fanout", "--server-exe", "/bin/false"][..], "control"),
        (&["loss", "--loss-percent", "200"][..], "loss"),
        (&["fanout", "--bitrate-bps", "1"][..], "bit rate"),
        (&["chaos", "--faults", "redis_kill"][..], "redis://"),
        (&["chaos", "--controls", "2"][..], "store"),
    ] {
        let out = output(args).await;
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {err}");
        assert!(err.contains(word), "{args:?}: {err}");
    }
}

#[tokio::test]
async fn the_relay_says_where_it_is_and_ends_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let ready = dir.path().join("ready.json");
    let args = ["relay", "--upstream", "http://127.0.0.1:9", "--loss-percent", "1"];
    let mut command = loadtest(&args);
    let mut child = command.arg("--ready-json").arg(&ready).spawn().unwrap();
    let url = ready_url(&ready, &mut child).await;
    let answer = reqwest::get(format!("{url}/whep/x")).await.unwrap();
    assert_eq!(answer.status(), 502, "there is no router behind it");
    let counts: Value =
        reqwest::get(format!("{url}/-/counts")).await.unwrap().json().await.unwrap();
    assert_eq!(counts, serde_json::json!([]));
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    let ended = tokio::time::timeout(LIMIT, child.wait()).await.expect("it goes on");
    assert_eq!(ended.unwrap().code(), Some(0));
}

async fn ready_url(path: &Path, child: &mut tokio::process::Child) -> String {
    let deadline = Instant::now() + LIMIT;
    while !path.exists() {
        assert!(Instant::now() < deadline, "not ready in {LIMIT:?}");
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it was ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ready: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    ready["url"].as_str().unwrap().to_owned()
}
