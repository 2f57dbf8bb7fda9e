//! The pace of one publish: takes pictures from a source and sends each when its time has come.
//! Not the connection. Invariant: pictures of a moving stream keep their mean rate, however late
//! some were, so that a busy machine sends late pictures and not fewer.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use fanlight_proto::node::v1::hop_message::Body;
use fanlight_wire::{
    pack::{DEFAULT_MAX_PAYLOAD, Packetizer},
    roq::Slot,
    rtp::VIDEO_CLOCK_HZ,
};
use tokio::sync::{mpsc, watch};

use super::{
    Arrived, Device,
    hop::{Framing, Hop, HopError},
};
use crate::{ledger::Leaving, source::Source};

/// What the source does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// A picture every 1 / fps.
    Moving,
    /// One keyframe, then nothing until somebody asks for one.
    Static,
    /// Nothing new at all; what is asked for is counted and given.
    Paused,
}

/// How a device is to be published.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Pictures per second.
    pub fps: u32,
    /// What the source does; may change while it runs.
    pub pace: watch::Receiver<Pace>,
}

/// One publish while it lasts.
pub(super) struct Publishing<'a> {
    pub(super) hop: &'a Hop,
    pub(super) device: &'a Arc<Device>,
    pub(super) source: &'a mut Source,
    pub(super) plan: Plan,
    pub(super) slot: Slot,
    pub(super) ssrc: u32,
}

impl Publishing<'_> {
    /// Sends until the connection ends or the router ends the publish.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<Body>) -> Result<(), HopError> {
        let mut framing = Framing::new(self.slot, self.ssrc);
        let mut packetizer = Packetizer::new(DEFAULT_MAX_PAYLOAD);
        let period = Duration::from_secs(1) / self.plan.fps.max(1);
        let epoch = Instant::now();
        // Publishing always begins with a keyframe: the router knows nothing of this stream.
        let mut key = true;
        let mut due = tokio::time::Instant::now();
        let mut before = None;
        loop {
            let pace = *self.plan.pace.borrow_and_update();
            // A screen that comes to rest shows a last whole picture.
            let rests = pace == Pace::Static && before.is_some_and(|before| before != pace);
            before = Some(pace);
            key |= rests;
            if !key && pace != Pace::Moving {
                tokio::select! {
                    event = events.recv() => match event {
                        Some(event) => match self.event(event) {
                            Said::Key => { key = true; due = tokio::time::Instant::now(); }
                            Said::End => return Ok(()),
                            Said::Nothing => {}
                        },
                        None => return Ok(()),
                    },
                    changed = self.plan.pace.changed() => {
                        if changed.is_err() { return Ok(()); }
                        due = tokio::time::Instant::now();
                    }
                }
                continue;
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(due) => {}
                event = events.recv() => {
                    match event.map(|event| self.event(event)) {
                        Some(Said::Key) => key = true,
                        Some(Said::Nothing) => {}
                        Some(Said::End) | None => return Ok(()),
                    }
                    continue;
                }
            }
            self.device.late.lock().note(due.elapsed());
            self.send(&mut framing, &mut packetizer, std::mem::take(&mut key), epoch).await?;
            // What is late is made up for, but not all at once: no encoder does that.
            due = (due + period).max(tokio::time::Instant::now() + period / 4);
        }
    }

    async fn send(
        &mut self,
        framing: &mut Framing,
        packetizer: &mut Packetizer,
        key: bool,
        epoch: Instant,
    ) -> Result<(), HopError> {
        let picture = self.source.next_picture(key);
        let mut payloads = Vec::new();
        if let Err(error) = packetizer.packetize(&picture.au, &mut payloads) {
            tracing::warn!(%error, number = picture.number, "a picture that cannot be sent");
            return Ok(());
        }
        let mut bytes = Vec::new();
        let now = Instant::now();
        framing.encode(&payloads, rtp_time(now.duration_since(epoch)), &mut bytes);
        let size: usize = payloads.iter().map(Vec::len).sum();
        self.device.ledger.publish(
            Instant::now(),
            Leaving {
                number: picture.number,
                hash: picture.hash,
                packets: u32::try_from(payloads.len()).unwrap_or(u32::MAX),
                bytes: u32::try_from(size).unwrap_or(u32::MAX),
                key: picture.key,
                discardable: picture.discardable,
            },
        );
        self.hop.picture(&bytes).await
    }

    fn event(&self, event: Body) -> Said {
        match event {
            Body::KeyframeRequest(_) => {
                self.device.ledger.keyframe_requests.fetch_add(1, Ordering::Relaxed);
                Said::Key
            }
            Body::DeviceInput(input) => {
                let arrived = Arrived { message: input.message, at: Instant::now() };
                let _ = self.device.inputs.send(arrived);
                Said::Nothing
            }
            Body::Unpublish(_) | Body::PublishReject(_) => Said::End,
            _ => Said::Nothing,
        }
    }
}

enum Said {
    Nothing,
    Key,
    End,
}

/// The 90 kHz clock, wrapped.
#[expect(clippy::cast_possible_truncation, reason = "the RTP clock wraps at 32 bits")]
fn rtp_time(since: Duration) -> u32 {
    (since.as_micros() * u128::from(VIDEO_CLOCK_HZ) / 1_000_000) as u32
}
