//! One control API on a CPU of its own, its store, a fake fleet, live streams. Not the calls that
//! are measured. Invariant: when it has started, every stream has an origin and nobody watches.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use fanlight_ops::{pki::Ca, shutdown::Shutdown};

use super::Args;
use crate::{
    backend::Backend,
    fake::{FakeFleet, FakeFleetConfig},
    server::{Child, Launch, Memory, Pins, Redis, Usage, address},
};

/// Time that tasks of the fake fleet have to end.
const END: Duration = Duration::from_secs(2);

/// The system under test and what stands around it.
pub(super) struct Setup {
    pub(super) control: Child,
    pub(super) grpc: SocketAddr,
    /// Streams that viewers are created in.
    pub(super) streams: Vec<String>,
    /// Devices without a stream, for those that come and go.
    pub(super) spare: Vec<String>,
    pub(super) fakes: FakeFleet,
    redis: Option<Redis>,
    shutdown: Shutdown,
    _dir: tempfile::TempDir,
}

impl Setup {
    pub(super) async fn start(args: &Args, pins: &Pins) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("fanlight-loadtest-").tempdir()?;
        let (url, redis) = store(args, pins, dir.path().join("redis")).await?;
        let executable = match &args.server_exe {
            Some(file) => file.clone(),
            None => std::env::current_exe().context("this executable's own path")?,
        };
        let pki = dir.path().join("pki");
        let ca = Ca::load_or_create(&pki)?;
        let flag = |name: &str, value: &str| [name.into(), value.into()];
        let mut arguments = Vec::new();
        arguments.extend(flag("--grpc-listen", "127.0.0.1:0"));
        arguments.extend(flag("--node-listen", "127.0.0.1:0"));
        arguments.extend(flag("--store", &url));
        arguments.extend(["--pki-dir".into(), pki.into()]);
        arguments.extend(["--token-key-file".into(), dir.path().join("token.pem").into()]);
        let control = Child::launch(&Launch {
            executable,
            role: "control",
            name: "control".to_owned(),
            dir: dir.path().to_owned(),
            args: arguments,
            cpus: pins.server.clone(),
        })?;
        let ready = control.ready().await?;
        let (grpc, node) = (address(&ready, "grpc_addr")?, address(&ready, "node_addr")?);
        let names = |kind: &str, n: usize| (0..n).map(|i| format!("{kind}-{i}")).collect();
        let streams: Vec<String> = names("load", args.streams);
        let spare: Vec<String> = names("spare", args.at_once());
        let shutdown = Shutdown::new(END);
        let fleet = FakeFleetConfig {
            endpoints: vec![format!("https://{node}")],
            routers: args.routers,
            workers: args.workers,
            devices: streams.iter().chain(&spare).cloned().collect(),
        };
        let fakes = FakeFleet::link(&fleet, &ca, &shutdown).await?;
        let backend = Backend::connect(grpc).await?;
        backend.streams(&streams).await.with_context(|| control.epitaph())?;
        Ok(Self { control, grpc, streams, spare, fakes, redis, shutdown, _dir: dir })
    }

    /// CPU and memory of the control API, with that of the store's process if there is one.
    pub(super) fn usage(&self) -> anyhow::Result<(Usage, Memory)> {
        let pid = self.control.pid();
        Usage::of(pid).zip(Memory::of(pid)).with_context(|| self.control.epitaph())
    }

    /// CPU time of the store's own process.
    pub(super) fn store_cpu(&self) -> Option<Duration> {
        Some(Usage::of(self.redis.as_ref()?.pid())?.cpu)
    }

    pub(super) async fn stop(self) {
        self.shutdown.trigger();
        let _ = self.shutdown.wait().await;
        self.control.stop().await;
    }
}

/// The store's address, and its process where it is one of ours.
async fn store(args: &Args, pins: &Pins, dir: PathBuf) -> anyhow::Result<(String, Option<Redis>)> {
    if args.store != "redis://" {
        return Ok((args.store.clone(), None));
    }
    // Beside the load, so that the control API has its CPU for itself.
    let redis = Redis::start(dir, &pins.load).await?;
    Ok((redis.url(), Some(redis)))
}
