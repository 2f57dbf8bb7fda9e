//! Test bench: a simulated device over real ADB, the worker, and a small router made of quinn and
//! the wire crate. Not the product's router: it only checks what the worker sends.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod router;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use fanlight_device_sim::{
    ScrcpyVersion, SimConfig, Simulator, config::ScreenSize, placeholder_jar,
};
use fanlight_ingest::{DeviceConfig, IngestConfig, Worker};
use fanlight_ops::{
    pki::{Ca, NodeIdentity},
    shutdown::Shutdown,
};
use fanlight_proto::{
    id::NodeId,
    node::v1::{Apply, IngestRole, Want, want::Role},
    types::v1::{Assignment, NodeAddresses, NodeRef},
};

pub const DEADLINE: Duration = Duration::from_secs(20);

/// Certificates, a folder for jars, one worker.
pub struct Bench {
    pub ca: Ca,
    pub dir: tempfile::TempDir,
    pub shutdown: Shutdown,
    version: u64,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            ca: Ca::generate().unwrap(),
            dir: tempfile::tempdir().unwrap(),
            shutdown: Shutdown::new(Duration::from_secs(5)),
            version: 0,
        }
    }

    pub fn identity(&self, node: &str) -> NodeIdentity {
        let node = NodeId::parse(node).unwrap();
        NodeIdentity::from_pem(self.ca.issue_node(&node, &[]).unwrap()).unwrap()
    }

    pub fn jar(&self, version: &str) -> PathBuf {
        let path = self.dir.path().join(format!("server-{version}.jar"));
        std::fs::write(&path, placeholder_jar(ScrcpyVersion::parse(version).unwrap())).unwrap();
        path
    }

    pub fn device(&self, id: &str, adb: SocketAddr, version: &str) -> DeviceConfig {
        DeviceConfig {
            device: id.to_owned(),
            adb: Some(adb.to_string()),
            server_jar: Some(self.jar(version)),
            server_version: version.to_owned(),
            allow_placeholder_server: true,
            ..DeviceConfig::default()
        }
    }

    pub async fn worker(&self, devices: Vec<DeviceConfig>) -> Worker {
        let config = IngestConfig { devices, ..IngestConfig::default() };
        let identity = self.identity("worker-1");
        Worker::start_as(config, identity, 1, &self.shutdown).await.unwrap()
    }

    /// Tells the worker to publish these devices to the router, all under this epoch.
    pub fn want(&mut self, worker: &Worker, router: SocketAddr, epoch: u64, devices: &[&str]) {
        self.version += 1;
        let wants = devices.iter().map(|d| want(d, router, epoch)).collect();
        let apply = Apply { full: true, want_version: self.version, wants, stops: Vec::new() };
        let ack = worker.fleet().take(apply);
        assert!(ack.refusals.is_empty(), "{ack:?}");
    }

    pub async fn end(self) {
        self.shutdown.trigger();
        self.shutdown.wait().await.unwrap();
    }
}

pub fn token(device: &str) -> Vec<u8> {
    format!("token of {device}").into_bytes()
}

fn want(device: &str, router: SocketAddr, epoch: u64) -> Want {
    let origin = NodeAddresses { quic: vec![router.to_string()], ..NodeAddresses::default() };
    let role = IngestRole {
        device: format!("devices/{device}"),
        origin: Some(origin),
        push_token: token(device),
        ..IngestRole::default()
    };
    Want {
        assignment: Some(Assignment {
            stream: format!("streams/{device}"),
            epoch,
            origin: Some(NodeRef { node: "nodes/router-1".into(), incarnation: 1 }),
        }),
        role: Some(Role::Ingest(role)),
    }
}

/// A small simulated device: little to draw and to encode.
pub fn small() -> SimConfig {
    SimConfig { size: ScreenSize(320, 480), fps: 30, ..SimConfig::on_free_port() }
}

pub async fn simulator(config: SimConfig) -> Simulator {
    Simulator::start(config).await.unwrap()
}

/// Waits for a condition that some event will make true; the interval only bounds how late it is
/// noticed.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn exists(path: &Path) -> bool {
    path.exists()
}
