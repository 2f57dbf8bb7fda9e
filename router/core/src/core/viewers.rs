//! Viewers: how they come into the tables, what they say, how they leave.
//!
//! Invariant: [`Core::remove`] is the only way out of the tables, and it takes everything with it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fanlight_wire::input::{
    CHANNEL_INPUT, CHANNEL_MOVES, DeviceBody, DeviceMessage, Role as WireRole,
};
use rand::Rng;
use str0m::channel::ChannelId;
use str0m::{Event, IceConnectionState};

use super::{Core, Due, TIMER_GRAIN, local_for};
use crate::api::{
    Answer, GoneReason, JoinRequest, KeyframeReason, Output, Role, Route, StreamKey, ViewerState,
};
use crate::demux::{self, Kind};
use crate::error::JoinError;
use crate::feed::Feed;
use crate::input::{Inputs, Standing};
use crate::join;
use crate::limits::CHANNELS_PER_VIEWER_MAX;
use crate::viewer::{Fault, Parts, Viewer, proto};

impl Core {
    pub(super) fn try_join(&mut self, request: JoinRequest) -> Result<Answer, JoinError> {
        let JoinRequest { id, stream, offer, viewer: name, role, max_session, user_agent } =
            request;
        if self.sessions.contains_key(&id) {
            return Err(JoinError::DuplicateSession);
        }
        if self.viewers.len() >= self.limits.viewers_max {
            return Err(JoinError::Full);
        }
        let known = self.streams.get_mut(&stream).ok_or(JoinError::UnknownStream)?;
        if !known.live {
            return Err(JoinError::DeviceOffline);
        }
        let credentials = self.demux.fresh_credentials(&mut self.secrets);
        let agent = user_agent.as_deref();
        let accepted = join::accept(
            &self.shared,
            self.now,
            &offer,
            credentials,
            known.params.as_deref(),
            agent,
            &mut self.random,
        )?;
        let slot = self.viewers.vacant_entry();
        let key = slot.key();
        self.serial += 1;
        slot.insert(Viewer::new(Parts {
            serial: self.serial,
            session: id,
            stream,
            name,
            role,
            rtc: accepted.rtc,
            entries: self.demux.insert(key, &accepted.ufrag),
            terms: accepted.terms,
            keys: accepted.keys,
            now: self.now,
            feed: Feed::new(self.random.random()),
            inputs: Inputs::new(self.now, &self.limits),
            deadline: self.now + self.limits.connect_deadline,
            session_end: max_session.map(|max| self.now + max),
        }));
        known.add(key, role);
        self.sessions.insert(id, key);
        self.mark(key);
        Ok(Answer { sdp: accepted.answer, profile_level_id: accepted.profile_level_id })
    }

    /// Says goodbye, and removes the viewer when that is done. One that never connected has
    /// nobody to say goodbye to.
    pub(super) fn begin_close(&mut self, key: usize, reason: GoneReason) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        match viewer.state {
            ViewerState::Closing => return,
            ViewerState::Joining => return self.remove(key, reason),
            ViewerState::Live => {}
        }
        self.release_all(key);
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        viewer.state = ViewerState::Closing;
        viewer.closing = Some(reason);
        viewer.deadline = Some(self.now + self.limits.close_deadline);
        viewer.session_end = None;
        viewer.stale = true;
        let farewell = viewer.hot.media.as_mut().and_then(crate::egress::Media::goodbye);
        if let (Some(to), Some(bytes)) = (viewer.hot.route.take(), farewell) {
            let from = local_for(self.reached.by(to.proto), to);
            self.out.push_back(Output::Transmit { to, from, bytes });
        }
        if let Some(stream) = self.streams.get_mut(&viewer.stream) {
            stream.remove(key);
        }
        match viewer.close() {
            Ok(()) => self.mark(key),
            Err(_) => self.remove(key, reason),
        }
    }

    /// Drops all that is known of a viewer. The only way out of the tables.
    pub(super) fn remove(&mut self, key: usize, reason: GoneReason) {
        self.release_all(key);
        let Some(viewer) = self.viewers.try_remove(key) else { return };
        if let Some(stream) = self.streams.get_mut(&viewer.stream) {
            stream.remove(key);
        }
        if let Some(at) = viewer.timer {
            self.timers.remove(&(at, Due::Viewer(key)));
        }
        self.demux.remove(&viewer.entries);
        self.sessions.remove(&viewer.session);
        self.counters.viewers_gone += 1;
        let session = viewer.session;
        tracing::debug!(%session, serial = viewer.serial, ?reason, "viewer gone");
        // After a panic its state may be anything, its destructor's behaviour included.
        if catch_unwind(AssertUnwindSafe(|| drop(viewer))).is_err() {
            self.counters.viewer_panics += 1;
        }
        self.out.push_back(Output::ViewerGone { session, reason });
    }

    /// The protocol library gave up on a viewer.
    pub(super) fn fail(&mut self, key: usize, fault: Fault) {
        match fault {
            Fault::Panic => self.counters.viewer_panics += 1,
            Fault::Error => self.counters.viewer_errors += 1,
        }
        let closing = self.viewers.get(key).and_then(|v| v.closing);
        self.remove(key, closing.unwrap_or(GoneReason::ProtocolError));
    }

    /// A viewer's timer went off.
    pub(super) fn viewer_due(&mut self, key: usize) {
        let now = self.now;
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        viewer.timer = None;
        if viewer.deadline.is_some_and(|at| at <= now) {
            let never = viewer.state == ViewerState::Joining;
            self.counters.viewers_never_connected += u64::from(never);
            let reason = viewer.closing.unwrap_or(GoneReason::NeverConnected);
            return self.remove(key, reason);
        }
        if viewer.session_end.is_some_and(|at| at <= now) {
            return self.begin_close(key, GoneReason::SessionOver);
        }
        if viewer.inputs.wake().is_some_and(|at| at <= now) {
            let messages = viewer.inputs.release_waiting(now, &self.limits, &mut self.counters);
            let (stream, session) = (viewer.stream, viewer.session);
            for message in messages {
                self.out.push_back(Output::ToDevice { stream, viewer: session, message });
            }
        }
        let goes_on = viewer.hot.feed.wake(&self.limits).is_some_and(|at| at <= now);
        if viewer.rtc_due(now) {
            viewer.stale = true;
            self.mark(key);
        }
        if goes_on {
            self.make_ready(key);
        }
        self.arm(key);
    }

    /// Polls a dirty viewer until it has nothing to say, and reacts to what it said.
    pub(super) fn settle(&mut self, key: usize) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if !std::mem::take(&mut viewer.dirty) {
            return;
        }
        self.counters.rtc_polls += 1;
        let out = &mut self.out;
        let mut events = std::mem::take(&mut self.events);
        let (mut route, mut dropped) = (None, 0);
        let drained = viewer.drain(
            self.now,
            |t| {
                let to = Route { proto: proto(t.proto), addr: t.destination };
                match demux::kind(&t.contents) {
                    // Where DTLS goes (and the library's own RTCP, had it media) is the path that
                    // ICE chose. STUN goes to every path that is being checked.
                    Some(Kind::Media) => {
                        route = Some(to);
                        dropped += 1;
                        return;
                    }
                    Some(Kind::Dtls) => route = Some(to),
                    _ => {}
                }
                out.push_back(Output::Transmit { to, from: t.source, bytes: t.contents.into() });
            },
            &mut events,
        );
        self.counters.library_media_dropped += dropped;
        viewer.path = route.or(viewer.path);
        if viewer.hot.route.is_some() && !viewer.chose_path {
            viewer.hot.route = viewer.path;
        }
        for event in events.drain(..) {
            self.event(key, event);
        }
        self.events = events;
        if let Err(fault) = drained {
            return self.fail(key, fault);
        }
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if viewer.is_closed() {
            let reason = viewer.closing.unwrap_or(GoneReason::ProtocolError);
            return self.remove(key, reason);
        }
        self.arm(key);
    }

    pub(super) fn event(&mut self, key: usize, event: Event) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        match event {
            Event::Connected => self.connected(key),
            Event::IceConnectionStateChange(IceConnectionState::Disconnected)
                if viewer.state == ViewerState::Live =>
            {
                self.remove(key, GoneReason::ConnectionLost);
            }
            Event::Closed => {
                // The library is already answering the farewell.
                if viewer.state == ViewerState::Joining {
                    self.remove(key, GoneReason::ClosedByViewer);
                } else {
                    self.begin_close(key, GoneReason::ClosedByViewer);
                }
            }
            Event::ChannelOpen(id, label) => {
                viewer.channels_opened += 1;
                if viewer.channels_opened > CHANNELS_PER_VIEWER_MAX {
                    return self.fail(key, Fault::Error);
                }
                if label == CHANNEL_INPUT && viewer.input_channel.is_none() {
                    viewer.input_channel = Some(id);
                    self.send_session(key);
                    self.send_reconnect(key);
                } else if label == CHANNEL_MOVES && viewer.moves_channel.is_none() {
                    viewer.moves_channel = Some(id);
                }
            }
            Event::ChannelClose(id) => {
                for channel in [&mut viewer.input_channel, &mut viewer.moves_channel] {
                    if *channel == Some(id) {
                        *channel = None;
                    }
                }
            }
            Event::ChannelData(data)
                if [viewer.input_channel, viewer.moves_channel].contains(&Some(data.id)) =>
            {
                self.input(key, data.id, &data.data);
            }
            _ => {}
        }
    }

    pub(super) fn connected(&mut self, key: usize) {
        let now = self.now;
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if viewer.state != ViewerState::Joining {
            return;
        }
        // Only now has the library checked that the keys are those of the peer that the offer's
        // fingerprint names.
        if !viewer.take_keys() {
            self.counters.keys_unusable += 1;
            return self.begin_close(key, GoneReason::ProtocolError);
        }
        viewer.state = ViewerState::Live;
        viewer.deadline = None;
        viewer.hot.route = viewer.path.or(viewer.remote);
        if let Some(stream) = self.streams.get(&viewer.stream) {
            viewer.hot.feed.connected(now, &stream.history);
        }
        let (session, stream) = (viewer.session, viewer.stream);
        self.counters.viewers_connected += 1;
        self.out.push_back(Output::ViewerConnected { session });
        if !self.replay(key) {
            self.need_keyframe(stream, KeyframeReason::Join);
        }
    }

    /// An input message arrived from a viewer. What it is answered goes back by the same channel: a
    /// pong that waits behind a lost message would say that nobody is here.
    pub(super) fn input(&mut self, key: usize, channel: ChannelId, bytes: &[u8]) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if viewer.state != ViewerState::Live {
            return;
        }
        let (stream, session) = (viewer.stream, viewer.session);
        let online = self.streams.get(&stream).is_some_and(|s| s.live);
        let standing = Standing { role: viewer.role, online };
        let handled =
            viewer.inputs.handle(self.now, standing, bytes, &self.limits, &mut self.counters);
        for message in handled.to_device {
            self.out.push_back(Output::ToDevice { stream, viewer: session, message });
        }
        if let Some(reply) = handled.reply {
            let pong = matches!(reply.body, DeviceBody::Pong { .. });
            self.send_message(key, pong.then_some(channel), &reply);
        }
    }

    /// Lets go of everything that a viewer holds on the device.
    pub(super) fn release_all(&mut self, key: usize) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        if let Some(message) = viewer.inputs.release_all() {
            let (stream, session) = (viewer.stream, viewer.session);
            self.out.push_back(Output::ToDevice { stream, viewer: session, message });
        }
    }

    pub(super) fn send_session(&mut self, key: usize) {
        let Some(viewer) = self.viewers.get(key) else { return };
        let Some(stream) = self.streams.get(&viewer.stream) else { return };
        let side = |side: u32| u16::try_from(side).unwrap_or(0);
        let (w, h) = stream.params.as_deref().map_or((0, 0), |p| (side(p.width), side(p.height)));
        let role = match viewer.role {
            Role::Observer => WireRole::Observer,
            Role::Controller => WireRole::Controller,
        };
        let body = DeviceBody::Session { w, h, rotation: stream.rotation & 3, role };
        self.send_message(key, None, &DeviceMessage { seq: 0, lease_epoch: 0, body });
    }

    /// Tells a viewer where to go, if it was told to and can hear it.
    pub(super) fn send_reconnect(&mut self, key: usize) {
        let Some(viewer) = self.viewers.get(key) else { return };
        if let (Some(url), Some(_)) = (&viewer.reconnect, viewer.input_channel) {
            let body = DeviceBody::Reconnect(url.to_string());
            self.send_message(key, None, &DeviceMessage { seq: 0, lease_epoch: 0, body });
        }
    }

    /// Tells every viewer of a stream its size.
    pub(super) fn tell_session(&mut self, stream: StreamKey) {
        let Some(known) = self.streams.get(&stream) else { return };
        for key in known.viewers().collect::<Vec<_>>() {
            self.send_session(key);
        }
    }

    /// Sends a message by this channel, or by the `input` channel.
    fn send_message(&mut self, key: usize, by: Option<ChannelId>, message: &DeviceMessage) {
        let mut bytes = Vec::with_capacity(24);
        if message.encode(&mut bytes).is_ok() {
            let input = self.viewers.get(key).and_then(|v| v.input_channel);
            self.write_channel(key, by.or(input), &bytes);
        }
    }

    /// Writes to a viewer's `input` channel, if it has one.
    pub(super) fn write_input(&mut self, key: usize, bytes: &[u8]) {
        let input = self.viewers.get(key).and_then(|v| v.input_channel);
        self.write_channel(key, input, bytes);
    }

    fn write_channel(&mut self, key: usize, channel: Option<ChannelId>, bytes: &[u8]) {
        let (Some(viewer), Some(channel)) = (self.viewers.get_mut(key), channel) else { return };
        match viewer.write(channel, bytes) {
            Ok(true) => {}
            Ok(false) | Err(Fault::Error) => self.counters.channel_messages_dropped += 1,
            Err(Fault::Panic) => return self.fail(key, Fault::Panic),
        }
        if let Some(viewer) = self.viewers.get_mut(key) {
            viewer.stale = true;
        }
        self.mark(key);
    }

    pub(super) fn mark(&mut self, key: usize) {
        if let Some(viewer) = self.viewers.get_mut(key)
            && !std::mem::replace(&mut viewer.dirty, true)
        {
            self.dirty.push_back(key);
        }
    }

    /// Sets a viewer's one timer to its next moment.
    pub(super) fn arm(&mut self, key: usize) {
        let Some(viewer) = self.viewers.get_mut(key) else { return };
        let soonest = self.now + TIMER_GRAIN;
        // A timer that is already as near as may be stays: moving it on each time would mean that
        // a busy viewer's timer never comes.
        let wake = viewer.next_wake(&self.limits).map(|at| match viewer.timer {
            Some(set) if (at..=soonest).contains(&set) => set,
            _ => at.max(soonest),
        });
        if wake == viewer.timer {
            return;
        }
        if let Some(old) = viewer.timer {
            self.timers.remove(&(old, Due::Viewer(key)));
        }
        viewer.timer = wake;
        if let Some(at) = wake {
            self.timers.insert((at, Due::Viewer(key)));
        }
    }
}

#[cfg(test)]
impl Core {
    /// Has a viewer's protocol state send reports about media of its own.
    pub(crate) fn provoke_media(&mut self, session: crate::SessionId) {
        let key = self.sessions[&session];
        self.viewers[key].provoke_media();
        self.mark(key);
    }

    /// Has a viewer's protocol state panic, as bytes from that viewer might.
    pub(crate) fn provoke_panic(&mut self, session: crate::SessionId) {
        let key = self.sessions[&session];
        let fault = self.viewers[key].provoke_panic();
        self.fail(key, fault);
    }
}
