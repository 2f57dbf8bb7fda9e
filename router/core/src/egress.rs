//! The hot path: packets of one frame to one viewer, sealed into the batch that the shard sends.
//!
//! Per packet and viewer this file allocates nothing, takes no lock, makes no system call and logs
//! nothing; its loops are bounded by the packets of a frame. The rest of the core decides *which*
//! payloads go out, with which sequence number and time stamp; this file says *how*. The protocol
//! library has no part in it: it agreed on the keys, and was then given others.
//!
//! Invariants, each asserted or tested:
//! * **one sender per key.** A viewer's keys are taken out of their slot once, and make one
//!   [`Media`]; the library never has them ([`fanlight_rtc::keys`]), and what it sends as RTP or
//!   RTCP is dropped. The packet index only grows, for media and for repairs alike, so that no
//!   nonce is used twice: reuse would give the authentication key away.
//! * **runs are segmentable:** all datagrams of a [`Run`] but the last are of one size, the last
//!   is not longer.

use std::ops::Range;
use std::time::{Duration, Instant};

use fanlight_rtc::srtp::{RtcpOpener, RtcpSealer, RtpSealer};
use fanlight_wire::rtp::{Ssrc, ntp_from_unix_us};

use crate::api::{Role, Route};
use crate::batch::{Batch, Run};
use crate::frame::Frame;
use crate::header::{Template, Terms};
use crate::sent::{Sent, SentLog};

/// Longest time between two packets with the capture time; receivers interpolate.
const CAPTURE_TIME_INTERVAL: Duration = Duration::from_secs(1);

/// Datagrams in one run: what one segmented send takes.
pub(crate) const RUN_PACKETS_MAX: usize = 64;

/// Bytes in one run: the largest UDP payload.
const RUN_BYTES_MAX: usize = 65_000;

/// Consecutive packets of one frame for one viewer.
#[derive(Debug)]
pub(crate) struct Packets<'a> {
    pub(crate) frame: &'a Frame,
    /// The frame's number in its stream's history.
    pub(crate) no: u64,
    /// Which of the frame's payloads.
    pub(crate) range: Range<usize>,
    /// Sequence number of the first, roll-overs in the upper bits.
    pub(crate) first_index: u64,
    /// The viewer's time stamp of the frame.
    pub(crate) rtp_time: u32,
    /// A frame on its first way to the viewer, as opposed to a replayed one.
    pub(crate) live: bool,
}

/// What is the same for all packets of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct To {
    pub(crate) route: Route,
    pub(crate) role: Role,
    pub(crate) viewer: usize,
    pub(crate) now: Instant,
    /// The same moment in microseconds since the core began.
    pub(crate) now_us: u64,
}

/// One viewer's media sender: its keys, headers, numbering and log.
#[derive(Debug)]
pub(crate) struct Media {
    seal: RtpSealer,
    overhead: usize,
    template: Template,
    /// The same with the capture time.
    stamped: Option<Template>,
    /// The same for repairs.
    repair: Option<Template>,
    pub(crate) terms: Terms,
    next_twcc: u64,
    next_repair: u64,
    stamped_at: Option<Instant>,
    pub(crate) log: SentLog,
    /// Since the keys were made; a sender report's figures.
    pub(crate) packets: u64,
    pub(crate) octets: u64,
    pub(crate) last: Option<LastFrame>,
    pub(crate) reported_at: Option<Instant>,
    /// A question for the round trip that waits for the next report: who asked, the middle of its
    /// clock, and when it came, in microseconds since the core began.
    pub(crate) asked: Option<(Ssrc, u32, u64)>,
    /// When arrival times last came, in microseconds since the core began; 0: never.
    pub(crate) heard_at_us: u64,
    pub(crate) rtcp: RtcpSealer,
    pub(crate) rtcp_in: RtcpOpener,
    /// Greatest packet index sealed so far: the nonce invariant.
    sealed: Option<u64>,
}

/// The newest frame sent, for the mapping of time stamps to the clock on the wall.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LastFrame {
    pub(crate) rtp_time: u32,
    pub(crate) at: Instant,
    pub(crate) capture_unix_us: Option<u64>,
}

impl Media {
    /// A sender under fresh keys.
    pub(crate) fn new(
        terms: Terms,
        role: Role,
        seal: RtpSealer,
        rtcp: RtcpSealer,
        rtcp_in: RtcpOpener,
    ) -> Self {
        let overhead = seal.overhead();
        let mut media = Self {
            seal,
            overhead,
            template: Template::default(),
            stamped: None,
            repair: None,
            terms,
            next_twcc: 1,
            next_repair: 1,
            stamped_at: None,
            log: SentLog::default(),
            packets: 0,
            octets: 0,
            last: None,
            reported_at: None,
            asked: None,
            heard_at_us: 0,
            rtcp,
            rtcp_in,
            sealed: None,
        };
        media.set_role(role);
        media
    }

    /// Headers for what the viewer may do: who controls asks for no playout delay at all.
    pub(crate) fn set_role(&mut self, role: Role) {
        self.template = Template::new(&self.terms, role, false, false);
        self.stamped =
            self.terms.capture_time.map(|_| Template::new(&self.terms, role, true, false));
        self.repair = self.terms.rtx.map(|_| Template::new(&self.terms, role, false, true));
    }

    /// Seals packets into the batch, as many as it has room for. Returns how many.
    pub(crate) fn send(&mut self, to: To, packets: Packets<'_>, batch: &mut Batch) -> usize {
        let Packets { frame, no, range, first_index, rtp_time, live } = packets;
        let wanted = range.len();
        let first = range.start;
        let mut at = first;
        if first == 0 && self.stamp_due(to.now, frame) {
            at +=
                self.send_run(to, frame, no, at..at + 1, first_index, rtp_time, live, batch, true);
            if at == first {
                return 0;
            }
            self.stamped_at = Some(to.now);
        }
        while at < range.end && batch.has_room() {
            let index = first_index + (at - first) as u64;
            let sent =
                self.send_run(to, frame, no, at..range.end, index, rtp_time, live, batch, false);
            if sent == 0 {
                break;
            }
            at += sent;
        }
        let sent = at - first;
        debug_assert!(sent <= wanted, "never more than asked for");
        if at == frame.payloads.len() {
            self.last =
                Some(LastFrame { rtp_time, at: to.now, capture_unix_us: frame.capture_unix_us });
        }
        sent
    }

    /// One run: packets of one size, the last perhaps shorter.
    #[expect(clippy::too_many_arguments, reason = "the hot path passes what it has in registers")]
    fn send_run(
        &mut self,
        to: To,
        frame: &Frame,
        no: u64,
        range: Range<usize>,
        first_index: u64,
        rtp_time: u32,
        live: bool,
        batch: &mut Batch,
        stamp: bool,
    ) -> usize {
        // The nonce is made of this index: it must be new under this key.
        if self.sealed.is_some_and(|sealed| first_index <= sealed) {
            debug_assert!(false, "a packet index was about to be used twice");
            return 0;
        }
        let last_payload = frame.payloads.len().saturating_sub(1);
        let (overhead, first_twcc, start) = (self.overhead, self.next_twcc, range.start);
        let template = if stamp { self.stamped.as_ref() } else { None }.unwrap_or(&self.template);
        let header_len = template.len();
        let out = batch.free();
        let (mut used, mut segment, mut count, mut octets) = (0, 0, 0_usize, 0_usize);
        for (i, index) in range.zip(first_index..) {
            let Some(payload) = frame.payloads.get(i) else { break };
            let size = header_len + payload.len() + overhead;
            let too_long = count > 0 && size > segment;
            if too_long || count == RUN_PACKETS_MAX || used + size > RUN_BYTES_MAX {
                break;
            }
            let Some(datagram) = out.get_mut(used..used + size) else { break };
            let twcc = first_twcc + count as u64;
            template.write(datagram, i == last_payload, index, rtp_time, twcc);
            if stamp && let Some(us) = frame.capture_unix_us {
                template.write_capture_time(datagram, ntp_from_unix_us(us));
            }
            let sealed = self.seal.seal(index, self.terms.ssrc, header_len, payload, datagram);
            debug_assert_eq!(sealed, Some(size), "the datagram was cut to fit");
            segment = if count == 0 { size } else { segment };
            used += size;
            octets += payload.len();
            count += 1;
            if size < segment {
                break;
            }
        }
        if count == 0 {
            return 0;
        }
        let n = count as u64;
        self.sealed = Some(first_index + n - 1);
        self.next_twcc += n;
        self.packets += n;
        self.octets += octets as u64;
        self.log.push(Sent::of_media(
            first_index,
            first_twcc,
            count,
            to.now_us,
            no,
            start,
            rtp_time,
            segment,
            used - segment * (count - 1),
        ));
        batch.push(Run {
            to: to.route,
            start: 0,
            len: used,
            segment,
            count,
            arrived: live.then_some(frame.arrived),
            controller: to.role == Role::Controller,
            viewer: to.viewer,
        });
        count
    }

    fn stamp_due(&self, now: Instant, frame: &Frame) -> bool {
        frame.capture_unix_us.is_some()
            && self.stamped.is_some()
            && self
                .stamped_at
                .is_none_or(|at| now.saturating_duration_since(at) >= CAPTURE_TIME_INTERVAL)
    }

    /// Sends a packet again (RFC 4588): under the repair stream's own source and numbers, the
    /// original sequence number in front of the payload. Returns its size, or `None` when the
    /// batch has no room or the viewer has no repair stream.
    pub(crate) fn resend(
        &mut self,
        to: To,
        lost: Lost<'_>,
        scratch: &mut [u8],
        batch: &mut Batch,
    ) -> Option<usize> {
        let (_, ssrc) = self.terms.rtx?;
        let template = self.repair.as_ref()?;
        let plain = scratch.get_mut(..lost.payload.len() + 2)?;
        plain.get_mut(..2)?.copy_from_slice(&lost.seq.to_be_bytes());
        plain.get_mut(2..)?.copy_from_slice(lost.payload);
        let size = template.len() + plain.len() + self.overhead;
        let datagram = batch.free().get_mut(..size)?;
        template.write(datagram, lost.marker, self.next_repair, lost.rtp_time, self.next_twcc);
        self.seal.seal(self.next_repair, ssrc, template.len(), plain, datagram)?;
        self.log.push(Sent::of_repair(self.next_twcc, to.now_us, size));
        self.next_repair += 1;
        self.next_twcc += 1;
        batch.push(Run {
            to: to.route,
            start: 0,
            len: size,
            segment: size,
            count: 1,
            arrived: None,
            controller: to.role == Role::Controller,
            viewer: to.viewer,
        });
        Some(size)
    }
}

/// A packet to be sent again.
#[derive(Debug)]
pub(crate) struct Lost<'a> {
    /// The viewer's sequence number of it.
    pub(crate) seq: u16,
    pub(crate) payload: &'a [u8],
    pub(crate) rtp_time: u32,
    pub(crate) marker: bool,
}
