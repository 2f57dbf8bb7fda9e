//! Intents on nodes, and what time does to all tables. Not the link itself. Invariant: only the
//! newest link of the newest life of a node changes its row.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fanlight_proto::{
    id::{DeviceId, NodeId, StreamId},
    node::v1::{DeviceStatus, device_status::State as Device},
    reason::Reason,
    types::v1::{NodeLoad, StreamState},
};

use super::{
    state::{State, full},
    streams::page,
};
use crate::{
    clock::{UnixUs, us},
    error::ControlError,
    lease::{NodeTick, node_state, tick_node},
    store::{
        Census, DeviceAt, Event, LinkId, LinkNode, Page,
        rows::{DeviceInfo, GONE_RESTARTED, NodeRow},
    },
};

/// Epochs are exact in 53 bits until the year 2255; a greater one is a fault of the node.
const MAX_EPOCH: u64 = 1 << 53;

impl State {
    /// The row of a link that is still the newest of its node.
    pub(super) fn linked(&self, link: &LinkId) -> Result<&Arc<NodeRow>, ControlError> {
        let stale = || ControlError::new(Reason::StaleIncarnation, "another link took its place");
        let row = self.nodes.get(&link.node).ok_or_else(stale)?;
        let newest = row.incarnation == link.incarnation
            && row.link.as_ref().is_some_and(|(_, epoch)| *epoch == link.epoch);
        if newest { Ok(row) } else { Err(stale()) }
    }

    fn edit_node(&mut self, id: &NodeId, edit: impl FnOnce(&mut NodeRow)) {
        let Some(row) = self.nodes.get_mut(id) else {
            return;
        };
        let before = node_state(row);
        let row = Arc::make_mut(row);
        let was_lost = row.lost;
        edit(row);
        let (after, lost) = (node_state(row), row.lost);
        if after != before {
            self.record_node(id, Some(after));
            self.tell(Event::Node(id.clone()));
        }
        // A lost worker's devices are gone with it, and back with its heartbeat.
        if lost != was_lost {
            let online = |row: &NodeRow| {
                let devices = row.devices.iter().filter(|(_, info)| info.online);
                devices.map(|(id, _)| id.clone()).collect::<Vec<_>>()
            };
            let had = self.nodes.get(id).filter(|_| lost).map(|row| online(row));
            self.record_devices(id, &had.unwrap_or_default());
        }
    }

    pub(super) fn link_node(
        &mut self,
        now: UnixUs,
        intent: LinkNode,
    ) -> Result<LinkId, ControlError> {
        let LinkNode { id, kind, incarnation, hello, replica } = intent;
        if hello.max_epoch_seen > MAX_EPOCH {
            return Err(ControlError::field("hello.max_epoch_seen", "is not an epoch"));
        }
        let old = self.node(&id);
        if let Some(old) = old.as_ref().filter(|o| o.incarnation > incarnation) {
            let why = format!("incarnation {} is known, {incarnation} is older", old.incarnation);
            return Err(ControlError::new(Reason::StaleIncarnation, why)
                .about("fanlight.Node", id.resource_name()));
        }
        if old.is_none() && self.nodes.len() >= self.limits.nodes {
            return Err(full("nodes", self.limits.nodes));
        }
        if hello.devices.len() > self.limits.devices_per_node {
            return Err(full("devices of one node", self.limits.devices_per_node));
        }
        self.floor = self.floor.max(hello.max_epoch_seen);
        self.link_epoch = now.max(self.link_epoch + 1);
        let online = self.devices_online(&id);
        let restarted = old.as_ref().is_some_and(|o| o.incarnation < incarnation);
        let row = NodeRow {
            id: id.clone(),
            kind,
            incarnation,
            load: NodeLoad::default(),
            link: Some((replica, self.link_epoch)),
            agreed: false,
            draining: old.as_ref().is_some_and(|o| o.draining && !restarted),
            drain_us: old.as_ref().and_then(|o| o.drain_us),
            suspect: false,
            lost: false,
            beat_us: now,
            lease_us: now.saturating_add(us(self.timing.lease)),
            placed_viewers: 0,
            placed_streams: 0,
            assignments: self
                .by_node
                .get(&id)
                .map_or(0, |s| s.len().try_into().unwrap_or(u32::MAX)),
            devices: BTreeMap::new(),
            hello: Arc::clone(&hello),
        };
        self.forget_devices(&id);
        self.nodes.insert(id.clone(), Arc::new(row));
        self.set_devices(&id, &hello.devices);
        self.record_node(&id, self.nodes.get(&id).map(|row| node_state(row)));
        self.record_devices(&id, &online);
        if restarted {
            self.reassign_restarted(now, &id, incarnation);
            self.edge_gone(now, &id, GONE_RESTARTED);
        }
        self.tell(Event::Node(id.clone()));
        self.tell(Event::Wants(id.clone()));
        // Addresses may be new: whoever names this node in its wants hears of it.
        let neighbours: BTreeSet<NodeId> = self
            .by_node
            .get(&id)
            .into_iter()
            .flatten()
            .filter_map(|s| self.streams.get(s))
            .flat_map(|s| s.nodes().cloned().collect::<Vec<_>>())
            .collect();
        for node in neighbours {
            self.tell(Event::Wants(node));
        }
        Ok(LinkId { node: id, incarnation, epoch: self.link_epoch })
    }

    pub(super) fn renew_node(
        &mut self,
        now: UnixUs,
        link: &LinkId,
        load: NodeLoad,
        draining: bool,
    ) -> Result<(), ControlError> {
        self.linked(link)?;
        let lease_us = now.saturating_add(us(self.timing.lease));
        self.edit_node(&link.node, |row| {
            row.load = load;
            row.draining = draining;
            row.suspect = false;
            row.lost = false;
            row.beat_us = now;
            row.lease_us = lease_us;
            row.placed_viewers = 0;
            row.placed_streams = 0;
        });
        Ok(())
    }

    pub(super) fn agree_node(&mut self, _now: UnixUs, link: &LinkId) -> Result<(), ControlError> {
        if !self.linked(link)?.agreed {
            self.edit_node(&link.node, |row| row.agreed = true);
        }
        Ok(())
    }

    pub(super) fn unlink_node(
        &mut self,
        now: UnixUs,
        link: &LinkId,
        goodbye: bool,
    ) -> Result<(), ControlError> {
        self.linked(link)?;
        self.edit_node(&link.node, |row| {
            row.link = None;
            row.suspect = true;
            if goodbye {
                row.lost = true;
                row.lease_us = now;
            }
        });
        Ok(())
    }

    pub(super) fn drain_node(
        &mut self,
        now: UnixUs,
        id: &NodeId,
        deadline: Duration,
    ) -> Result<Arc<NodeRow>, ControlError> {
        self.set_drain(id, Some(now.saturating_add(us(deadline))))
    }

    pub(super) fn undrain_node(&mut self, id: &NodeId) -> Result<Arc<NodeRow>, ControlError> {
        self.set_drain(id, None)
    }

    fn set_drain(
        &mut self,
        id: &NodeId,
        drain_us: Option<UnixUs>,
    ) -> Result<Arc<NodeRow>, ControlError> {
        self.edit_node(id, |row| {
            row.drain_us = drain_us;
            // Its own word follows with the next heartbeat.
            row.draining &= drain_us.is_some();
        });
        let row = self.node(id).ok_or_else(|| {
            ControlError::new(Reason::NodeNotFound, "no such node")
                .about("fanlight.Node", id.resource_name())
        })?;
        // The link tells the node.
        self.tell(Event::Wants(id.clone()));
        Ok(row)
    }

    pub(super) fn report_devices(
        &mut self,
        _now: UnixUs,
        link: &LinkId,
        devices: &[DeviceStatus],
    ) -> Result<(), ControlError> {
        let known = self.linked(link)?.devices.len();
        let bound = self.limits.devices_per_node;
        if known.saturating_add(devices.len()) > bound.saturating_mul(2) {
            return Err(full("devices of one node", bound));
        }
        let online = self.devices_online(&link.node);
        self.set_devices(&link.node, devices);
        self.record_devices(&link.node, &online);
        self.tell(Event::Node(link.node.clone()));
        Ok(())
    }

    fn forget_devices(&mut self, node: &NodeId) {
        let devices = self.nodes.get(node).map(|n| n.devices.keys().cloned().collect::<Vec<_>>());
        for device in devices.unwrap_or_default() {
            self.unname_device(node, &device);
        }
    }

    fn unname_device(&mut self, node: &NodeId, device: &DeviceId) {
        if let Some(at) = self.devices.get_mut(device) {
            at.remove(node);
            if at.is_empty() {
                self.devices.remove(device);
            }
        }
    }

    /// Takes a node's word on its devices; malformed names are left out.
    fn set_devices(&mut self, node: &NodeId, devices: &[DeviceStatus]) {
        for status in devices {
            let Ok(device) = DeviceId::from_resource_name(&status.device) else {
                tracing::warn!(%node, "a device without a proper name is left out");
                continue;
            };
            let Some(row) = self.nodes.get_mut(node).map(Arc::make_mut) else {
                return;
            };
            match status.state() {
                Device::Removed => {
                    row.devices.remove(&device);
                    self.unname_device(node, &device);
                }
                state => {
                    let info = DeviceInfo {
                        online: state == Device::Online,
                        reason: status.reason.chars().take(200).collect(),
                    };
                    row.devices.insert(device.clone(), info);
                    self.devices.entry(device).or_default().insert(node.clone());
                }
            }
        }
    }

    pub(super) fn find_device(&self, device: &DeviceId) -> DeviceAt {
        let Some(at) = self.devices.get(device) else {
            return DeviceAt::Unknown;
        };
        let mut why = String::new();
        for node in at.iter().filter_map(|n| self.nodes.get(n)) {
            let Some(info) = node.devices.get(device) else {
                continue;
            };
            if node.link.is_none() || node.lost {
                why = format!("its ingest worker {} is not linked", node.id);
            } else if info.online {
                return DeviceAt::Online(node.id.clone());
            } else {
                why.clone_from(&info.reason);
            }
        }
        DeviceAt::Offline(why)
    }

    pub(super) fn page_nodes(&self, after: Option<&NodeId>, limit: usize) -> Page<Arc<NodeRow>> {
        page(&self.nodes, after, limit)
    }

    pub(super) fn routers(&self) -> Vec<Arc<NodeRow>> {
        self.nodes.values().filter(|n| n.is_router()).cloned().collect()
    }

    /// What time asks for. Answers the streams that are due.
    pub(super) fn sweep(&mut self, now: UnixUs) -> Vec<StreamId> {
        self.tick_nodes(now);
        self.tick_moves(now);
        self.tick_viewers(now);
        self.forget_requests(now);
        self.forget_bars(now);
        let mut due = Vec::new();
        while self.due_streams.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, id)) = self.due_streams.pop_first() {
                if let Some(row) = self.streams.get_mut(&id) {
                    Arc::make_mut(row).due_us = 0;
                }
                due.push(id);
            }
        }
        due
    }

    pub(super) fn census(&self) -> Census {
        let mut census = Census::default();
        for row in self.streams.values() {
            *census.streams.entry(row.state).or_default() += 1;
        }
        for row in self.nodes.values() {
            *census.nodes.entry(node_state(row)).or_default() += 1;
        }
        census
    }

    /// Ends origins that streams moved away from. One that still carries the only picture stays:
    /// the stream is not live on its new origin yet.
    fn tick_moves(&mut self, now: UnixUs) {
        while let Some((_, id)) = self.due_moves.first().filter(|(at, _)| *at <= now).cloned() {
            let again = now.saturating_add(us(self.timing.drain));
            // The row is there: the index names it.
            let done = self.edit_stream(now, &id, |row| match &mut row.leaving {
                Some(l) if l.push && row.state != StreamState::Live => l.until_us = again,
                _ => row.leaving = None,
            });
            if done.is_err() {
                self.due_moves.pop_first();
            }
        }
    }

    fn tick_nodes(&mut self, now: UnixUs) {
        let timing = self.timing;
        let ticks: Vec<_> = self
            .nodes
            .values()
            .map(|row| (row.id.clone(), tick_node(row, now, &timing)))
            .filter(|(_, tick)| *tick != NodeTick::Stay)
            .collect();
        for (id, tick) in ticks {
            match tick {
                NodeTick::Stay => {}
                NodeTick::Suspect => self.edit_node(&id, |row| row.suspect = true),
                NodeTick::Lose => self.edit_node(&id, |row| row.lost = true),
                NodeTick::Forget => {
                    self.edge_gone(now, &id, "the router was forgotten");
                    self.forget_devices(&id);
                    self.nodes.remove(&id);
                    self.record_node(&id, None);
                    self.tell(Event::Node(id));
                }
            }
        }
    }
}
