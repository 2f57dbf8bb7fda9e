//! `fanlight demo`: the whole system in one process on embedded defaults. Not a way to run a fleet:
//! tokens are reusable and nothing is kept. Invariant: every part talks to the others as it would
//! over a network (ADB over TCP, gRPC with mTLS, QUIC, WHEP), so what works here works apart.

#![allow(clippy::print_stdout, reason = "tells a person which address to open")]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use fanlight_control::{ControlApi, ControlConfig};
use fanlight_device_sim::{SimConfig, Simulator, config::ScreenSize, placeholder_jar};
use fanlight_ingest::{
    IngestConfig, Worker,
    config::{DeviceConfig, SourceKind},
};
use fanlight_ops::{
    admin::{Admin, AdminServer, Drain, Readiness, bind_tcp},
    config::write_whole,
    log::{self, LogConfig},
    metrics::Metrics,
    pki::{Ca, NodeCert, NodeIdentity},
    process,
    shutdown::Shutdown,
};
use fanlight_proto::{
    claims::Role,
    control::v1::{
        CreateStreamRequest, GetStreamRequest, Stream, stream_service_client::StreamServiceClient,
    },
    id::{DeviceId, NodeId, StreamId},
    types::v1::StreamState,
};
use fanlight_router::{Router, RouterConfig};
use serde::Serialize;

use crate::page::{self, PageConfig, PageStream};

/// The scrcpy version that the demo's devices play.
const SERVER_VERSION: &str = "4.1";
/// Time in which all devices must be online and their streams live.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Flags of `fanlight demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where the page is served; 0.0.0.0 makes it reachable from other machines
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Number of simulated devices
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub devices: u8,
    /// Number of routers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub routers: u8,
    /// Write one JSON object with all addresses to this file when everything serves
    #[arg(long, value_name = "PATH")]
    pub ready_json: Option<PathBuf>,
    /// Size of the devices' screens
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "720x1280")]
    pub size: ScreenSize,
    /// Pictures per second
    #[arg(long, default_value_t = 30)]
    pub fps: u32,
    /// Bitrate of the devices' encoders, bit/s
    #[arg(long, value_name = "BPS", default_value_t = 4_000_000)]
    pub bitrate_bps: u32,
    /// Devices replay this Annex-B H.264 file in place of drawing
    #[arg(long, value_name = "FILE")]
    pub video: Option<PathBuf>,
    /// Nothing moves by itself on the screens
    #[arg(long = "static")]
    pub static_screen: bool,
    /// Turn the devices this often, in seconds
    #[arg(long, value_name = "SECONDS")]
    pub rotate_every: Option<u64>,
    /// Append every input that the first device gets to this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    pub input_log: Option<PathBuf>,
    /// Capture with screenrecord in place of the scrcpy server
    #[arg(long)]
    pub screenrecord: bool,
    /// Log filter, for example info or fanlight_router=debug
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    pub log: String,
}

/// What the ready file holds.
#[derive(Debug, Serialize)]
struct Ready {
    page_url: String,
    /// WHEP endpoint of the first stream.
    whep_url: String,
    /// Reusable; may control.
    join_token: String,
    /// Reusable; may only watch.
    observer_token: String,
    grpc_addr: String,
    metrics_url: String,
    admin_url: String,
    streams: Vec<ReadyStream>,
    routers: Vec<ReadyRouter>,
}

#[derive(Debug, Serialize)]
struct ReadyStream {
    name: String,
    whep_url: String,
    /// With the address as it was bound, which the page turns into one that its reader can reach.
    #[serde(skip)]
    bound_whep_url: String,
    join_token: String,
    adb_addr: String,
    input_log: PathBuf,
}

#[derive(Debug, Serialize)]
struct ReadyRouter {
    node: String,
    whep_addr: String,
    quic_addr: String,
    ice_addrs: Vec<String>,
}

/// A simulated device and what the demo knows of it.
struct Phone {
    simulator: Simulator,
    device: DeviceId,
    input_log: PathBuf,
}

/// Runs the demo until the shutdown is triggered.
///
/// # Errors
/// A port in use, a clip that cannot be read, a part that does not come up in time.
pub async fn run(args: Args, shutdown: Shutdown) -> anyhow::Result<()> {
    process::started_unix_us();
    let log = log::init(&LogConfig { filter: args.log.clone(), ..LogConfig::default() });
    // The port a person chose first: if it is taken, nothing else has happened yet.
    let page_listener = bind_tcp("the demo's page", args.listen).await?;
    let page_addr = page_listener.local_addr()?;
    // Everything that touches the disk lies here and is gone at the end.
    let state = tempfile::Builder::new()
        .prefix("fanlight-demo-")
        .tempdir()
        .context("cannot make a temporary folder")?;

    let readiness = Readiness::new();
    readiness.set("demo", false, "starting");
    let drain = Drain::new();
    let admin = Admin {
        metrics: Metrics::install(),
        readiness: readiness.clone(),
        log,
        drain: drain.clone(),
    };
    let mut admin = AdminServer::bind(loopback(), admin).await?;
    let admin_addr = admin.addr();

    let control = start_control(state.path(), &shutdown).await?;
    let ca = control.ca().context("the demo's control API has no CA")?;
    let endpoint = format!("https://{}", control.node_addr());
    let routers = start_routers(&args, ca, &endpoint, &readiness, &shutdown).await?;
    if let Some((_, first)) = routers.first() {
        admin = admin.with_routes(first.admin_routes());
    }
    shutdown.spawn("admin listener", admin.run(shutdown.token()));
    let phones = start_phones(&args, state.path()).await?;
    let worker = start_worker(&args, &phones, ca, &endpoint, state.path(), &shutdown).await?;
    let streams = create_streams(&control, &phones, &routers, &shutdown).await?;

    let ready = Ready {
        page_url: format!("http://{}/", shown(page_addr)),
        whep_url: streams.first().map(|s| s.whep_url.clone()).unwrap_or_default(),
        join_token: streams.first().map(|s| s.join_token.clone()).unwrap_or_default(),
        observer_token: control.mint_demo_token(&stream_of(&phones[0].device)?, Role::Observer)?,
        grpc_addr: control.grpc_addr().to_string(),
        metrics_url: format!("http://{admin_addr}/metrics"),
        admin_url: format!("http://{admin_addr}"),
        routers: routers.iter().map(ready_router).collect(),
        streams,
    };
    let config = PageConfig {
        title: "Fanlight".to_owned(),
        streams: ready.streams.iter().map(page_stream).collect(),
    };
    shutdown.spawn("page", page::serve(page_listener, config, shutdown.token()));
    readiness.set("demo", true, "");
    announce(&ready, args.ready_json.as_deref())?;

    tokio::select! {
        () = shutdown.triggered() => {}
        () = drain.started() => {
            routers.iter().for_each(|(_, router)| router.drain());
            shutdown.triggered().await;
        }
    }
    readiness.set("demo", false, "stopping");
    // From the device inwards: no part waits for one that is gone.
    drop(worker);
    for phone in phones {
        phone.simulator.stop().await;
    }
    Ok(())
}

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// An address that a browser on this machine can open.
fn shown(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, addr.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            (std::net::Ipv6Addr::LOCALHOST, addr.port()).into()
        }
        _ => addr,
    }
}

async fn start_control(state: &Path, shutdown: &Shutdown) -> anyhow::Result<ControlApi> {
    let config = ControlConfig {
        grpc_listen: loopback(),
        node_listen: loopback(),
        pki_dir: state.join("pki"),
        token_key_file: state.join("token.pem"),
        demo: true,
        ..ControlConfig::default()
    };
    ControlApi::start(config, shutdown).await.context("control API")
}

fn identity(ca: &Ca, node: &str) -> anyhow::Result<NodeIdentity> {
    let cert: NodeCert = ca.issue_node(&NodeId::parse(node)?, &[])?;
    Ok(NodeIdentity::from_pem(cert)?)
}

async fn start_routers(
    args: &Args,
    ca: &Ca,
    endpoint: &str,
    readiness: &Readiness,
    shutdown: &Shutdown,
) -> anyhow::Result<Vec<(String, Router)>> {
    let mut routers = Vec::new();
    for n in 1..=args.routers {
        let node = format!("router-{n}");
        let mut config = RouterConfig {
            node: node.clone(),
            listen_http: (args.listen.ip(), 0).into(),
            quic_listen: loopback(),
            control_endpoints: vec![endpoint.to_owned()],
            ..RouterConfig::default()
        };
        config.ice.bind = args.listen.ip();
        let identity = identity(ca, &node)?;
        let router = Router::start_with(config, identity, readiness.clone(), shutdown).await?;
        routers.push((node, router));
    }
    Ok(routers)
}

async fn start_phones(args: &Args, state: &Path) -> anyhow::Result<Vec<Phone>> {
    // The other parts describe their metrics themselves.
    Metrics::install().describe(fanlight_device_sim::metrics::METRICS);
    let mut phones = Vec::new();
    for n in 1..=args.devices {
        let chosen = args.input_log.clone().filter(|_| n == 1);
        let input_log = chosen.unwrap_or_else(|| state.join(format!("input-{n}.jsonl")));
        let config = SimConfig {
            size: args.size,
            fps: args.fps,
            bitrate_bps: args.bitrate_bps,
            video: args.video.clone(),
            static_screen: args.static_screen,
            rotate_every_ms: args.rotate_every.map(|s| s * 1000),
            serial: format!("FANLIGHT{n:04}"),
            input_log: Some(input_log.clone()),
            ..SimConfig::on_free_port()
        };
        let simulator = Simulator::start(config).await.context("simulated device")?;
        phones.push(Phone {
            simulator,
            device: DeviceId::parse(&format!("phone-{n}"))?,
            input_log,
        });
    }
    Ok(phones)
}

async fn start_worker(
    args: &Args,
    phones: &[Phone],
    ca: &Ca,
    endpoint: &str,
    state: &Path,
    shutdown: &Shutdown,
) -> anyhow::Result<Worker> {
    let version = fanlight_device_sim::ScrcpyVersion::parse(SERVER_VERSION)
        .context("the demo's scrcpy version is not known")?;
    let jar = state.join("scrcpy-server");
    std::fs::write(&jar, placeholder_jar(version)).context("cannot write the server file")?;
    let device = |phone: &Phone| DeviceConfig {
        device: phone.device.to_string(),
        adb: Some(phone.simulator.adb_addr().to_string()),
        source: if args.screenrecord { SourceKind::Screenrecord } else { SourceKind::Scrcpy },
        server_jar: Some(jar.clone()),
        server_version: SERVER_VERSION.to_owned(),
        allow_placeholder_server: true,
        max_fps: args.fps,
        bitrate_bps: args.bitrate_bps.into(),
        ..DeviceConfig::default()
    };
    let config = IngestConfig {
        control: vec![endpoint.to_owned()],
        devices: phones.iter().map(device).collect(),
        ..IngestConfig::default()
    };
    let identity = identity(ca, "worker-1")?;
    Worker::start_as(config, identity, process::started_unix_us(), shutdown).await
}

fn stream_of(device: &DeviceId) -> anyhow::Result<StreamId> {
    Ok(StreamId::parse(device.as_str())?)
}

/// Creates one stream per device, as a backend would, and waits until each is live: whoever reads
/// the ready file may join at once.
async fn create_streams(
    control: &ControlApi,
    phones: &[Phone],
    routers: &[(String, Router)],
    shutdown: &Shutdown,
) -> anyhow::Result<Vec<ReadyStream>> {
    let endpoint = format!("http://{}", control.grpc_addr());
    let mut client = StreamServiceClient::connect(endpoint).await.context("control API")?;
    let bring_up = async {
        // All of them first: devices come up beside each other.
        for phone in phones {
            create_stream(&mut client, &phone.device).await?;
        }
        let mut ready = Vec::new();
        for phone in phones {
            let live = live_stream(&mut client, &stream_of(&phone.device)?).await?;
            ready.push(ready_stream(control, phone, &live, routers)?);
        }
        Ok(ready)
    };
    tokio::select! {
        ready = tokio::time::timeout(START_TIMEOUT, bring_up) =>
            ready.with_context(|| format!("no picture of every device in {START_TIMEOUT:?}"))?,
        () = shutdown.triggered() => anyhow::bail!("stopped before the demo was ready"),
    }
}

fn ready_stream(
    control: &ControlApi,
    phone: &Phone,
    live: &Stream,
    routers: &[(String, Router)],
) -> anyhow::Result<ReadyStream> {
    let stream = StreamId::from_resource_name(&live.name)?;
    let origin = live.assignment.as_ref().and_then(|a| a.origin.as_ref());
    let origin = origin.map(|o| o.node.as_str()).unwrap_or_default();
    let (_, router) = routers
        .iter()
        .find(|(node, _)| origin == format!("nodes/{node}"))
        .with_context(|| format!("stream {stream} was placed on {origin:?}"))?;
    Ok(ReadyStream {
        name: live.name.clone(),
        whep_url: format!("http://{}/whep/{stream}", shown(router.whep_addr())),
        bound_whep_url: format!("http://{}/whep/{stream}", router.whep_addr()),
        join_token: control.mint_demo_token(&stream, Role::Controller)?,
        adb_addr: phone.simulator.adb_addr().to_string(),
        input_log: phone.input_log.clone(),
    })
}

/// The stream once its origin gets media.
async fn live_stream(
    client: &mut StreamServiceClient<tonic::transport::Channel>,
    stream: &StreamId,
) -> anyhow::Result<Stream> {
    let mut every = tokio::time::interval(Duration::from_millis(50));
    loop {
        every.tick().await;
        let request = GetStreamRequest { name: stream.resource_name() };
        let found = client.get_stream(request).await.context("GetStream")?.into_inner();
        if found.state() == StreamState::Live {
            return Ok(found);
        }
    }
}

/// Creates a stream: a call that finds no node yet is repeated until nodes have linked.
async fn create_stream(
    client: &mut StreamServiceClient<tonic::transport::Channel>,
    device: &DeviceId,
) -> anyhow::Result<Stream> {
    let mut every = tokio::time::interval(Duration::from_millis(100));
    loop {
        every.tick().await;
        let stream = Stream { device: device.resource_name(), ..Stream::default() };
        let request = CreateStreamRequest {
            stream_id: device.to_string(),
            stream: Some(stream),
            ..CreateStreamRequest::default()
        };
        match client.create_stream(request).await {
            Ok(created) => return Ok(created.into_inner()),
            // Nodes have not linked, or the device is not reached yet.
            Err(status) if is_early(&status) => {
                tracing::debug!(%status, %device, "not yet");
            }
            Err(status) => return Err(anyhow::Error::new(status).context("CreateStream")),
        }
    }
}

fn is_early(status: &tonic::Status) -> bool {
    use tonic::Code;
    matches!(
        status.code(),
        Code::FailedPrecondition | Code::ResourceExhausted | Code::Unavailable | Code::NotFound
    )
}

fn ready_router((node, router): &(String, Router)) -> ReadyRouter {
    ReadyRouter {
        node: node.clone(),
        whep_addr: router.whep_addr().to_string(),
        quic_addr: router.quic_addr().to_string(),
        ice_addrs: router.ice_addrs().iter().map(ToString::to_string).collect(),
    }
}

fn page_stream(stream: &ReadyStream) -> PageStream {
    PageStream {
        name: stream.name.clone(),
        label: stream.name.trim_start_matches("streams/").to_owned(),
        whep_url: stream.bound_whep_url.clone(),
        token: stream.join_token.clone(),
    }
}

/// Tells a person and, by a file that appears whole or not at all, a program.
fn announce(ready: &Ready, path: Option<&Path>) -> anyhow::Result<()> {
    println!("\n  Fanlight is ready. Open  {}\n", ready.page_url);
    println!("  gRPC {}   metrics {}   Ctrl-C ends it\n", ready.grpc_addr, ready.metrics_url);
    let Some(path) = path else { return Ok(()) };
    write_whole(path, ready).with_context(|| format!("cannot write {}", path.display()))
}
