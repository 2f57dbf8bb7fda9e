//! One publish: a device's feed to one router under one epoch. It waits for the device's first
//! keyframe and for the connection, publishes, sends the group of pictures that is already there,
//! then one QUIC stream per frame. Not the decision to publish (that is the control plane's want).
//! Invariant: sequence numbers have no gap except where a frame was cancelled, and after anything
//! was cancelled or lost the next frame sent is a keyframe.

use std::{collections::HashMap, sync::Arc, time::Duration};

use fanlight_proto::{
    node::v1::{DeviceOutput, HopStats, Publish, PublishReject, Unpublish, hop_message::Body},
    reason::Reason,
};
use fanlight_wire::{
    roq::{FlowId, Slot, error_code, write_packet, write_stream_header},
    rtp::{
        HOP_ABS_CAPTURE_TIME_ID, HOP_H264_PAYLOAD_TYPE, RtpBuilder, RtpTime, SeqNo, Ssrc,
        ntp_from_unix_us,
    },
};
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use quinn::SendStream;
use tokio::{
    sync::{broadcast::error::RecvError, mpsc, watch},
    time::{Instant, MissedTickBehavior, timeout},
};

use super::{
    Uplink, code,
    link::{InputSink, Link, SlotEvent},
};
use crate::{
    backoff::Backoff,
    feed::{Feed, FeedState},
    frame::{CLOCK_RATE_HZ, Frame},
    rate::{LOOK, RateRule, STALE_AFTER, Verdict},
};

/// How long a router may take to answer a publish.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait a router's `retry_after` is followed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);
/// Video goes behind control and input.
const VIDEO_PRIORITY: i32 = 0;

/// What is published.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PublishSpec {
    /// `streams/{stream}`.
    pub stream: String,
    /// The epoch under which the control plane assigned it.
    pub epoch: u64,
    /// Shown to the router.
    pub push_token: Vec<u8>,
    /// Told to the router.
    pub max_fps: u32,
    /// Told to the router.
    pub bitrate_bps: u64,
}

/// Where a publish stands, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// Not sending; why.
    Waiting(String),
    /// The router accepted and frames flow.
    Live,
    /// The router will not take this epoch and token; nothing more is tried.
    Refused {
        /// One of the API's error reasons.
        reason: String,
    },
}

/// What a publish needs of its device.
pub trait Host: Send + Sync + 'static {
    /// Where frames come from.
    fn feed(&self) -> &Feed;
    /// Input of a viewer.
    fn input(&self, viewer: u64, message: &[u8]);
    /// A router took the stream anew: leases count from the start.
    fn accepted(&self);
    /// The router is gone, and with it every viewer that could lift a finger.
    fn lost(&self);
    /// Somebody needs a keyframe.
    fn keyframe(&self);
    /// How the uplink does, every quarter of a second.
    fn uplink(&self, state: crate::rate::Uplink);
}

enum Ended {
    /// Try again at once when the feed is live and the link up.
    Again,
    /// Try again after a pause.
    After(Duration),
    /// Never.
    Refused(String),
}

/// Publishes until dropped. Tells each change of state.
pub async fn run<H: Host>(
    spec: PublishSpec,
    uplink: Uplink,
    host: Arc<H>,
    tell: impl Fn(Published) + Send + Sync,
) {
    let mut feed = host.feed().state();
    let mut link_state = uplink.state();
    let mut backoff = Backoff::default();
    loop {
        tell(Published::Waiting("the device has no picture".to_owned()));
        if feed.wait_for(|s| s.live).await.is_err() {
            return;
        }
        let link = {
            if link_state.borrow().is_none() {
                tell(Published::Waiting("the router is not reachable".to_owned()));
            }
            let state = link_state.wait_for(Option::is_some).await;
            let Ok(link) = state.map(|s| s.clone()) else { return };
            link
        };
        let Some(link) = link else { continue };
        let ended = once(&spec, &link, &host, &mut feed, &mut backoff, &tell).await;
        match ended {
            Ended::Again => {}
            Ended::After(pause) => tokio::time::sleep(pause).await,
            Ended::Refused(reason) => {
                tracing::warn!(stream = %spec.stream, epoch = spec.epoch, %reason, "publish refused");
                tell(Published::Refused { reason });
                return std::future::pending().await;
            }
        }
        // A link that is over is not used twice, also when its watch lags behind.
        if link.connection().close_reason().is_some() {
            let _ =
                link_state.wait_for(|s| s.as_ref().is_none_or(|l| !Arc::ptr_eq(l, &link))).await;
        }
    }
}

/// One publish on one connection.
async fn once<H: Host>(
    spec: &PublishSpec,
    link: &Arc<Link>,
    host: &Arc<H>,
    feed: &mut watch::Receiver<FeedState>,
    backoff: &mut Backoff,
    tell: &(impl Fn(Published) + Send + Sync),
) -> Ended {
    let input: InputSink = {
        let host = Arc::clone(host);
        Arc::new(move |viewer, message| host.input(viewer, message))
    };
    let Some((guard, mut events)) = link.open_slot(input) else {
        return Ended::After(backoff.next_random());
    };
    let slot = guard.slot();
    let ssrc: u32 = rand::random();
    let state = *feed.borrow();
    if !link.send(Body::Publish(publish_message(spec, slot, ssrc, state))).await {
        return Ended::Again;
    }
    match timeout(ANSWER_TIMEOUT, answer(&mut events, link)).await {
        Ok(Answer::Accepted) => {}
        Ok(Answer::Rejected(reject)) => return rejected(reject, backoff, tell),
        Ok(Answer::LinkLost) => return Ended::Again,
        Err(_) => {
            unpublish(link, slot, Reason::Internal).await;
            return Ended::After(backoff.next_random());
        }
    }
    backoff.reset();
    host.accepted();
    metrics::counter!("fanlight_ingest_publishes_opened_total").increment(1);
    tracing::info!(stream = %spec.stream, epoch = spec.epoch, router = link.peer(), "publishing");
    tell(Published::Live);
    let mut sender = Sender::new(Arc::clone(link), slot, ssrc);
    // A publish that is dropped (its want is gone) leaves the router and the fingers behind clean.
    let mut leave = Leave { link: Arc::clone(link), slot, host: Arc::clone(host), told: false };
    let ended = stream(&mut sender, host.as_ref(), feed, &mut events).await;
    leave.told = matches!(ended, Ended::After(_) | Ended::Refused(_));
    ended
}

/// Says goodbye however a publish ends.
struct Leave<H: Host> {
    link: Arc<Link>,
    slot: Slot,
    host: Arc<H>,
    told: bool,
}

impl<H: Host> Drop for Leave<H> {
    fn drop(&mut self) {
        metrics::counter!("fanlight_ingest_publishes_closed_total").increment(1);
        self.host.lost();
        if !self.told {
            let live = self.host.feed().state().borrow().live;
            let reason = if live { "" } else { Reason::DeviceOffline.as_str() };
            let reason = reason.to_owned();
            self.link.try_send(Body::Unpublish(Unpublish { slot: self.slot.get(), reason }));
        }
    }
}

enum Answer {
    Accepted,
    Rejected(PublishReject),
    LinkLost,
}

async fn answer(events: &mut mpsc::Receiver<SlotEvent>, link: &Link) -> Answer {
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(SlotEvent::Accepted) => return Answer::Accepted,
                Some(SlotEvent::Rejected(reject)) => return Answer::Rejected(reject),
                Some(_) => {}
                None => return Answer::LinkLost,
            },
            _ = link.connection().closed() => return Answer::LinkLost,
        }
    }
}

fn rejected(
    reject: PublishReject,
    backoff: &mut Backoff,
    tell: &(impl Fn(Published) + Send + Sync),
) -> Ended {
    metrics::counter!("fanlight_ingest_publishes_rejected_total").increment(1);
    let reason: String = reject.reason.chars().take(64).collect();
    if reject.retry_after_ms == 0 {
        return Ended::Refused(reason);
    }
    tracing::debug!(%reason, message = %reject.message, "publish not taken yet");
    tell(Published::Waiting(reason));
    let asked = Duration::from_millis(u64::from(reject.retry_after_ms)).min(MAX_RETRY_AFTER);
    Ended::After(asked.max(backoff.next_random().min(asked * 2)))
}

async fn unpublish(link: &Link, slot: Slot, reason: Reason) {
    let reason = reason.as_str().to_owned();
    link.send(Body::Unpublish(Unpublish { slot: slot.get(), reason })).await;
}

fn publish_message(spec: &PublishSpec, slot: Slot, ssrc: u32, state: FeedState) -> Publish {
    Publish {
        slot: slot.get(),
        stream: spec.stream.clone(),
        epoch: spec.epoch,
        push_token: spec.push_token.clone(),
        codec: "h264".to_owned(),
        payload_type: u32::from(HOP_H264_PAYLOAD_TYPE),
        ssrc,
        clock_rate_hz: CLOCK_RATE_HZ,
        width: state.width.into(),
        height: state.height.into(),
        max_fps: spec.max_fps,
        bitrate_bps: spec.bitrate_bps,
    }
}

/// Sends the feed until the link, the feed or the router ends it.
async fn stream<H: Host>(
    sender: &mut Sender,
    host: &H,
    feed: &mut watch::Receiver<FeedState>,
    events: &mut mpsc::Receiver<SlotEvent>,
) -> Ended {
    let mut subscription = host.feed().subscribe();
    if subscription.backlog.is_empty() {
        sender.rate.lost();
    }
    for frame in std::mem::take(&mut subscription.backlog) {
        sender.frame(&frame).await;
    }
    let connection = sender.link.connection().clone();
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    every_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if sender.rate.needs_key() && !std::mem::replace(&mut sender.asked_key, true) {
            host.keyframe();
        }
        let check = sender.next_check();
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(SlotEvent::Keyframe) => host.keyframe(),
                Some(SlotEvent::Ended(reason)) => {
                    tracing::info!(%reason, "router ended the publish");
                    return Ended::After(crate::backoff::MIN);
                }
                Some(SlotEvent::Rejected(r)) if r.retry_after_ms == 0 => {
                    return Ended::Refused(r.reason);
                }
                Some(SlotEvent::Rejected(_)) => return Ended::After(crate::backoff::MIN),
                Some(SlotEvent::Accepted) => {}
                None => return Ended::Again,
            },
            Some(id) = sender.acknowledged.next() => sender.done(id),
            frame = subscription.frames.recv() => match frame {
                Ok(frame) => sender.frame(&frame).await,
                Err(RecvError::Lagged(n)) => {
                    sender.skipped += n;
                    sender.rate.lost();
                }
                Err(RecvError::Closed) => return Ended::Again,
            },
            Ok(message) = subscription.outputs.recv() => {
                let message = message.as_ref().clone();
                sender.link.send(Body::DeviceOutput(DeviceOutput { slot: sender.slot.get(), message })).await;
            }
            () = tokio::time::sleep_until(check) => sender.reset_if_stale(),
            _ = every_second.tick() => sender.report(),
            _ = looks.tick() => {
                let rtt = connection.rtt();
                host.uplink(sender.rate.look(std::time::Instant::now(), rtt));
            }
            () = source_ended(feed) => return Ended::Again,
            _ = connection.closed() => return Ended::Again,
        }
    }
}

async fn source_ended(feed: &mut watch::Receiver<FeedState>) {
    let _ = feed.wait_for(|s| !s.live).await;
}

/// Frames to one slot.
struct Sender {
    link: Arc<Link>,
    slot: Slot,
    ssrc: Ssrc,
    seq: SeqNo,
    time_offset: u32,
    rate: RateRule,
    asked_key: bool,
    next_id: u64,
    streams: HashMap<u64, SendStream>,
    acknowledged: FuturesUnordered<BoxFuture<'static, u64>>,
    sent: u64,
    reset: u64,
    skipped: u64,
    bytes: u64,
    buffer: Vec<u8>,
}

impl Sender {
    fn new(link: Arc<Link>, slot: Slot, ssrc: u32) -> Self {
        Self {
            link,
            slot,
            ssrc: Ssrc(ssrc),
            seq: SeqNo(rand::random()),
            time_offset: rand::random(),
            rate: RateRule::default(),
            asked_key: false,
            next_id: 0,
            streams: HashMap::new(),
            acknowledged: FuturesUnordered::new(),
            sent: 0,
            reset: 0,
            skipped: 0,
            bytes: 0,
            buffer: Vec::new(),
        }
    }

    /// Sends one frame, or drops it when a keyframe is waited for.
    async fn frame(&mut self, frame: &Frame) {
        self.reset_if_stale();
        if self.rate.judge(frame.key) == Verdict::Drop {
            self.skipped += 1;
            metrics::counter!("fanlight_ingest_frames_skipped_total").increment(1);
            return;
        }
        if frame.key {
            self.asked_key = false;
            let late = self.rate.superseded(std::time::Instant::now());
            self.cancel(late);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        self.encode(frame, &mut buffer);
        match timeout(STALE_AFTER, write(&self.link, &buffer)).await {
            Ok(Some(stream)) => self.note(stream, buffer.len()),
            // The connection is over; the loop sees it.
            Ok(None) => {}
            Err(_) => {
                // No room in the window for as long as a frame may take at all.
                self.rate.lost();
                self.reset += 1;
                metrics::counter!("fanlight_ingest_frames_reset_total").increment(1);
            }
        }
        buffer.clear();
        self.buffer = buffer;
    }

    /// `flow | (length | RTP)*`.
    fn encode(&mut self, frame: &Frame, out: &mut Vec<u8>) {
        write_stream_header(FlowId::video(self.slot), out);
        let time = RtpTime(frame.rtp_time).wrapping_add(self.time_offset);
        let mut packet = Vec::with_capacity(1_200);
        let last = frame.payloads.len().saturating_sub(1);
        for (i, payload) in frame.payloads.iter().enumerate() {
            let capture = ntp_from_unix_us(frame.capture_unix_us);
            let plain = || {
                RtpBuilder::new(HOP_H264_PAYLOAD_TYPE, self.seq, time, self.ssrc).marker(i == last)
            };
            let header = match plain().abs_capture_time(HOP_ABS_CAPTURE_TIME_ID, capture) {
                Ok(stamped) if i == 0 => stamped,
                _ => plain(),
            };
            packet.clear();
            header.write(payload, &mut packet);
            write_packet(&packet, out);
            self.seq = self.seq.next();
        }
    }

    fn note(&mut self, stream: SendStream, bytes: usize) {
        let id = self.next_id;
        self.next_id += 1;
        let stopped = stream.stopped();
        self.acknowledged.push(Box::pin(async move {
            let _ = stopped.await;
            id
        }));
        self.streams.insert(id, stream);
        self.rate.sent(std::time::Instant::now(), id, bytes);
        self.sent += 1;
        self.bytes += bytes as u64;
        metrics::counter!("fanlight_ingest_frames_sent_total").increment(1);
        metrics::counter!("fanlight_ingest_sent_bytes_total").increment(bytes as u64);
    }

    fn done(&mut self, id: u64) {
        self.streams.remove(&id);
        self.rate.done(id);
    }

    fn next_check(&self) -> Instant {
        let rtt = self.link.connection().rtt();
        self.rate
            .next_check(rtt)
            .map_or_else(|| Instant::now() + Duration::from_secs(3_600), Instant::from_std)
    }

    /// Cancels everything in flight when the path is too far behind.
    fn reset_if_stale(&mut self) {
        let rtt = self.link.connection().rtt();
        let stale = self.rate.stale(std::time::Instant::now(), rtt);
        if stale.is_empty() {
            return;
        }
        tracing::debug!(frames = stale.len(), "uplink is behind; frames cancelled");
        self.cancel(stale);
    }

    fn cancel(&mut self, frames: Vec<u64>) {
        for id in frames {
            if let Some(mut stream) = self.streams.remove(&id)
                && stream.reset(code(error_code::FRAME_CANCELLED)).is_ok()
            {
                self.reset += 1;
                metrics::counter!("fanlight_ingest_frames_reset_total").increment(1);
            }
        }
    }

    fn report(&self) {
        let age = self.rate.unacked_age(std::time::Instant::now());
        metrics::histogram!("fanlight_ingest_unacked_age_seconds").record(age.as_secs_f64());
        self.link.try_send(Body::Stats(HopStats {
            slot: self.slot.get(),
            frames_sent: self.sent,
            frames_reset: self.reset,
            frames_skipped: self.skipped,
            bytes_sent: self.bytes,
        }));
    }
}

/// Opens a stream and writes it whole. `None`: the connection is over.
async fn write(link: &Link, bytes: &[u8]) -> Option<SendStream> {
    let mut cancel = CancelOnDrop(Some(link.connection().open_uni().await.ok()?));
    let stream = cancel.0.as_mut()?;
    let _ = stream.set_priority(VIDEO_PRIORITY);
    // STOP_SENDING means the router does not want this frame; the stream is finished all the same.
    if let Err(quinn::WriteError::ConnectionLost(_)) = stream.write_all(bytes).await {
        return None;
    }
    let _ = stream.finish();
    cancel.0.take()
}

/// A stream given up half-written must be reset: dropping it would finish it, and half a frame would
/// look whole.
struct CancelOnDrop(Option<SendStream>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(stream) = &mut self.0 {
            let _ = stream.reset(code(error_code::FRAME_CANCELLED));
        }
    }
}
