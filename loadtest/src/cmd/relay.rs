//! `loadtest relay`: the bad network as a process, with a WHEP proxy in front of it, for viewers
//! that are not ours (browsers). It measures nothing. Invariant: it changes the candidates of
//! answers and nothing else.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::relay::{Impairment, Proxy, ProxyConfig, Relay};

/// Flags.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Where browsers post
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The router's WHEP listener, http://host:port
    #[arg(long, value_name = "URL")]
    upstream: String,
    /// Part of packets lost in each direction, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    loss_percent: f64,
    /// Round trip
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    rtt_ms: f64,
    /// Jitter in each direction
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    jitter_ms: f64,
    /// Part of packets that overtake others, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    reorder_percent: f64,
    /// Rate towards the viewers; 0: no limit
    #[arg(long, value_name = "BPS", default_value_t = 0)]
    bandwidth_bps: u64,
    /// Longest wait in that bottleneck's queue
    #[arg(long, value_name = "MS", default_value_t = 300.0)]
    queue_ms: f64,
    /// Decides which packets are lost
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the address that was bound to this file
    #[arg(long, value_name = "PATH")]
    ready_json: Option<PathBuf>,
}

/// Relays until the token is cancelled.
pub(super) async fn run(args: &Args, end: CancellationToken) -> anyhow::Result<()> {
    let up = Impairment {
        loss: args.loss_percent / 100.0,
        delay_ms: args.rtt_ms / 2.0,
        jitter_ms: args.jitter_ms,
        reorder: args.reorder_percent / 100.0,
        ..Impairment::default()
    };
    let down = Impairment { bandwidth_bps: args.bandwidth_bps, queue_ms: args.queue_ms, ..up };
    if let Some(mistake) = down.mistake() {
        anyhow::bail!("{mistake}");
    }
    let relay = Relay::start(up, down, args.seed)?;
    let upstream = args.upstream.clone();
    let proxy = Proxy::bind(ProxyConfig { listen: args.listen, upstream, relay }).await?;
    let url = format!("http://{}", proxy.address());
    if let Some(path) = &args.ready_json {
        let ready = json!({ "url": url });
        fanlight_ops::config::write_whole(path, &ready)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    tracing::info!(%url, "relay serves");
    proxy.serve(end).await
}
