//! The worker's side of NodeLink: wants in, one list of publishes per device out. Knows no media.
//! Invariant: an epoch below the greatest seen of a stream is refused, so an old control plane
//! cannot take a stream back to an old router.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use fanlight_ops::{
    admin::Drain,
    link::{LinkHandler, refused},
};
use fanlight_proto::{
    id::{DeviceId, NodeId, StreamId},
    node::v1::{
        Ack, Action, Apply, DeviceStatus, IngestRole, Refusal, Running, Want, action, want,
    },
    reason::Reason,
    types::v1::{Assignment, ItemStatus, NodeAddresses, NodeLoad, NodeState},
};
use futures::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    board::Board,
    config::DeviceConfig,
    device::Wanted,
    shared::Shared,
    uplink::{Host as _, PublishSpec, RouterKey},
};

/// Wants of one worker; more are refused. Far above the devices a host has, since each stream has
/// one device.
const MAX_WANTS: usize = 4_096;
/// gRPC codes as they stand in `google.rpc.Status`.
const OK: i32 = 0;
const UNIMPLEMENTED: i32 = 12;

/// One device as the fleet sees it.
#[derive(Debug)]
pub struct Member {
    config: DeviceConfig,
    wanted: watch::Sender<Vec<Wanted>>,
    shared: Arc<Shared>,
}

impl Member {
    /// A device, and where its wants go.
    pub fn new(
        config: DeviceConfig,
        wanted: watch::Sender<Vec<Wanted>>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { config, wanted, shared }
    }
}

/// All devices of the host and what is wanted of them.
#[derive(Debug)]
pub struct Fleet {
    members: HashMap<String, Member>,
    board: Board,
    drain: Drain,
    held: Mutex<Held>,
    max_epoch: AtomicU64,
}

#[derive(Debug, Default)]
struct Held {
    wants: BTreeMap<String, Item>,
    /// Greatest epoch per stream, also of those no longer wanted. Bounded: the streams of one host
    /// are few, and beyond the bound those not wanted are forgotten.
    seen: BTreeMap<String, u64>,
}

#[derive(Clone, Debug)]
struct Item {
    assignment: Assignment,
    device: String,
    publishes: Vec<Wanted>,
}

/// Why a want is not taken.
type Refuse = (tonic::Code, Reason, String);

impl Fleet {
    /// For these devices, by id.
    pub fn new(members: HashMap<String, Member>, board: Board, drain: Drain) -> Self {
        Self { members, board, drain, held: Mutex::default(), max_epoch: AtomicU64::new(0) }
    }

    /// Takes wants; what a link calls, and what tests call without one.
    pub fn take(&self, apply: Apply) -> Ack {
        let mut held = self.held.lock();
        let before: BTreeSet<String> = held.wants.keys().cloned().collect();
        let mut next = if apply.full { BTreeMap::new() } else { held.wants.clone() };
        for stop in apply.stops {
            if next.get(&stop.stream).is_some_and(|item| item.assignment.epoch <= stop.epoch) {
                next.remove(&stop.stream);
            }
        }
        let mut refusals: Vec<Refusal> = Vec::new();
        for want in apply.wants {
            let Some(assignment) = want.assignment.clone() else { continue };
            let (stream, epoch) = (assignment.stream.clone(), assignment.epoch);
            match self.item(want, assignment, &held.seen, next.len()) {
                Ok(item) => {
                    self.max_epoch.fetch_max(epoch, Ordering::Relaxed);
                    held.seen.insert(stream.clone(), epoch);
                    next.insert(stream, item);
                }
                Err((code, reason, message)) => {
                    tracing::warn!(%stream, epoch, %reason, "want refused: {message}");
                    // What runs under the refused name goes on only if the refusal was a fence.
                    if let Some(item) =
                        held.wants.get(&stream).filter(|_| reason == Reason::StaleEpoch)
                    {
                        next.insert(stream.clone(), item.clone());
                    }
                    refusals.push(refused(&stream, epoch, code, reason, &message));
                }
            }
        }
        for gone in before.iter().filter(|s| !next.contains_key(*s)) {
            self.board.forget_stream(gone, u64::MAX);
        }
        held.wants = next;
        if held.seen.len() > MAX_WANTS {
            let Held { wants, seen } = &mut *held;
            seen.retain(|stream, _| wants.contains_key(stream));
        }
        self.hand_out(&held);
        Ack { want_version: apply.want_version, refusals, ..Ack::default() }
    }

    fn item(
        &self,
        want: Want,
        assignment: Assignment,
        seen: &BTreeMap<String, u64>,
        taken: usize,
    ) -> Result<Item, Refuse> {
        let invalid = |m: String| (tonic::Code::InvalidArgument, Reason::InvalidArgument, m);
        StreamId::from_resource_name(&assignment.stream).map_err(|e| invalid(e.to_string()))?;
        if let Some(greatest) = seen.get(&assignment.stream)
            && assignment.epoch < *greatest
        {
            let message = format!("epoch {greatest} was seen");
            return Err((tonic::Code::FailedPrecondition, Reason::StaleEpoch, message));
        }
        if taken >= MAX_WANTS {
            let message = format!("at most {MAX_WANTS} streams");
            return Err((tonic::Code::ResourceExhausted, Reason::NodeAtCapacity, message));
        }
        let Some(want::Role::Ingest(role)) = want.role else {
            let message = "an ingest worker takes ingest roles only".to_owned();
            return Err((tonic::Code::InvalidArgument, Reason::Unsupported, message));
        };
        let device =
            DeviceId::from_resource_name(&role.device).map_err(|e| invalid(e.to_string()))?;
        let Some(member) = self.members.get(device.as_str()) else {
            let message = format!("{} is not configured here", role.device);
            return Err((tonic::Code::NotFound, Reason::DeviceUnknown, message));
        };
        let publishes = publishes(&assignment, &role, &member.config).map_err(invalid)?;
        Ok(Item { assignment, device: device.as_str().to_owned(), publishes })
    }

    /// Gives each device its list; one that did not change is not woken.
    fn hand_out(&self, held: &Held) {
        for (name, member) in &self.members {
            let list: Vec<Wanted> = held
                .wants
                .values()
                .filter(|item| item.device == *name)
                .flat_map(|item| item.publishes.iter().cloned())
                .collect();
            member.wanted.send_if_modified(|old| {
                let changed = *old != list;
                *old = list;
                changed
            });
        }
    }

    fn act(&self, action: Action) -> Ack {
        let done = match action.action {
            Some(action::Action::Keyframe(k)) => {
                let held = self.held.lock();
                let device = held.wants.get(&k.stream).map(|item| item.device.clone());
                match device.and_then(|d| self.members.get(&d)) {
                    Some(member) => {
                        member.shared.keyframe();
                        Ok(())
                    }
                    None => Err((tonic::Code::NotFound as i32, Reason::StreamNotFound)),
                }
            }
            // A worker drains by the streams being taken away; there is nothing to do first.
            Some(action::Action::Drain(_)) => Ok(()),
            _ => Err((UNIMPLEMENTED, Reason::Unsupported)),
        };
        let (code, reason) = match done {
            Ok(()) => (OK, String::new()),
            Err((code, reason)) => (code, reason.as_str().to_owned()),
        };
        let status = Some(ItemStatus { code, reason, ..ItemStatus::default() });
        Ack { action_id: action.id, status, ..Ack::default() }
    }
}

/// The publishes of one want: to the origin, and while it moves to the next one too.
fn publishes(
    assignment: &Assignment,
    role: &IngestRole,
    config: &DeviceConfig,
) -> Result<Vec<Wanted>, String> {
    let node = match &assignment.origin {
        Some(origin) => Some(NodeId::from_resource_name(&origin.node).map_err(|e| e.to_string())?),
        None => None,
    };
    let origin = role.origin.as_ref().ok_or("no origin address")?;
    let spec = PublishSpec {
        stream: assignment.stream.clone(),
        epoch: assignment.epoch,
        push_token: role.push_token.clone(),
        max_fps: if role.max_fps > 0 { role.max_fps.min(config.max_fps) } else { config.max_fps },
        bitrate_bps: config.bitrate_bps,
    };
    let key = |addresses: &NodeAddresses, node: Option<NodeId>| RouterKey {
        addresses: addresses.quic.iter().take(8).cloned().collect(),
        node,
    };
    let main = Wanted { spec: spec.clone(), router: key(origin, node) };
    if main.router.addresses.is_empty() {
        return Err("the origin has no QUIC address".to_owned());
    }
    let also = role.also.as_ref().map(|also| Wanted { spec, router: key(also, None) });
    Ok([Some(main), also.filter(|w| !w.router.addresses.is_empty())]
        .into_iter()
        .flatten()
        .collect())
}

impl LinkHandler for Fleet {
    fn apply(&self, apply: Apply) -> BoxFuture<'_, Ack> {
        std::future::ready(self.take(apply)).boxed()
    }

    fn action(&self, action: Action) -> BoxFuture<'_, Ack> {
        std::future::ready(self.act(action)).boxed()
    }

    fn load(&self) -> NodeLoad {
        NodeLoad {
            streams_in: u32::try_from(self.held.lock().wants.len()).unwrap_or(u32::MAX),
            ..NodeLoad::default()
        }
    }

    fn running(&self) -> Vec<Running> {
        let held = self.held.lock();
        let running = held.wants.values().map(|item| Running {
            assignment: Some(item.assignment.clone()),
            state: self.board.stream_state(&item.assignment.stream).into(),
            ..Running::default()
        });
        running.collect()
    }

    fn devices(&self) -> Vec<DeviceStatus> {
        self.board.devices()
    }

    fn state(&self) -> NodeState {
        if self.drain.is_draining() { NodeState::Draining } else { NodeState::Serving }
    }

    fn max_epoch_seen(&self) -> u64 {
        self.max_epoch.load(Ordering::Relaxed)
    }

    fn key_set(&self, _jwks_json: String) {
        // Viewers are the routers' matter.
    }
}

#[cfg(test)]
mod tests {
    use fanlight_proto::{node::v1::Stop, types::v1::NodeRef};

    use super::*;

    fn fleet() -> (Fleet, watch::Receiver<Vec<Wanted>>) {
        let (sender, receiver) = watch::channel(Vec::new());
        let shared = Arc::new(Shared::new("pixel".into(), 4_000_000));
        let member = Member::new(DeviceConfig::default(), sender, shared);
        let members = HashMap::from([("pixel".to_owned(), member)]);
        (Fleet::new(members, Board::default(), Drain::new()), receiver)
    }

    fn want(stream: &str, epoch: u64, device: &str) -> Want {
        let origin = NodeAddresses { quic: vec!["127.0.0.1:1".into()], ..NodeAddresses::default() };
        let role = IngestRole {
            device: device.into(),
            origin: Some(origin),
            push_token: vec![1, 2],
            ..IngestRole::default()
        };
        let node = Some(NodeRef { node: "nodes/r1".into(), incarnation: 1 });
        Want {
            assignment: Some(Assignment { stream: stream.into(), epoch, origin: node }),
            role: Some(want::Role::Ingest(role)),
        }
    }

    fn apply(full: bool, wants: Vec<Want>) -> Apply {
        Apply { full, want_version: 1, wants, stops: Vec::new() }
    }

    fn reasons(ack: &Ack) -> Vec<&str> {
        ack.refusals.iter().map(|r| r.status.as_ref().unwrap().reason.as_str()).collect()
    }

    #[test]
    fn a_want_reaches_its_device_and_a_full_apply_without_it_ends_it() {
        let (fleet, wanted) = fleet();
        let ack = fleet.take(apply(true, vec![want("streams/a", 3, "devices/pixel")]));
        assert!(ack.refusals.is_empty());
        assert_eq!(wanted.borrow()[0].spec.epoch, 3);
        assert_eq!(wanted.borrow()[0].router.node.as_ref().unwrap().as_str(), "r1");
        assert_eq!(fleet.running().len(), 1);
        assert_eq!(fleet.max_epoch_seen(), 3);
        fleet.take(apply(true, Vec::new()));
        assert!(wanted.borrow().is_empty());
    }

    #[test]
    fn an_old_epoch_is_refused_and_what_runs_goes_on() {
        let (fleet, wanted) = fleet();
        fleet.take(apply(true, vec![want("streams/a", 5, "devices/pixel")]));
        let ack = fleet.take(apply(true, vec![want("streams/a", 4, "devices/pixel")]));
        assert_eq!(reasons(&ack), ["STALE_EPOCH"]);
        assert_eq!(wanted.borrow()[0].spec.epoch, 5);
        let stop = Stop { stream: "streams/a".into(), epoch: 4, reason: String::new() };
        fleet.take(Apply { stops: vec![stop], ..apply(false, Vec::new()) });
        assert_eq!(wanted.borrow().len(), 1, "a stop of an old epoch stops nothing");
    }

    #[test]
    fn wants_that_make_no_sense_are_refused_one_by_one() {
        let (fleet, wanted) = fleet();
        let mut no_role = want("streams/d", 1, "devices/pixel");
        no_role.role = None;
        let ack = fleet.take(apply(
            false,
            vec![
                want("streams/a", 1, "devices/other"),
                want("streams/b", 1, "pixel"),
                want("a/b", 1, "devices/pixel"),
                no_role,
                want("streams/e", 1, "devices/pixel"),
            ],
        ));
        assert_eq!(
            reasons(&ack),
            ["DEVICE_UNKNOWN", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "UNSUPPORTED"]
        );
        assert_eq!(wanted.borrow().len(), 1);
    }

    #[test]
    fn a_device_whose_list_did_not_change_is_not_woken() {
        let (fleet, mut wanted) = fleet();
        let list = || apply(true, vec![want("streams/a", 1, "devices/pixel")]);
        fleet.take(list());
        assert!(wanted.has_changed().unwrap());
        wanted.mark_unchanged();
        fleet.take(list());
        assert!(!wanted.has_changed().unwrap());
    }
}
