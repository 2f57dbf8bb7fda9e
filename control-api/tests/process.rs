//! The role as a process runs it: flags, configuration file, ready file, admin listener, end.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use clap::Parser;
use fanlight_control::{Args, run};
use fanlight_ops::shutdown::Shutdown;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(words: &[&str]) -> Args {
    let words = std::iter::once("control").chain(words.iter().copied());
    Cli::try_parse_from(words).unwrap().args
}

#[tokio::test]
async fn the_ready_file_names_what_was_bound_and_the_end_is_orderly() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let file = format!(
        "replica = \"c1\"\ngrpc_listen = \"127.0.0.1:0\"\nnode_listen = \"127.0.0.1:0\"\n\
         pki_dir = {:?}\ntoken_key_file = {:?}\nadmin_listen = \"127.0.0.1:1\"\n",
        at("pki"),
        at("token.pem"),
    );
    std::fs::write(at("control.toml"), file).unwrap();
    let flags = ["--config", &at("control.toml"), "--ready-json", &at("ready.json")];
    // A flag goes over the file.
    let admin = ["--admin-listen", "127.0.0.1:0"];
    let args = args(&[flags.as_slice(), admin.as_slice()].concat());
    let shutdown = Shutdown::new(Duration::from_secs(2));
    let process = tokio::spawn(run(args, shutdown.clone()));
    let ready = async {
        loop {
            if let Ok(text) = std::fs::read_to_string(at("ready.json")) {
                return serde_json::from_str::<serde_json::Value>(&text).unwrap();
            }
            assert!(!process.is_finished(), "ended before it was ready");
            tokio::task::yield_now().await;
        }
    };
    let ready = tokio::time::timeout(Duration::from_secs(10), ready).await.unwrap();
    let addr = |name: &str| ready[name].as_str().unwrap().to_owned();
    tokio::net::TcpStream::connect(addr("node_addr")).await.unwrap();
    let ready_page = get(&addr("admin_addr"), "/readyz").await;
    assert!(ready_page.starts_with("HTTP/1.1 200"), "{ready_page}");
    get(&addr("grpc_addr"), "/livez").await;
    let metrics = get(&addr("admin_addr"), "/metrics").await;
    assert!(metrics.contains("fanlight_process_resident_bytes"), "{metrics}");
    shutdown.trigger();
    process.await.unwrap().unwrap();
    shutdown.wait().await.unwrap();
}

async fn get(addr: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn an_unknown_key_and_a_public_bind_are_told_in_one_report() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("control.toml");
    std::fs::write(&file, "grpc_listen = \"0.0.0.0:0\"\n").unwrap();
    let shutdown = Shutdown::new(Duration::from_secs(1));
    let file = file.display().to_string();
    let error = run(args(&["--config", &file]), shutdown.clone()).await.unwrap_err().to_string();
    assert!(error.contains("allow_insecure"), "{error}");
    std::fs::write(&file, "grpc_listn = \"127.0.0.1:0\"\n").unwrap();
    let error = run(args(&["--config", &file]), shutdown).await.unwrap_err().to_string();
    assert!(error.contains("grpc_listn"), "{error}");
}
