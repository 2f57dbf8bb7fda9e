//! What the multiplexer does with each packet of the peer.
//!
//! Not here: the calls of the application (`mux`). Invariant: a packet for a stream that is not
//! known is late, not wrong: both ends may close at the same time.

use super::{
    Event, Mux, REFUSALS_MAX, SERVICE_LEN_MAX, StreamId,
    stream::{End, Phase, Stream},
};
use crate::{
    counters::add,
    error::{ProtocolError, StreamFailure},
    packet::Packet,
};

impl Mux {
    pub(super) fn on_open(&mut self, packet: &Packet) -> Result<(), ProtocolError> {
        let (remote, window) = (packet.arg0, packet.arg1);
        if remote == 0 {
            return Err(ProtocolError::ZeroId { command: "OPEN" });
        }
        let end = packet.payload.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        let service = std::str::from_utf8(&packet.payload[..end]).ok();
        let fits = (window != 0) == self.config.delayed_ack
            && self.streams.len() < self.config.streams_max;
        let service = service.filter(|s| fits && !s.is_empty() && s.len() <= SERVICE_LEN_MAX);
        if self.refusals.len() >= REFUSALS_MAX {
            return Err(ProtocolError::OpenFlood);
        }
        let Some(service) = service else {
            self.refusals.push_back(remote);
            add(&self.counters.streams_refused, 1);
            return Ok(());
        };
        let id = self.fresh_id();
        self.streams.insert(id, Stream::incoming(remote, window));
        self.events.push_back(Event::Incoming { id: StreamId(id), service: service.to_owned() });
        Ok(())
    }

    pub(super) fn on_okay(&mut self, packet: &Packet) -> Result<(), ProtocolError> {
        let (remote, id) = (packet.arg0, packet.arg1);
        if remote == 0 || id == 0 {
            return Err(ProtocolError::ZeroId { command: "OKAY" });
        }
        // Unknown ids are late answers to streams closed here: normal.
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        match stream.phase {
            Phase::Opening if stream.open.is_none() => {
                stream.remote = remote;
                stream.phase = if stream.held { Phase::Open } else { Phase::Closing };
                add(&self.counters.streams_opened, 1);
                if stream.acknowledged(&packet.payload, self.config.delayed_ack) {
                    self.events.push_back(Event::Opened(StreamId(id)));
                    self.queue(id);
                } else {
                    self.fail(id, StreamFailure::BadAcknowledgement);
                }
            }
            Phase::Open | Phase::Closing if stream.remote == remote => {
                if !stream.acknowledged(&packet.payload, self.config.delayed_ack) {
                    self.fail(id, StreamFailure::BadAcknowledgement);
                } else if stream.has_output(&self.config) {
                    self.queue(id);
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn on_write(&mut self, packet: &Packet) -> Result<(), ProtocolError> {
        let (remote, id) = (packet.arg0, packet.arg1);
        if remote == 0 || id == 0 {
            return Err(ProtocolError::ZeroId { command: "WRTE" });
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if !matches!(stream.phase, Phase::Open | Phase::Closing) || stream.remote != remote {
            return Ok(());
        }
        let len = packet.payload.len();
        if stream.overruns(len, &self.config) {
            self.fail(id, StreamFailure::WindowOverrun);
            return Ok(());
        }
        if stream.held && self.unread + len > self.config.unread_budget {
            self.fail(id, StreamFailure::BudgetExceeded);
            return Ok(());
        }
        stream.received(&packet.payload, &self.config);
        if stream.held {
            self.unread += len;
            self.events.push_back(Event::Readable(StreamId(id)));
        }
        if stream.has_output(&self.config) {
            self.queue(id);
        }
        Ok(())
    }

    pub(super) fn on_close(&mut self, packet: &Packet) -> Result<(), ProtocolError> {
        let (remote, id) = (packet.arg0, packet.arg1);
        if id == 0 {
            return Err(ProtocolError::ZeroId { command: "CLSE" });
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        match stream.phase {
            Phase::Opening if stream.open.is_none() => {
                add(&self.counters.streams_refused, 1);
                self.finish(id, End::Refused);
            }
            // adbd has long sent 0 in place of its own id, for closes as for refusals.
            Phase::Incoming | Phase::Open | Phase::Closing
                if remote == 0 || remote == stream.remote =>
            {
                self.finish(id, End::Orderly);
            }
            _ => {}
        }
        Ok(())
    }
}
