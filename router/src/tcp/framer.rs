//! RFC 4571 framing: each datagram in a TCP stream follows its length in two bytes. Pure; no
//! socket here. Invariant: at most [`FRAME_BYTES_MAX`] bytes of an unfinished frame are kept, and
//! however the stream is cut into reads, the same frames come out.

/// Largest frame taken. WebRTC stays below 1,500.
pub(crate) const FRAME_BYTES_MAX: usize = 2_048;
/// Bytes of the length before each frame.
pub(crate) const LENGTH_BYTES: usize = 2;
/// Room for a whole frame and what follows it, so that one read brings several.
const BUFFER_BYTES: usize = 2 * (FRAME_BYTES_MAX + LENGTH_BYTES);

/// The stream announces a frame that is longer than any that WebRTC sends; nothing after it can
/// be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {len} bytes, {FRAME_BYTES_MAX} are allowed")]
pub(crate) struct FrameTooLong {
    /// The length that it announces.
    pub(crate) len: usize,
}

/// The inbound half of one stream.
#[derive(Debug)]
pub(crate) struct Framer {
    buffer: Box<[u8]>,
    /// Bytes of the buffer that hold what was read and not handed out.
    start: usize,
    end: usize,
}

impl Default for Framer {
    fn default() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES].into(), start: 0, end: 0 }
    }
}

impl Framer {
    /// Where to read into. Never empty once [`Self::whole`] has said that no frame is whole.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        &mut self.buffer[self.end..]
    }

    /// Says how much was read into [`Self::space`].
    pub(crate) fn filled(&mut self, len: usize) {
        self.end = (self.end + len).min(self.buffer.len());
    }

    /// The next whole frame. Empty ones, which keep a connection alive, are passed over.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, FrameTooLong> {
        let Some(len) = self.whole()? else { return Ok(None) };
        let start = self.start + LENGTH_BYTES;
        self.start = start + len;
        Ok(Some(&self.buffer[start..start + len]))
    }

    /// The frame that [`Self::next`] would give.
    pub(crate) fn peek(&mut self) -> Result<Option<&[u8]>, FrameTooLong> {
        let Some(len) = self.whole()? else { return Ok(None) };
        let start = self.start + LENGTH_BYTES;
        Ok(Some(&self.buffer[start..start + len]))
    }

    /// Length of the frame that [`Self::next`] would give.
    pub(crate) fn whole(&mut self) -> Result<Option<usize>, FrameTooLong> {
        loop {
            let held = &self.buffer[self.start..self.end];
            let Some((&length, rest)) = held.split_first_chunk::<LENGTH_BYTES>() else {
                return Ok(None);
            };
            let len = usize::from(u16::from_be_bytes(length));
            if len > FRAME_BYTES_MAX {
                return Err(FrameTooLong { len });
            }
            if len > 0 {
                return Ok((rest.len() >= len).then_some(len));
            }
            self.start += LENGTH_BYTES;
        }
    }

    /// Bytes that are kept for later.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.end - self.start
    }
}

/// Appends a frame. False, and nothing is appended, when it is longer than a length can say.
pub(crate) fn write(frame: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(length) = u16::try_from(frame.len()) else { return false };
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(frame);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for frame in frames {
            assert!(write(frame, &mut out));
        }
        out
    }

    /// Feeds `bytes` in reads of at most `step`.
    fn read(bytes: &[u8], step: usize) -> Result<Vec<Vec<u8>>, FrameTooLong> {
        let (mut framer, mut frames, mut rest) = (Framer::default(), Vec::new(), bytes);
        loop {
            while let Some(frame) = framer.next()? {
                frames.push(frame.to_vec());
            }
            if rest.is_empty() {
                return Ok(frames);
            }
            let space = framer.space();
            let len = space.len().min(step).min(rest.len());
            assert!(len > 0, "no room to read into");
            space[..len].copy_from_slice(&rest[..len]);
            framer.filled(len);
            rest = &rest[len..];
        }
    }

    #[test]
    fn frames_come_out_however_the_stream_is_cut() {
        let frames: Vec<Vec<u8>> = [1, 20, 1_200, FRAME_BYTES_MAX, 2, FRAME_BYTES_MAX, 3]
            .iter()
            .enumerate()
            .map(|(n, len)| vec![u8::try_from(n).unwrap(); *len])
            .collect();
        let bytes = stream(&frames);
        for step in [1, 2, 3, 7, 1_000, 1_447, 4_096, usize::MAX] {
            assert_eq!(read(&bytes, step).unwrap(), frames, "reads of {step}");
        }
    }

    #[test]
    fn empty_frames_are_passed_over() {
        let bytes = stream(&[vec![], vec![1], vec![], vec![], vec![2, 3], vec![]]);
        assert_eq!(read(&bytes, 1).unwrap(), [vec![1], vec![2, 3]]);
    }

    #[test]
    fn a_frame_that_is_too_long_ends_the_stream_before_it_is_read() {
        let mut bytes = stream(&[vec![1]]);
        bytes.extend_from_slice(&2_049u16.to_be_bytes());
        assert_eq!(read(&bytes, 1), Err(FrameTooLong { len: 2_049 }));
    }

    #[test]
    fn an_unfinished_frame_is_kept_and_no_more() {
        let mut framer = Framer::default();
        let bytes = stream(&[vec![9; FRAME_BYTES_MAX]]);
        let most = bytes.len() - 1;
        framer.space()[..most].copy_from_slice(&bytes[..most]);
        framer.filled(most);
        assert_eq!(framer.next(), Ok(None));
        assert_eq!(framer.held(), most);
        assert!(framer.space().len() > FRAME_BYTES_MAX);
    }

    #[test]
    fn what_no_length_can_say_is_not_written() {
        let mut out = Vec::new();
        assert!(!write(&vec![0; 65_536], &mut out));
        assert!(out.is_empty());
    }
}
