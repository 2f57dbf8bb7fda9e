//! The bodies of the fuzz targets: each feeds a stranger's bytes to a parser and panics where a
//! promise is broken. Here rather than in `fuzz/`, so that ordinary tests run them over seeds.
#![allow(clippy::unwrap_used, reason = "a surprise is a finding")]

use crate::tcp::framer::{self, FRAME_BYTES_MAX, FrameTooLong, Framer};

/// A TCP stream, of which the first byte says in what pieces it is read: the same frames come out
/// as when it is read as far as each read reaches, none is empty or too long, and they are what the
/// stream says by a plain reading of RFC 4571.
pub fn frames(bytes: &[u8]) {
    let Some((step, stream)) = bytes.split_first() else { return };
    let in_pieces = read(stream, 1 + usize::from(*step));
    assert_eq!(in_pieces, read(stream, usize::MAX));
    let (frames, end) = in_pieces;
    let mut again = Vec::new();
    for frame in &frames {
        assert!((1..=FRAME_BYTES_MAX).contains(&frame.len()));
        assert!(framer::write(frame, &mut again));
    }
    let (mut rest, mut plain) = (stream, Vec::new());
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*length));
        if len > FRAME_BYTES_MAX {
            assert_eq!(end, Some(FrameTooLong { len }));
            break;
        }
        let Some((frame, after)) = after.split_at_checked(len) else { break };
        if !frame.is_empty() {
            plain.push(frame.to_vec());
        }
        rest = after;
    }
    assert_eq!(frames, plain);
    assert_eq!(read(&again, usize::MAX), (frames, None), "what is written is read");
}

fn read(mut stream: &[u8], step: usize) -> (Vec<Vec<u8>>, Option<FrameTooLong>) {
    let (mut framer, mut frames) = (Framer::default(), Vec::new());
    loop {
        loop {
            match framer.next() {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => break,
                Err(end) => return (frames, Some(end)),
            }
        }
        if stream.is_empty() {
            return (frames, None);
        }
        let space = framer.space();
        let len = space.len().min(step).min(stream.len());
        assert!(len > 0, "no room to read into");
        space[..len].copy_from_slice(&stream[..len]);
        framer.filled(len);
        stream = &stream[len..];
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    #[test]
    fn random_streams_break_no_promise() {
        let mut random = StdRng::seed_from_u64(5);
        for round in 0..2_000 {
            let mut bytes = vec![random.random()];
            while bytes.len() < 12_000 && random.random_ratio(15, 16) {
                let len: u16 = match random.random_range(0..8) {
                    0 => 0,
                    1 => random.random_range(2_040..2_056),
                    2 => random.random(),
                    _ => random.random_range(0..1_500),
                };
                bytes.extend_from_slice(&len.to_be_bytes());
                let most = usize::from(len.min(4_000));
                bytes.extend((0..most).map(|n| u8::try_from(n % 256).unwrap()));
            }
            bytes.truncate(bytes.len() - round % 2);
            super::frames(&bytes);
        }
    }
}
