//! The load test as a node of the fleet: linked to the control API as an ingest worker whose
//! devices are made up, publishing whatever it is told to. Not the pictures. Invariant: every
//! want is kept trying until it is taken away, and what cannot be published is reported as such.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fanlight_ops::{
    link::{HelloTemplate, LinkClient, LinkConfig, LinkHandle, LinkHandler},
    pki::NodeIdentity,
    process,
    shutdown::Shutdown,
};
use fanlight_proto::{
    node::v1::{
        Ack, Action, Apply, DeviceStatus, IngestRole, Publish, Report, Running, StreamReport, Want,
        device_status, want,
    },
    types::v1::{Assignment, NodeAddresses, NodeCapacity, NodeKind, NodeLoad, StreamState},
};
use fanlight_wire::{roq::Slot, rtp::HOP_H264_PAYLOAD_TYPE, rtp::VIDEO_CLOCK_HZ};
use futures::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use tokio::sync::{OnceCell, watch};

use super::{
    Detour, Device,
    hop::{Hop, HopError},
    pace::{Plan, Publishing},
};
use crate::source::Source;

/// Pause between two tries of a publish.
const RETRY: Duration = Duration::from_millis(200);

/// What a worker needs to know.
#[derive(Clone)]
pub struct WorkerConfig {
    /// `https://host:port` of the control API's node listener.
    pub control: String,
    /// Certificate.
    pub identity: NodeIdentity,
    /// Stands between us and the router; `None`: nothing does.
    pub detour: Option<Detour>,
    /// Bit rate that is announced.
    pub bitrate_bps: u64,
}

impl std::fmt::Debug for WorkerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerConfig").field("control", &self.control).finish_non_exhaustive()
    }
}

type Wanted = BTreeMap<String, Want>;

/// A linked worker.
#[derive(Debug)]
pub struct Worker {
    link: LinkHandle,
}

struct Handler {
    devices: Vec<Arc<Device>>,
    wanted: watch::Sender<Wanted>,
    live: Arc<Mutex<BTreeMap<String, u64>>>,
    max_epoch: AtomicU64,
}

impl Worker {
    /// Links, and publishes each device once it is wanted. Ends with the shutdown.
    ///
    /// # Errors
    /// A control address that cannot be used.
    pub fn start(
        config: WorkerConfig,
        devices: Vec<(Arc<Device>, Source, Plan)>,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Self> {
        let (wanted, wants) = watch::channel(Wanted::new());
        let live = Arc::new(Mutex::default());
        let handler = Arc::new(Handler {
            devices: devices.iter().map(|(device, ..)| Arc::clone(device)).collect(),
            wanted,
            live: Arc::clone(&live),
            max_epoch: AtomicU64::new(0),
        });
        let incarnation = process::started_unix_us();
        let hello = HelloTemplate {
            node: config.identity.node().clone(),
            kind: NodeKind::IngestWorker,
            incarnation,
            region: "local".to_owned(),
            zone: String::new(),
            labels: BTreeMap::new(),
            addresses: NodeAddresses::default(),
            capacity: NodeCapacity {
                streams_in: u32::try_from(devices.len()).unwrap_or(u32::MAX),
                cpu_cores: 1,
                ..NodeCapacity::default()
            },
        };
        let settings =
            LinkConfig::new(vec![config.control.clone()], config.identity.clone(), hello);
        let link = LinkClient::spawn(settings, handler, shutdown)?;
        let shared = Arc::new(Shared {
            config,
            incarnation,
            link: link.clone(),
            live,
            hop: Mutex::default(),
        });
        for (number, (device, source, plan)) in (1_u32..).zip(devices) {
            let Some(slot) = Slot::new(number) else { continue };
            let token = shutdown.token();
            let publish =
                keep_published(Arc::clone(&shared), device, source, plan, slot, wants.clone());
            shutdown.spawn(format!("publish {number}"), async move {
                tokio::select! {
                    () = publish => {}
                    () = token.cancelled() => {}
                }
            });
        }
        Ok(Self { link })
    }

    /// Waits until the control API has taken the link.
    pub async fn linked(&self) {
        let mut linked = self.link.linked();
        let _ = linked.wait_for(|up| *up).await;
    }
}

type SharedHop = Arc<OnceCell<Arc<Hop>>>;

struct Shared {
    config: WorkerConfig,
    incarnation: u64,
    link: LinkHandle,
    live: Arc<Mutex<BTreeMap<String, u64>>>,
    /// One connection per router, dialled by whoever needs it first.
    hop: Mutex<BTreeMap<SocketAddr, SharedHop>>,
}

impl Shared {
    async fn hop(&self, address: SocketAddr) -> Result<Arc<Hop>, HopError> {
        let cell = Arc::clone(self.hop.lock().entry(address).or_default());
        let dial = async {
            let to = self.config.detour.as_ref().map_or(address, |detour| detour(address));
            Hop::connect(&self.config.identity, self.incarnation, to).await.map(Arc::new)
        };
        cell.get_or_try_init(|| dial).await.cloned()
    }

    fn forget(&self, address: SocketAddr, broken: &Arc<Hop>) {
        let mut hops = self.hop.lock();
        let same = hops
            .get(&address)
            .and_then(|cell| cell.get())
            .is_some_and(|hop| Arc::ptr_eq(hop, broken));
        if same {
            hops.remove(&address);
        }
    }

    fn report(&self, stream: &str, epoch: u64, state: StreamState, reason: &str) {
        let mut live = self.live.lock();
        if state == StreamState::Live {
            live.insert(stream.to_owned(), epoch);
        } else {
            live.remove(stream);
        }
        drop(live);
        let report = StreamReport {
            stream: stream.to_owned(),
            epoch,
            state: state.into(),
            reason: reason.to_owned(),
        };
        self.link.report(Report { streams: vec![report], ..Report::default() });
    }
}

/// Publishes one device for as long as anybody wants it.
async fn keep_published(
    shared: Arc<Shared>,
    device: Arc<Device>,
    mut source: Source,
    plan: Plan,
    slot: Slot,
    mut wants: watch::Receiver<Wanted>,
) {
    loop {
        let wanted = wants.borrow_and_update().values().find_map(|want| {
            let want::Role::Ingest(role) = want.role.as_ref()? else { return None };
            let mine = role.device.strip_prefix("devices/") == Some(device.name.as_str());
            Some((want.assignment.clone()?, role.clone())).filter(|_| mine)
        });
        let Some((assignment, role)) = wanted else {
            if wants.changed().await.is_err() {
                return;
            }
            continue;
        };
        let once = once(&shared, &device, &mut source, &plan, slot, &assignment, &role);
        tokio::select! {
            outcome = once => {
                let why = outcome.map_or_else(|e| e.to_string(), |()| "ended".to_owned());
                tracing::info!(stream = %assignment.stream, why, "publish ended");
                shared.report(&assignment.stream, assignment.epoch, StreamState::Starved, "PUSH_BROKEN");
                tokio::time::sleep(RETRY).await;
            }
            () = changes(&mut wants, &assignment) => {}
        }
    }
}

/// Ends when this assignment is no longer what is wanted.
async fn changes(wants: &mut watch::Receiver<Wanted>, now: &Assignment) {
    let same = |wanted: &Wanted| {
        wanted.get(&now.stream).and_then(|w| w.assignment.as_ref()).map(|a| a.epoch)
            == Some(now.epoch)
    };
    let _ = wants.wait_for(|wanted| !same(wanted)).await;
}

async fn once(
    shared: &Shared,
    device: &Arc<Device>,
    source: &mut Source,
    plan: &Plan,
    slot: Slot,
    assignment: &Assignment,
    role: &IngestRole,
) -> anyhow::Result<()> {
    let addresses = role.origin.as_ref().map(|o| o.quic.as_slice()).unwrap_or_default();
    let address: SocketAddr =
        addresses.first().ok_or_else(|| anyhow::anyhow!("the origin has no address"))?.parse()?;
    let hop = shared.hop(address).await?;
    let (width, height) = source.size();
    let ssrc = rand::random();
    let publish = Publish {
        slot: slot.get(),
        stream: assignment.stream.clone(),
        epoch: assignment.epoch,
        push_token: role.push_token.clone(),
        codec: "h264".to_owned(),
        payload_type: u32::from(HOP_H264_PAYLOAD_TYPE),
        ssrc,
        clock_rate_hz: VIDEO_CLOCK_HZ,
        width,
        height,
        max_fps: plan.fps,
        bitrate_bps: shared.config.bitrate_bps,
    };
    let events = match hop.publish(publish).await {
        Ok(events) => events,
        Err(error @ HopError::Refused { .. }) => return Err(error.into()),
        Err(error) => {
            shared.forget(address, &hop);
            return Err(error.into());
        }
    };
    shared.report(&assignment.stream, assignment.epoch, StreamState::Live, "");
    let publishing = Publishing { hop: &hop, device, source, plan: plan.clone(), slot, ssrc };
    let ended = publishing.run(events).await;
    shared.forget(address, &hop);
    Ok(ended?)
}

impl LinkHandler for Handler {
    fn apply(&self, apply: Apply) -> BoxFuture<'_, Ack> {
        self.wanted.send_modify(|wanted| {
            if apply.full {
                wanted.clear();
            }
            for stop in &apply.stops {
                wanted.remove(&stop.stream);
            }
            for want in &apply.wants {
                let Some(assignment) = &want.assignment else { continue };
                self.max_epoch.fetch_max(assignment.epoch, Ordering::Relaxed);
                wanted.insert(assignment.stream.clone(), want.clone());
            }
        });
        std::future::ready(Ack { want_version: apply.want_version, ..Ack::default() }).boxed()
    }

    fn action(&self, action: Action) -> BoxFuture<'_, Ack> {
        std::future::ready(Ack { action_id: action.id, ..Ack::default() }).boxed()
    }

    fn load(&self) -> NodeLoad {
        NodeLoad::default()
    }

    fn running(&self) -> Vec<Running> {
        let live = self.live.lock();
        let wanted = self.wanted.borrow();
        let running = |want: &Want| {
            let assignment = want.assignment.clone()?;
            let is_live = live.get(&assignment.stream) == Some(&assignment.epoch);
            let state = if is_live { StreamState::Live } else { StreamState::Assigned };
            Some(Running {
                assignment: Some(assignment),
                state: state.into(),
                ..Running::default()
            })
        };
        wanted.values().filter_map(running).collect()
    }

    fn devices(&self) -> Vec<DeviceStatus> {
        let status = |device: &Arc<Device>| DeviceStatus {
            device: format!("devices/{}", device.name),
            state: device_status::State::Online.into(),
            reason: String::new(),
        };
        self.devices.iter().map(status).collect()
    }

    fn max_epoch_seen(&self) -> u64 {
        self.max_epoch.load(Ordering::Relaxed)
    }

    fn key_set(&self, _jwks_json: String) {}
}
