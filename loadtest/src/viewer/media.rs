//! The media of one viewer: opens SRTP and SRTCP, puts packets in order, verifies pictures, and
//! says back what a browser would (NACK, PLI, transport-wide feedback, receiver reports). No
//! socket and no protocol library. Invariant: a packet that does not authenticate changes nothing
//! but a counter.

use std::time::{Duration, Instant};

use fanlight_rtc::srtp::{Contexts, RtcpOpener, RtcpSealer, RtpOpener};
use fanlight_wire::{
    pack::payload_facts,
    rtcp::{self, Packet},
    rtp::{RtpView, Ssrc, is_rtcp},
};

use super::{
    Outlet,
    answer::Terms,
    feedback::{Arrivals, Reception},
    hostile::Knows,
    reassembly::{Piece, Reassembly},
    verify::Verifier,
};

/// Interval of transport-wide feedback, as browsers send it at these rates.
pub(super) const FEEDBACK: Duration = Duration::from_millis(50);
/// Interval of receiver reports.
const REPORT: Duration = Duration::from_secs(1);
/// Least time between two requests for a keyframe.
const PLI: Duration = Duration::from_millis(300);
/// Until a repair was seen, a request is repeated after this.
const RTT_GUESS: Duration = Duration::from_millis(60);
/// Sequence numbers in one NACK.
const NACK_MAX: usize = 200;

/// What the media of a viewer came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that authenticated.
    pub packets: u64,
    /// Bytes of datagrams of these.
    pub bytes: u64,
    /// Packets that did not authenticate, or came twice.
    pub refused: u64,
    /// Repairs that arrived.
    pub repairs: u64,
    /// NACK packets sent.
    pub nacks: u64,
    /// Sequence numbers asked for in them.
    pub asked: u64,
    /// Keyframes asked for.
    pub plis: u64,
    /// Feedback packets sent (TWCC).
    pub feedbacks: u64,
    /// Sender reports that arrived.
    pub sender_reports: u64,
}

/// Media of one viewer.
pub(super) struct Media {
    opener: RtpOpener,
    sealer: RtcpSealer,
    rtcp_opener: RtcpOpener,
    terms: Terms,
    ours: Ssrc,
    theirs: Option<Ssrc>,
    start: Instant,
    arrivals: Arrivals,
    reception: Reception,
    order: Reassembly,
    pub(super) verifier: Verifier,
    pub(super) counts: Counts,
    rtt: Duration,
    asked_at: Option<Instant>,
    report_at: Instant,
    pli_at: Option<Instant>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    replay: Vec<u8>,
    pieces: Vec<Piece>,
}

impl Media {
    pub(super) fn new(
        now: Instant,
        contexts: Contexts,
        terms: Terms,
        verifier: Verifier,
        ours: Ssrc,
    ) -> Self {
        Self {
            opener: contexts.rtp_in,
            sealer: contexts.rtcp,
            rtcp_opener: contexts.rtcp_in,
            terms,
            ours,
            theirs: None,
            start: now,
            arrivals: Arrivals::new(now),
            reception: Reception::default(),
            order: Reassembly::default(),
            verifier,
            counts: Counts::default(),
            rtt: RTT_GUESS,
            asked_at: None,
            report_at: now + REPORT,
            pli_at: None,
            plain: Vec::with_capacity(1_500),
            sealed: Vec::with_capacity(256),
            replay: Vec::new(),
            pieces: Vec::new(),
        }
    }

    pub(super) fn order(&self) -> super::reassembly::Counts {
        self.order.counts()
    }

    /// Takes an SRTP or SRTCP packet.
    pub(super) fn datagram(&mut self, now: Instant, bytes: &[u8], out: &mut impl Outlet) {
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        if is_rtcp(bytes) {
            match self.rtcp_opener.open(bytes, &mut plain) {
                Ok(()) => self.rtcp(now, &plain),
                Err(_) => self.counts.refused += 1,
            }
        } else {
            match self.opener.open(bytes, &mut plain) {
                Ok(opened) => {
                    self.counts.packets += 1;
                    self.counts.bytes += bytes.len() as u64;
                    self.rtp(now, opened.index, &plain, out);
                }
                Err(_) => self.counts.refused += 1,
            }
        }
        self.plain = plain;
    }

    fn rtcp(&mut self, now: Instant, plain: &[u8]) {
        for packet in rtcp::packets(plain).map_while(Result::ok) {
            if let Packet::SenderReport(report) = packet {
                self.counts.sender_reports += 1;
                self.reception.sender_report(now, report.info.ntp);
            }
        }
    }

    fn rtp(&mut self, now: Instant, index: u64, plain: &[u8], out: &mut impl Outlet) {
        let Ok(rtp) = RtpView::parse(plain) else {
            self.counts.refused += 1;
            return;
        };
        if let Some(id) = self.terms.twcc
            && let Some(&[high, low]) = rtp.extension(id)
        {
            self.arrivals.note(now, u16::from_be_bytes([high, low]));
        }
        let (payload_type, rtp_time) = (rtp.payload_type(), rtp.timestamp().0);
        let mut index = index;
        let mut payload = rtp.payload();
        let repair = Some(payload_type) == self.terms.rtx;
        if repair {
            // RFC 4588: the original's number stands first. An empty one only probes the path.
            let Some((&original, rest)) = payload.split_first_chunk::<2>() else { return };
            let Some(meant) = self.order.index_of(u16::from_be_bytes(original)) else { return };
            (index, payload) = (meant, rest);
            self.counts.repairs += 1;
            if let Some(asked) = self.asked_at.take() {
                let took = now.saturating_duration_since(asked).min(Duration::from_millis(500));
                self.rtt = (self.rtt * 7 + took) / 8;
            }
        } else if payload_type == self.terms.payload_type {
            self.theirs = Some(rtp.ssrc());
            let elapsed = now.saturating_duration_since(self.start);
            self.reception.note(index, rtp_time, elapsed);
        } else {
            self.counts.refused += 1;
            return;
        }
        let piece = Piece {
            payload: payload.to_vec(),
            marker: rtp.marker(),
            rtp_time,
            // On the hop, and so here, parameter sets stand in front of every keyframe.
            key_start: payload_facts(payload).has_param_sets,
            after_gap: false,
        };
        let mut pieces = std::mem::take(&mut self.pieces);
        let holes = self.order.push(now, index, repair, piece, &mut pieces);
        self.deliver(now, &mut pieces, out);
        self.pieces = pieces;
        if holes {
            self.ask(now, out);
        }
    }

    fn deliver(&mut self, now: Instant, pieces: &mut Vec<Piece>, out: &mut impl Outlet) {
        for piece in pieces.drain(..) {
            if let Some(shown) = self.verifier.push(&piece) {
                out.shown(now, &shown);
                if !shown.decodable {
                    self.ask_keyframe(now, out);
                }
            }
        }
    }

    /// Asks for what is missing.
    fn ask(&mut self, now: Instant, out: &mut impl Outlet) {
        let (true, Some(theirs)) = (self.terms.nack && self.terms.rtx.is_some(), self.theirs)
        else {
            return;
        };
        let mut wanted = Vec::new();
        self.order.ask(now, self.rtt, &mut wanted);
        for part in wanted.chunks(NACK_MAX) {
            let mut packet = self.report(now);
            rtcp::write_nack(self.ours, theirs, part, &mut packet);
            self.counts.nacks += 1;
            self.counts.asked += part.len() as u64;
            self.asked_at.get_or_insert(now);
            self.send(&packet, out);
        }
    }

    fn ask_keyframe(&mut self, now: Instant, out: &mut impl Outlet) {
        let soon = self.pli_at.is_some_and(|at| now.duration_since(at) < PLI);
        let (true, false, Some(theirs)) = (self.terms.pli, soon, self.theirs) else { return };
        self.pli_at = Some(now);
        self.counts.plis += 1;
        let mut packet = self.report(now);
        rtcp::write_pli(self.ours, theirs, &mut packet);
        self.send(&packet, out);
    }

    /// A compound packet begins with a report (RFC 3550, 6.1); it is empty between reports.
    fn report(&self, _now: Instant) -> Vec<u8> {
        let mut packet = Vec::with_capacity(128);
        rtcp::write_receiver_report(self.ours, &[], &mut packet);
        packet
    }

    /// What is due every [`FEEDBACK`].
    pub(super) fn tick(&mut self, now: Instant, out: &mut impl Outlet) {
        let mut pieces = std::mem::take(&mut self.pieces);
        self.order.expire(now, &mut pieces);
        self.deliver(now, &mut pieces, out);
        self.pieces = pieces;
        let Some(theirs) = self.theirs else { return };
        if self.order.is_waiting() {
            self.ask(now, out);
        }
        let mut packet = Vec::with_capacity(128);
        if now >= self.report_at {
            self.report_at = now + REPORT;
            let block = self.reception.block(now, theirs);
            rtcp::write_receiver_report(self.ours, block.as_slice(), &mut packet);
            let _ = rtcp::write_sdes_cname(self.ours, "load", &mut packet);
        }
        // Feedback of reduced size (RFC 5506), as browsers send it.
        if self.terms.twcc.is_some() && self.arrivals.write(self.ours, theirs, &mut packet) {
            self.counts.feedbacks += 1;
        }
        if !packet.is_empty() {
            self.send(&packet, out);
        }
        if let Some(newest) = self.verifier.newest_published() {
            out.age(now.saturating_duration_since(newest));
        }
    }

    /// What an attacker in this viewer's place knows; nothing before media came.
    pub(super) fn knows(&self) -> Option<Knows> {
        Some(Knows {
            ours: self.ours,
            theirs: self.theirs?,
            highest: self.order.highest(),
            ufrag: self.terms.ufrag.clone(),
        })
    }

    /// Sends hostile RTCP.
    pub(super) fn send_sealed(&mut self, plain: &[u8], out: &mut impl Outlet) {
        self.send(plain, out);
    }

    /// Sends the packet that was sealed first ever again.
    pub(super) fn send_again(&mut self, plain: &[u8], out: &mut impl Outlet) {
        if self.replay.is_empty() {
            let mut sealed = Vec::new();
            if self.sealer.protect(plain, &mut sealed).is_ok() {
                self.replay = sealed;
            }
        }
        out.send(&self.replay);
    }

    fn send(&mut self, plain: &[u8], out: &mut impl Outlet) {
        let mut sealed = std::mem::take(&mut self.sealed);
        sealed.clear();
        if self.sealer.protect(plain, &mut sealed).is_ok() {
            out.send(&sealed);
        }
        self.sealed = sealed;
    }
}
