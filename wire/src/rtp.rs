//! RTP packets (RFC 3550) and their header extensions (RFC 8285): a borrowed view, a builder, and
//! number types that wrap. Not SRTP and not RTCP. Invariant: a [`RtpView`] exists only over bytes
//! whose header, extensions and padding lie inside the packet, so its accessors cannot fail.

/// Extension id of abs-capture-time on the hop. It is on the first packet of each frame.
pub const HOP_ABS_CAPTURE_TIME_ID: u8 = 1;

/// Payload type of H.264 on the hop.
pub const HOP_H264_PAYLOAD_TYPE: u8 = 96;

/// Ticks per second of all video.
pub const VIDEO_CLOCK_HZ: u32 = 90_000;

/// Length of an RTP header without CSRCs and extensions.
pub const FIXED_HEADER_LEN: usize = 12;

/// An RTP sequence number. It wraps, so it has a distance and no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SeqNo(pub u16);

impl SeqNo {
    /// The one after it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// The one `n` later.
    #[must_use]
    pub const fn wrapping_add(self, n: u16) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// How far this one is ahead of `other`; negative when behind. Right while they are less than
    /// 32,768 apart.
    pub const fn distance(self, other: Self) -> i16 {
        self.0.wrapping_sub(other.0).cast_signed()
    }

    /// Whether this one comes after `other`.
    pub const fn is_newer_than(self, other: Self) -> bool {
        self.distance(other) > 0
    }
}

/// An RTP timestamp. It wraps, so it has a distance and no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RtpTime(pub u32);

impl RtpTime {
    /// The time `ticks` later.
    #[must_use]
    pub const fn wrapping_add(self, ticks: u32) -> Self {
        Self(self.0.wrapping_add(ticks))
    }

    /// Ticks this one is ahead of `other`; negative when behind. Right while they are less than
    /// half the range (6.6 hours of video) apart.
    pub const fn distance(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0).cast_signed()
    }

    /// Whether this one comes after `other`.
    pub const fn is_newer_than(self, other: Self) -> bool {
        self.distance(other) > 0
    }

    /// The video clock's reading at a time in microseconds. The zero point is the caller's.
    pub const fn from_us_90k(us: u64) -> Self {
        // In two steps so that the product cannot overflow; then only the low 32 bits count.
        let ticks = (us / 1_000_000).wrapping_mul(90_000) + (us % 1_000_000) * 9 / 100;
        Self((ticks & 0xffff_ffff) as u32)
    }
}

/// An RTP synchronisation source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Ssrc(pub u32);

/// Why bytes are not an RTP packet, or cannot become one. Retrying does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RtpError {
    /// The packet ends inside a field.
    #[error("RTP {field} cut short: needs {need} bytes, has {have}")]
    Truncated {
        /// The field that is cut.
        field: &'static str,
        /// Length of packet needed.
        need: usize,
        /// Length of packet there.
        have: usize,
    },
    /// The version is not 2.
    #[error("RTP version is {0}, not 2")]
    Version(u8),
    /// The padding count is zero or more than what follows the header.
    #[error("RTP padding of {count} bytes in {room} bytes after the header")]
    Padding {
        /// The count found.
        count: u8,
        /// Bytes after the header.
        room: usize,
    },
    /// A header extension's element leaves the extension block.
    #[error("RTP extension element at byte {offset} of its block leaves the block")]
    Extension {
        /// Where in the block.
        offset: usize,
    },
    /// An extension that the builder cannot write: id not in 1..=14, data not 1..=16 bytes, or no
    /// room left. The caller is to blame.
    #[error("RTP extension {id} of {len} bytes cannot be written")]
    BadExtension {
        /// Its id.
        id: u8,
        /// Its length.
        len: usize,
    },
}

/// Whether a packet on a multiplexed flow is RTCP (RFC 5761).
pub fn is_rtcp(packet: &[u8]) -> bool {
    matches!(packet, [first, second, ..] if first >> 6 == 2 && (192..=223).contains(second))
}

/// A parsed RTP packet that borrows its bytes.
#[derive(Clone, Copy, Debug)]
pub struct RtpView<'a> {
    packet: &'a [u8],
    /// Profile word and body of the extension block.
    extension: Option<(u16, &'a [u8])>,
    payload: &'a [u8],
}

impl<'a> RtpView<'a> {
    /// Checks and borrows one packet.
    pub fn parse(packet: &'a [u8]) -> Result<Self, RtpError> {
        let have = packet.len();
        let cut = |field, need| RtpError::Truncated { field, need, have };
        if have < FIXED_HEADER_LEN {
            return Err(cut("fixed header", FIXED_HEADER_LEN));
        }
        if packet[0] >> 6 != 2 {
            return Err(RtpError::Version(packet[0] >> 6));
        }
        let mut at = FIXED_HEADER_LEN + 4 * usize::from(packet[0] & 0x0f);
        if have < at {
            return Err(cut("CSRC list", at));
        }
        let mut extension = None;
        if packet[0] & 0x10 != 0 {
            let Some(head) = packet.get(at..at + 4) else {
                return Err(cut("extension header", at + 4));
            };
            let profile = u16::from_be_bytes([head[0], head[1]]);
            let body_len = 4 * usize::from(u16::from_be_bytes([head[2], head[3]]));
            at += 4;
            let Some(body) = packet.get(at..at + body_len) else {
                return Err(cut("extension", at + body_len));
            };
            at += body_len;
            check_elements(profile, body)?;
            extension = Some((profile, body));
        }
        let mut payload = &packet[at..];
        if packet[0] & 0x20 != 0 {
            let room = payload.len();
            let count = payload.last().copied().unwrap_or(0);
            if count == 0 || usize::from(count) > room {
                return Err(RtpError::Padding { count, room });
            }
            payload = &payload[..room - usize::from(count)];
        }
        Ok(Self { packet, extension, payload })
    }

    /// Payload type, 0..=127.
    pub fn payload_type(&self) -> u8 {
        self.packet[1] & 0x7f
    }

    /// The marker bit: last packet of a video frame.
    pub fn marker(&self) -> bool {
        self.packet[1] & 0x80 != 0
    }

    /// Sequence number.
    pub fn seq(&self) -> SeqNo {
        SeqNo(u16::from_be_bytes([self.packet[2], self.packet[3]]))
    }

    /// Timestamp.
    pub fn timestamp(&self) -> RtpTime {
        RtpTime(self.word(4))
    }

    /// Source.
    pub fn ssrc(&self) -> Ssrc {
        Ssrc(self.word(8))
    }

    /// What follows header and extensions, without padding.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Header extension elements as (id, data). Nothing for profiles other than RFC 8285's two.
    pub fn extensions(&self) -> Extensions<'a> {
        let (profile, body) = self.extension.unwrap_or((0, &[]));
        Extensions { form: Form::of(profile), body, at: 0 }
    }

    /// Data of the extension with that id.
    pub fn extension(&self, id: u8) -> Option<&'a [u8]> {
        self.extensions().find(|(i, _)| *i == id).map(|(_, data)| data)
    }

    /// The capture time (NTP, 32.32) in the extension with that id; both its forms are read.
    pub fn abs_capture_time(&self, id: u8) -> Option<u64> {
        let data = self.extension(id)?;
        Some(u64::from_be_bytes(data.get(..8)?.try_into().ok()?))
    }

    fn word(&self, at: usize) -> u32 {
        let p = self.packet;
        u32::from_be_bytes([p[at], p[at + 1], p[at + 2], p[at + 3]])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    OneByte,
    TwoByte,
    Unknown,
}

impl Form {
    const fn of(profile: u16) -> Self {
        match profile {
            0xbede => Self::OneByte,
            0x1000..=0x100f => Self::TwoByte,
            _ => Self::Unknown,
        }
    }
}

/// Iterator over header extension elements. Made by [`RtpView::extensions`].
#[derive(Clone, Debug)]
pub struct Extensions<'a> {
    form: Form,
    body: &'a [u8],
    at: usize,
}

impl<'a> Extensions<'a> {
    /// The next element, or an error where it leaves the block.
    fn step(&mut self) -> Result<Option<(u8, &'a [u8])>, RtpError> {
        // A zero byte between elements is padding.
        while self.form != Form::Unknown && self.body.get(self.at) == Some(&0) {
            self.at += 1;
        }
        let (Some(&head), offset) = (self.body.get(self.at), self.at) else { return Ok(None) };
        let (id, len, start) = match self.form {
            Form::Unknown => return Ok(None),
            // RFC 8285: at id 15 all processing stops.
            Form::OneByte if head >> 4 == 15 => return Ok(None),
            Form::OneByte => (head >> 4, usize::from(head & 0x0f) + 1, offset + 1),
            Form::TwoByte => match self.body.get(offset + 1) {
                Some(&len) => (head, usize::from(len), offset + 2),
                None => return Err(RtpError::Extension { offset }),
            },
        };
        let data = self.body.get(start..start + len).ok_or(RtpError::Extension { offset })?;
        self.at = start + len;
        Ok(Some((id, data)))
    }
}

impl<'a> Iterator for Extensions<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        // `RtpView::parse` has walked the same bytes, so an error cannot come.
        self.step().ok().flatten()
    }
}

fn check_elements(profile: u16, body: &[u8]) -> Result<(), RtpError> {
    let mut elements = Extensions { form: Form::of(profile), body, at: 0 };
    while elements.step()?.is_some() {}
    Ok(())
}

/// Writes RTP packets with one-byte header extensions.
#[derive(Clone, Debug)]
pub struct RtpBuilder {
    payload_type: u8,
    marker: bool,
    seq: SeqNo,
    timestamp: RtpTime,
    ssrc: Ssrc,
    elements: [u8; Self::MAX_ELEMENT_BYTES],
    elements_len: u8,
}

impl RtpBuilder {
    /// Room for extension elements with their headers: three of the greatest ones.
    pub const MAX_ELEMENT_BYTES: usize = 52;

    /// A packet without marker and extensions. The payload type's top bit is ignored.
    pub const fn new(payload_type: u8, seq: SeqNo, timestamp: RtpTime, ssrc: Ssrc) -> Self {
        Self {
            payload_type: payload_type & 0x7f,
            marker: false,
            seq,
            timestamp,
            ssrc,
            elements: [0; Self::MAX_ELEMENT_BYTES],
            elements_len: 0,
        }
    }

    /// Sets the marker bit.
    #[must_use]
    pub const fn marker(mut self, marker: bool) -> Self {
        self.marker = marker;
        self
    }

    /// Adds an extension element.
    pub fn extension(mut self, id: u8, data: &[u8]) -> Result<Self, RtpError> {
        let (at, len) = (usize::from(self.elements_len), data.len());
        let bad = RtpError::BadExtension { id, len };
        // The length goes into four bits, less one.
        let len_nibble = match u8::try_from(len) {
            Ok(l @ 1..=16) if (1..=14).contains(&id) => l - 1,
            _ => return Err(bad),
        };
        let room = self.elements.get_mut(at..at + 1 + len).ok_or(bad)?;
        room[0] = id << 4 | len_nibble;
        room[1..].copy_from_slice(data);
        self.elements_len += len_nibble + 2;
        Ok(self)
    }

    /// Adds the capture time (NTP, 32.32) under an id of 1..=14.
    pub fn abs_capture_time(self, id: u8, ntp: u64) -> Result<Self, RtpError> {
        self.extension(id, &ntp.to_be_bytes())
    }

    /// Appends the packet to `out`.
    pub fn write(&self, payload: &[u8], out: &mut Vec<u8>) {
        let words = self.elements_len.div_ceil(4);
        let elements = &self.elements[..4 * usize::from(words)];
        out.reserve(FIXED_HEADER_LEN + 4 + elements.len() + payload.len());
        out.push(if words > 0 { 0x90 } else { 0x80 });
        out.push(u8::from(self.marker) << 7 | self.payload_type);
        out.extend_from_slice(&self.seq.0.to_be_bytes());
        out.extend_from_slice(&self.timestamp.0.to_be_bytes());
        out.extend_from_slice(&self.ssrc.0.to_be_bytes());
        if words > 0 {
            out.extend_from_slice(&[0xbe, 0xde, 0, words]);
            out.extend_from_slice(elements);
        }
        out.extend_from_slice(payload);
    }
}

/// Seconds from the NTP epoch (1900) to the Unix epoch.
const NTP_UNIX_OFFSET_S: u64 = 2_208_988_800;

/// NTP time (32.32, era-less) of a Unix time in microseconds.
pub const fn ntp_from_unix_us(unix_us: u64) -> u64 {
    let seconds = (unix_us / 1_000_000 + NTP_UNIX_OFFSET_S) & 0xffff_ffff;
    (seconds << 32) | (((unix_us % 1_000_000) << 32) / 1_000_000)
}

/// Unix time in microseconds of an NTP time: the inverse of [`ntp_from_unix_us`] for times from
/// 1970 to 2106. Readings before 1970 are taken to be of the era that begins in 2036.
pub const fn unix_us_from_ntp(ntp: u64) -> u64 {
    let seconds = ntp >> 32;
    let era = if seconds < NTP_UNIX_OFFSET_S { 1 << 32 } else { 0 };
    let fraction_us = ((ntp & 0xffff_ffff) * 1_000_000 + (1 << 31)) >> 32;
    (seconds + era - NTP_UNIX_OFFSET_S) * 1_000_000 + fraction_us
}
