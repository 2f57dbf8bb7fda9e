//! RTP headers of one viewer, made once and filled in per packet.
//!
//! Layout: 12 fixed bytes, then the one-byte extension block (RFC 8285) with those of
//! transport-wide sequence number, playout delay, media identification and capture time that the
//! viewer agreed to, padded to four bytes. Invariant: all headers of one template are of one
//! length, so that the datagrams of a run can be of one size.

use smallvec::SmallVec;

use crate::api::Role;

/// What was agreed with one viewer about its media.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) pt: u8,
    pub(crate) ssrc: u32,
    /// Payload type and source of repairs (RFC 4588), when lost packets can be asked for again.
    pub(crate) rtx: Option<(u8, u32)>,
    /// Ids of the header extensions.
    pub(crate) twcc: Option<u8>,
    pub(crate) playout_delay: Option<u8>,
    pub(crate) capture_time: Option<u8>,
    /// Id and value of the media identification.
    pub(crate) mid: Option<(u8, SmallVec<[u8; 16]>)>,
    /// Canonical name in sender reports (RFC 3550, 6.5.1): as in the answer.
    pub(crate) cname: Box<str>,
}

/// Longest header: 12 fixed, 4 of the extension block, 3 transport-wide number, 4 playout delay,
/// 17 media identification, 9 capture time, 3 padding.
const HEADER_MAX: usize = 52;

/// Where the extension elements begin.
const ELEMENTS: usize = 16;

/// Greatest playout delay asked of observers, in units of 10 ms: they may smooth, controllers may
/// not.
const OBSERVER_DELAY_MAX: u16 = 10;

/// A header to be filled in.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    bytes: [u8; HEADER_MAX],
    len: u8,
    /// Where the transport-wide number goes; 0: nowhere.
    twcc_at: u8,
    /// Where the capture time goes; 0: nowhere.
    capture_at: u8,
}

impl Default for Template {
    fn default() -> Self {
        Self { bytes: [0; HEADER_MAX], len: 12, twcc_at: 0, capture_at: 0 }
    }
}

impl Template {
    /// A header for media, or for repairs.
    pub(crate) fn new(terms: &Terms, role: Role, stamped: bool, repair: bool) -> Self {
        let (pt, ssrc) = terms.rtx.filter(|_| repair).unwrap_or((terms.pt, terms.ssrc));
        let mut elements: SmallVec<[u8; 64]> = SmallVec::new();
        let (mut twcc_at, mut capture_at) = (0, 0);
        let place = |elements: &SmallVec<[u8; 64]>| {
            u8::try_from(ELEMENTS + elements.len() + 1).unwrap_or_default()
        };
        if let Some(id) = terms.twcc {
            twcc_at = place(&elements);
            elements.extend_from_slice(&[id << 4 | 1, 0, 0]);
        }
        if let Some(id) = terms.playout_delay {
            let max = if role == Role::Controller { 0 } else { OBSERVER_DELAY_MAX };
            // 12 bits of least delay (0), 12 bits of greatest.
            let [high, low] = max.to_be_bytes();
            elements.extend_from_slice(&[id << 4 | 2, 0, high, low]);
        }
        if let Some((id, mid)) = &terms.mid
            && let Ok(length) = u8::try_from(mid.len())
            && (1..=16).contains(&length)
        {
            elements.push(id << 4 | (length - 1));
            elements.extend_from_slice(mid);
        }
        if let Some(id) = terms.capture_time.filter(|_| stamped) {
            capture_at = place(&elements);
            elements.push(id << 4 | 7);
            elements.extend_from_slice(&[0; 8]);
        }
        let mut template = Self { twcc_at, capture_at, ..Self::default() };
        template.bytes[0] = 0x80;
        template.bytes[1] = pt & 0x7f;
        template.bytes[8..12].copy_from_slice(&ssrc.to_be_bytes());
        if !elements.is_empty() {
            elements.resize(elements.len().next_multiple_of(4), 0);
            let words = u8::try_from(elements.len() / 4).unwrap_or_default();
            template.bytes[0] |= 0x10;
            template.bytes[12..ELEMENTS].copy_from_slice(&[0xbe, 0xde, 0, words]);
            template.bytes[ELEMENTS..ELEMENTS + elements.len()].copy_from_slice(&elements);
            template.len = u8::try_from(ELEMENTS + elements.len()).unwrap_or(12);
        }
        template
    }

    /// Length of every header of this template.
    pub(crate) fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Writes a header to the front of `datagram`, which is longer than the header.
    pub(crate) fn write(
        &self,
        datagram: &mut [u8],
        marker: bool,
        index: u64,
        time: u32,
        twcc: u64,
    ) {
        let len = self.len();
        datagram[..len].copy_from_slice(&self.bytes[..len]);
        if marker {
            datagram[1] |= 0x80;
        }
        datagram[2..4].copy_from_slice(&low16(index).to_be_bytes());
        datagram[4..8].copy_from_slice(&time.to_be_bytes());
        let at = usize::from(self.twcc_at);
        if at > 0 {
            datagram[at..at + 2].copy_from_slice(&low16(twcc).to_be_bytes());
        }
    }

    /// Fills in the capture time, as 64-bit NTP time.
    pub(crate) fn write_capture_time(&self, datagram: &mut [u8], ntp: u64) {
        let at = usize::from(self.capture_at);
        if at > 0 {
            datagram[at..at + 8].copy_from_slice(&ntp.to_be_bytes());
        }
    }
}

/// The part of a number that travels.
#[expect(clippy::cast_possible_truncation, reason = "the truncation is the point")]
pub(crate) const fn low16(number: u64) -> u16 {
    number as u16
}

#[cfg(test)]
mod tests {
    use fanlight_wire::rtp::RtpView;

    use super::*;

    fn terms(mid: &str) -> Terms {
        Terms {
            pt: 108,
            ssrc: 0xaabb_ccdd,
            rtx: Some((109, 7)),
            twcc: Some(3),
            playout_delay: Some(5),
            capture_time: Some(6),
            mid: Some((9, mid.as_bytes().into())),
            cname: "c".into(),
        }
    }

    #[test]
    fn a_header_says_what_was_filled_in() {
        for mid in ["0", "sixteenletters00"] {
            let terms = terms(mid);
            let template = Template::new(&terms, Role::Observer, true, false);
            let mut datagram = vec![0xff; template.len() + 4];
            template.write(&mut datagram, true, 0x1_2345, 77, 0x5_0006);
            template.write_capture_time(&mut datagram, 0x0102_0304_0506_0708);
            let view = RtpView::parse(&datagram).unwrap();
            assert_eq!((view.payload_type(), view.marker()), (108, true));
            assert_eq!((view.seq().0, view.timestamp().0), (0x2345, 77));
            assert_eq!(view.ssrc().0, 0xaabb_ccdd);
            assert_eq!(view.extension(3), Some(&[0, 6][..]));
            assert_eq!(view.extension(5), Some(&[0, 0, 10][..]));
            assert_eq!(view.extension(9), Some(mid.as_bytes()));
            assert_eq!(view.abs_capture_time(6), Some(0x0102_0304_0506_0708));
            assert_eq!(view.payload(), [0xff; 4]);
        }
    }

    #[test]
    fn controllers_get_no_delay_and_repairs_their_own_source() {
        let template = Template::new(&terms("0"), Role::Controller, false, true);
        let mut datagram = vec![0; template.len()];
        template.write(&mut datagram, false, 9, 1, 2);
        let view = RtpView::parse(&datagram).unwrap();
        assert_eq!((view.payload_type(), view.ssrc().0), (109, 7));
        assert_eq!(view.extension(5), Some(&[0, 0, 0][..]));
        assert_eq!(view.extension(6), None);
    }

    #[test]
    fn without_extensions_the_header_is_twelve_bytes() {
        let bare =
            Terms { twcc: None, playout_delay: None, capture_time: None, mid: None, ..terms("0") };
        let template = Template::new(&bare, Role::Observer, true, false);
        assert_eq!(template.len(), 12);
    }
}
