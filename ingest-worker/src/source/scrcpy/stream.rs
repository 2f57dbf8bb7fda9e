//! The scrcpy video socket, bytes to events: dummy byte, device name, stream header, session
//! packets, frames. Pure and incremental; not the sockets (see `mod.rs`). Invariant: a size the
//! device declares is checked against [`MAX_PACKET_BYTES`] before anything is kept for it, so the
//! reader never holds more than one packet plus one read.

use bytes::{Buf, Bytes, BytesMut};

use super::table::Layout;

/// Largest packet (one access unit, or one set of parameter sets) that is read. A keyframe of a
/// 4K screen at a very high rate stays below it.
pub const MAX_PACKET_BYTES: usize = 4 * 1024 * 1024;
/// Largest width or height that is believed.
pub const MAX_SIDE: u32 = 16_384;
/// `h264` as scrcpy writes a codec id.
pub const CODEC_H264: u32 = 0x6832_3634;
/// Bytes of the device name field, NUL-padded.
const NAME_BYTES: usize = 64;
/// Every packet header, and the session packet as a whole.
const HEADER_BYTES: usize = 12;

/// What the video socket says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// The device's own name.
    DeviceName(String),
    /// The codec is H.264. 3.x tells the size here; 4.x with the first session.
    Started {
        /// Width and height, where the header carries them.
        size: Option<(u32, u32)>,
    },
    /// 4.x: the capture starts anew with this size.
    Session {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The size changed because a client asked for it.
        client_resized: bool,
    },
    /// Parameter sets (SPS and PPS), Annex B.
    Config(Bytes),
    /// One access unit, Annex B.
    Frame {
        /// Presentation time on the device's clock, microseconds.
        pts_us: u64,
        /// It can be decoded without earlier ones.
        key: bool,
        /// The bytes.
        data: Bytes,
    },
}

/// Why the video socket cannot be read on. None of these passes by itself: start the server anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The first byte is not the zero of `send_dummy_byte`.
    #[error("the video socket began with byte {0:#04x} in place of the dummy byte 0x00")]
    NoDummyByte(u8),
    /// The device gave 0 as codec: it has switched this stream off.
    #[error("the device disabled the video stream")]
    Disabled,
    /// The device gave 1 as codec: its encoder cannot be configured as asked.
    #[error("the device cannot encode video as configured")]
    ConfigurationError,
    /// A codec other than H.264.
    #[error("the device sends codec {0:#010x}, only H.264 (0x68323634) is taken")]
    OtherCodec(u32),
    /// A packet larger than [`MAX_PACKET_BYTES`].
    #[error(
        "the device declared a packet of {declared} bytes, at most {MAX_PACKET_BYTES} are read"
    )]
    TooLarge {
        /// What its header says.
        declared: u32,
    },
    /// A packet without a byte in it.
    #[error("the device declared an empty packet")]
    Empty,
    /// Width or height zero or beyond [`MAX_SIDE`].
    #[error("the device declared a video of {width}x{height}")]
    BadSize {
        /// Declared width.
        width: u32,
        /// Declared height.
        height: u32,
    },
}

#[derive(Clone, Copy, Debug)]
enum State {
    DummyByte,
    DeviceName,
    StreamHeader,
    PacketHeader,
    Payload { kind: PayloadKind, size: usize },
    Failed,
}

#[derive(Clone, Copy, Debug)]
enum PayloadKind {
    Config,
    Frame { pts_us: u64, key: bool },
}

/// Incremental reader: [`Self::push`] what was read, then [`Self::next_event`] until `None`.
#[derive(Debug)]
pub struct StreamReader {
    layout: Layout,
    state: State,
    buffer: BytesMut,
}

impl StreamReader {
    /// A reader for a video socket opened with `tunnel_forward=true` (dummy byte first).
    pub fn new(layout: Layout) -> Self {
        Self { layout, state: State::DummyByte, buffer: BytesMut::new() }
    }

    /// Takes bytes as they came. Drain with [`Self::next_event`] before the next push: that is what
    /// bounds the buffer.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The buffer to read into, in place of [`Self::push`].
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Bytes waiting for the rest of their packet.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The next event, or `None` when more bytes are needed. After an error the reader stays
    /// failed and yields nothing more.
    pub fn next_event(&mut self) -> Result<Option<StreamEvent>, StreamError> {
        loop {
            match self.step() {
                Ok(Step::Event(event)) => return Ok(Some(event)),
                Ok(Step::Again) => {}
                Ok(Step::NeedMore) => return Ok(None),
                Err(error) => {
                    self.state = State::Failed;
                    self.buffer = BytesMut::new();
                    return Err(error);
                }
            }
        }
    }

    fn step(&mut self) -> Result<Step, StreamError> {
        match self.state {
            State::DummyByte if !self.buffer.is_empty() => match self.buffer.get_u8() {
                0 => Ok(self.go(State::DeviceName)),
                other => Err(StreamError::NoDummyByte(other)),
            },
            State::DeviceName if self.buffer.len() >= NAME_BYTES => {
                let field = self.buffer.split_to(NAME_BYTES);
                let end = field.iter().position(|b| *b == 0).unwrap_or(NAME_BYTES);
                let name = String::from_utf8_lossy(&field[..end]).into_owned();
                self.state = State::StreamHeader;
                Ok(Step::Event(StreamEvent::DeviceName(name)))
            }
            State::StreamHeader => self.stream_header(),
            State::PacketHeader if self.buffer.len() >= HEADER_BYTES => self.packet_header(),
            State::Payload { kind, size } if self.buffer.len() >= size => {
                let data = self.buffer.split_to(size).freeze();
                self.state = State::PacketHeader;
                Ok(Step::Event(match kind {
                    PayloadKind::Config => StreamEvent::Config(data),
                    PayloadKind::Frame { pts_us, key } => StreamEvent::Frame { pts_us, key, data },
                }))
            }
            State::Failed => {
                self.buffer.clear();
                Ok(Step::NeedMore)
            }
            _ => Ok(Step::NeedMore),
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::Again
    }

    fn stream_header(&mut self) -> Result<Step, StreamError> {
        // The codec is judged as soon as it is there: a disabled stream carries nothing after it.
        let Some(codec) = self.buffer.first_chunk::<4>().map(|b| u32::from_be_bytes(*b)) else {
            return Ok(Step::NeedMore);
        };
        match codec {
            CODEC_H264 => {}
            0 => return Err(StreamError::Disabled),
            1 => return Err(StreamError::ConfigurationError),
            other => return Err(StreamError::OtherCodec(other)),
        }
        let size = match self.layout {
            Layout::V4 => {
                self.buffer.advance(4);
                None
            }
            Layout::V3 if self.buffer.len() < 12 => return Ok(Step::NeedMore),
            Layout::V3 => {
                self.buffer.advance(4);
                Some(checked_size(self.buffer.get_u32(), self.buffer.get_u32())?)
            }
        };
        self.state = State::PacketHeader;
        Ok(Step::Event(StreamEvent::Started { size }))
    }

    fn packet_header(&mut self) -> Result<Step, StreamError> {
        const BIT_63: u64 = 1 << 63;
        const BIT_62: u64 = 1 << 62;
        const BIT_61: u64 = 1 << 61;
        let word = self.buffer.get_u64();
        let size = self.buffer.get_u32();
        let (config_bit, key_bit) = match self.layout {
            Layout::V3 => (BIT_63, BIT_62),
            Layout::V4 if word & BIT_63 != 0 => return session(word, size),
            Layout::V4 => (BIT_62, BIT_61),
        };
        let length = size as usize;
        if length == 0 {
            return Err(StreamError::Empty);
        }
        if length > MAX_PACKET_BYTES {
            return Err(StreamError::TooLarge { declared: size });
        }
        let kind = if word & config_bit != 0 {
            PayloadKind::Config
        } else {
            PayloadKind::Frame { pts_us: word & (key_bit - 1), key: word & key_bit != 0 }
        };
        Ok(self.go(State::Payload { kind, size: length }))
    }
}

enum Step {
    Event(StreamEvent),
    Again,
    NeedMore,
}

/// A session packet has the shape `flags u32 | width u32 | height u32`; its first eight bytes were
/// read as one word.
fn session(word: u64, height: u32) -> Result<Step, StreamError> {
    let [_, _, _, flags, w0, w1, w2, w3] = word.to_be_bytes();
    let width = u32::from_be_bytes([w0, w1, w2, w3]);
    let client_resized = flags & 1 != 0;
    let (width, height) = checked_size(width, height)?;
    Ok(Step::Event(StreamEvent::Session { width, height, client_resized }))
}

fn checked_size(width: u32, height: u32) -> Result<(u32, u32), StreamError> {
    if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
        return Err(StreamError::BadSize { width, height });
    }
    Ok((width, height))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opening(layout: Layout) -> Vec<u8> {
        let mut bytes = vec![0];
        let mut name = [0u8; 64];
        name[..9].copy_from_slice(b"Fan Phone");
        bytes.extend_from_slice(&name);
        bytes.extend_from_slice(b"h264");
        match layout {
            Layout::V3 => {
                bytes.extend_from_slice(&[0, 0, 0x02, 0xd0]); // width 720
                bytes.extend_from_slice(&[0, 0, 0x05, 0x00]); // height 1280
            }
            Layout::V4 => {
                bytes.extend_from_slice(&[0x80, 0, 0, 0]); // session, not resized by a client
                bytes.extend_from_slice(&[0, 0, 0x02, 0xd0]);
                bytes.extend_from_slice(&[0, 0, 0x05, 0x00]);
            }
        }
        bytes
    }

    fn packet(first_word: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = first_word.to_be_bytes().to_vec();
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// A whole little stream: parameter sets, keyframe at 1 s, picture at 1.033333 s.
    fn golden(layout: Layout) -> (Vec<u8>, Vec<StreamEvent>) {
        let (config, key) = match layout {
            Layout::V3 => (0x8000_0000_0000_0000, 0x4000_0000_000f_4240),
            Layout::V4 => (0x4000_0000_0000_0000, 0x2000_0000_000f_4240),
        };
        let mut bytes = opening(layout);
        bytes.extend(packet(config, &[0, 0, 0, 1, 0x67, 1, 0, 0, 0, 1, 0x68, 2]));
        bytes.extend(packet(key, &[0, 0, 0, 1, 0x65, 3]));
        bytes.extend(packet(0x0000_0000_000f_c475, &[0, 0, 0, 1, 0x41, 4]));
        let mut events = vec![StreamEvent::DeviceName("Fan Phone".into())];
        match layout {
            Layout::V3 => events.push(StreamEvent::Started { size: Some((720, 1280)) }),
            Layout::V4 => events.extend([
                StreamEvent::Started { size: None },
                StreamEvent::Session { width: 720, height: 1280, client_resized: false },
            ]),
        }
        events.extend([
            StreamEvent::Config(Bytes::from_static(&[0, 0, 0, 1, 0x67, 1, 0, 0, 0, 1, 0x68, 2])),
            StreamEvent::Frame {
                pts_us: 1_000_000,
                key: true,
                data: Bytes::from_static(&[0, 0, 0, 1, 0x65, 3]),
            },
            StreamEvent::Frame {
                pts_us: 1_033_333,
                key: false,
                data: Bytes::from_static(&[0, 0, 0, 1, 0x41, 4]),
            },
        ]);
        (bytes, events)
    }

    fn read_all(layout: Layout, chunks: &[&[u8]]) -> Result<Vec<StreamEvent>, StreamError> {
        let mut reader = StreamReader::new(layout);
        let mut events = Vec::new();
        for chunk in chunks {
            reader.push(chunk);
            while let Some(event) = reader.next_event()? {
                events.push(event);
            }
        }
        Ok(events)
    }

    #[test]
    fn both_layouts_are_read_as_recorded() {
        for layout in [Layout::V3, Layout::V4] {
            let (bytes, events) = golden(layout);
            assert_eq!(read_all(layout, &[&bytes]).unwrap(), events, "{layout:?}");
        }
    }

    #[test]
    fn a_parser_of_the_other_layout_does_not_read_the_same() {
        let (bytes, events) = golden(Layout::V4);
        assert_ne!(read_all(Layout::V3, &[&bytes]).ok(), Some(events));
    }

    #[test]
    fn a_session_in_the_middle_tells_the_new_size() {
        let (mut bytes, mut events) = golden(Layout::V4);
        bytes.extend_from_slice(&[0x80, 0, 0, 1, 0, 0, 0x05, 0x00, 0, 0, 0x02, 0xd0]);
        events.push(StreamEvent::Session { width: 1280, height: 720, client_resized: true });
        assert_eq!(read_all(Layout::V4, &[&bytes]).unwrap(), events);
    }

    #[test]
    fn a_declared_size_is_refused_before_it_is_stored() {
        let mut bytes = opening(Layout::V4);
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&u32::MAX.to_be_bytes());
        let mut reader = StreamReader::new(Layout::V4);
        reader.push(&bytes);
        let error = loop {
            match reader.next_event() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("no error"),
                Err(error) => break error,
            }
        };
        assert_eq!(error, StreamError::TooLarge { declared: u32::MAX });
        reader.push(&[0; 1024]);
        assert_eq!(reader.next_event(), Ok(None));
        assert_eq!(reader.buffered(), 0, "a failed reader keeps nothing");
    }

    #[test]
    fn refusals_of_the_device_are_told_apart() {
        let with_codec = |codec: [u8; 4]| {
            let mut bytes = vec![0; 65];
            bytes.extend_from_slice(&codec);
            bytes
        };
        for layout in [Layout::V3, Layout::V4] {
            let read = |b: &[u8]| read_all(layout, &[b]).unwrap_err();
            assert_eq!(read(&with_codec([0, 0, 0, 0])), StreamError::Disabled);
            assert_eq!(read(&with_codec([0, 0, 0, 1])), StreamError::ConfigurationError);
            assert_eq!(read(&with_codec(*b"h265")), StreamError::OtherCodec(0x6832_3635));
            assert_eq!(read(&[7]), StreamError::NoDummyByte(7));
        }
        let mut bytes = with_codec(*b"h264");
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(
            read_all(Layout::V3, &[&bytes]).unwrap_err(),
            StreamError::BadSize { width: 0, height: 256 }
        );
    }

    proptest! {
        #[test]
        fn the_split_of_reads_does_not_matter(
            v4 in any::<bool>(),
            cuts in proptest::collection::vec(0usize..200, 0..12),
        ) {
            let layout = if v4 { Layout::V4 } else { Layout::V3 };
            let (bytes, events) = golden(layout);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.push(0);
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(read_all(layout, &chunks).unwrap(), events);
        }

        #[test]
        fn random_bytes_neither_panic_nor_pile_up(
            v4 in any::<bool>(),
            good_start in any::<bool>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let layout = if v4 { Layout::V4 } else { Layout::V3 };
            let mut all = if good_start { opening(layout) } else { Vec::new() };
            all.extend(bytes);
            let mut reader = StreamReader::new(layout);
            for chunk in all.chunks(7) {
                reader.push(chunk);
                while let Ok(Some(_)) = reader.next_event() {}
                prop_assert!(reader.buffered() <= MAX_PACKET_BYTES + 7);
            }
        }
    }
}
