//! What goes wrong, by name: one fault at a time is put into the town, lasts for a while, and is
//! taken away again, as a supervisor or an operator would. Not what comes of it. Invariant: when a
//! fault is over, every process runs and every wire is whole.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use rustix::process::Signal;

use super::town::Town;
use crate::backend::Backend;

/// How soon a supervisor starts again what ended.
const SUPERVISOR: Duration = Duration::from_secs(1);
/// How long a dead router or control replica stays away.
const AWAY: Duration = Duration::from_secs(4);
/// How long what is stopped or cut off stays so.
const HELD: Duration = Duration::from_secs(5);
/// Longest wait for a word of the control API.
const ASK: Duration = Duration::from_secs(3);

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Fault {
    /// A control replica is killed, and started again after four seconds
    ControlKill,
    /// An ingest worker is killed, and started again after a second
    WorkerKill,
    /// The router that most streams go to is killed, and started again after four seconds
    OriginKill,
    /// The same router is stopped (SIGSTOP) for five seconds
    RouterStop,
    /// The same router is cut off from the control API alone for five seconds
    PartitionControl,
    /// The same router is cut off from the ingest workers alone for five seconds
    PartitionHop,
    /// The same router is told to end (SIGTERM), and started again
    Drain,
    /// All routers are told to end and started again, one after the other
    RollingRestart,
    /// Redis is killed, and started again after a second with what it wrote
    RedisKill,
    /// Redis is stopped (SIGSTOP) for five seconds
    RedisStop,
    /// Redis loses everything (FLUSHALL)
    RedisFlush,
}

impl Fault {
    /// All of them, in the order in which they are tried.
    pub(super) const ALL: [Self; 11] = [
        Self::ControlKill,
        Self::WorkerKill,
        Self::OriginKill,
        Self::RouterStop,
        Self::PartitionControl,
        Self::PartitionHop,
        Self::Drain,
        Self::RollingRestart,
        Self::RedisKill,
        Self::RedisStop,
        Self::RedisFlush,
    ];

    /// As on the command line and in figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ControlKill => "control_kill",
            Self::WorkerKill => "worker_kill",
            Self::OriginKill => "origin_kill",
            Self::RouterStop => "router_stop",
            Self::PartitionControl => "partition_control",
            Self::PartitionHop => "partition_hop",
            Self::Drain => "drain",
            Self::RollingRestart => "rolling_restart",
            Self::RedisKill => "redis_kill",
            Self::RedisStop => "redis_stop",
            Self::RedisFlush => "redis_flush",
        }
    }

    /// Whether it is one of Redis.
    pub(super) fn needs_redis(self) -> bool {
        matches!(self, Self::RedisKill | Self::RedisStop | Self::RedisFlush)
    }
}

/// Lets a fault happen, from its first moment to the last.
pub(super) async fn strike(
    fault: Fault,
    town: &mut Town,
    backends: &[Backend],
) -> anyhow::Result<()> {
    match fault {
        Fault::ControlKill => control_kill(town, backends).await,
        Fault::WorkerKill => {
            let worker = town.workers.first_mut().context("there is no worker")?;
            worker.kill().await;
            tokio::time::sleep(SUPERVISOR).await;
            worker.restart().await
        }
        Fault::RollingRestart => {
            for router in &mut town.routers {
                router.service.drain().await;
                router.service.restart().await?;
                tokio::time::sleep(SUPERVISOR).await;
            }
            Ok(())
        }
        Fault::RedisKill | Fault::RedisStop | Fault::RedisFlush => redis(fault, town).await,
        Fault::OriginKill
        | Fault::RouterStop
        | Fault::PartitionControl
        | Fault::PartitionHop
        | Fault::Drain => router(fault, town, backends).await,
    }
}

async fn control_kill(town: &mut Town, backends: &[Backend]) -> anyhow::Result<()> {
    let forgets = town.redis.is_none();
    let names = town.names.clone();
    let replica = town.controls.first_mut().context("there is no control API")?;
    replica.service.kill().await;
    tokio::time::sleep(AWAY).await;
    replica.service.restart().await?;
    // What kept its state in memory knows nothing; its backend creates the streams anew.
    if forgets && let Some(backend) = backends.first() {
        backend.streams(&names).await.context("streams after the restart")?;
    }
    Ok(())
}

async fn redis(fault: Fault, town: &mut Town) -> anyhow::Result<()> {
    let redis = town.redis.as_mut().context("there is no Redis of ours")?;
    match fault {
        Fault::RedisStop => {
            redis.signal(Signal::STOP);
            tokio::time::sleep(HELD).await;
            redis.signal(Signal::CONT);
        }
        Fault::RedisFlush => {
            let answer = redis.say("FLUSHALL").await?;
            anyhow::ensure!(answer == "+OK", "FLUSHALL: {answer}");
        }
        _ => {
            redis.kill().await?;
            tokio::time::sleep(SUPERVISOR).await;
            redis.restart().await?;
        }
    }
    Ok(())
}

async fn router(fault: Fault, town: &mut Town, backends: &[Backend]) -> anyhow::Result<()> {
    let busiest = busiest(town, backends).await?;
    let router = town.router(&busiest).with_context(|| format!("no router {busiest}"))?;
    tracing::info!(fault = fault.name(), router = busiest, "strikes");
    match fault {
        Fault::RouterStop => {
            router.service.signal(Signal::STOP);
            tokio::time::sleep(HELD).await;
            router.service.signal(Signal::CONT);
        }
        Fault::PartitionControl => {
            router.to_control.iter().for_each(|wire| wire.cut(true));
            tokio::time::sleep(HELD).await;
            router.to_control.iter().for_each(|wire| wire.cut(false));
        }
        Fault::PartitionHop => {
            router.hop.cut(true);
            tokio::time::sleep(HELD).await;
            router.hop.cut(false);
        }
        Fault::Drain => {
            router.service.drain().await;
            tokio::time::sleep(SUPERVISOR).await;
            router.service.restart().await?;
        }
        _ => {
            router.service.kill().await;
            tokio::time::sleep(AWAY).await;
            router.service.restart().await?;
        }
    }
    Ok(())
}

/// The router that is the origin of most streams.
async fn busiest(town: &Town, backends: &[Backend]) -> anyhow::Result<String> {
    let mut origins: BTreeMap<String, usize> = BTreeMap::new();
    let backend = backends.first().context("there is no control API")?;
    for name in &town.names {
        let (_, origin) = backend.origin(name, ASK).await?;
        *origins.entry(origin.context("a stream has no origin")?).or_default() += 1;
    }
    let most = origins.into_iter().max_by_key(|(_, streams)| *streams);
    Ok(most.context("there is no stream")?.0)
}
