//! QUIC variable-length integers (RFC 9000 section 16). Not a general integer coder. Invariant:
//! what [`write()`] produces, [`read`] gives back, and `read` never looks past what it reports as
//! consumed.

/// Greatest value that fits: 62 bits.
pub const MAX: u64 = (1 << 62) - 1;

/// Greatest number of bytes one integer takes.
pub const MAX_LEN: usize = 8;

/// Why an integer could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VarintError {
    /// More bytes are needed. On a stream: wait for them. In a datagram: the peer is to blame.
    #[error("variable-length integer needs {need} bytes, has {have}")]
    Truncated {
        /// Bytes that are there.
        have: usize,
        /// Bytes that the first byte announces (1 when not even that one is there).
        need: usize,
    },
}

/// Reads the integer at the start of `buf`: its value and the number of bytes it took.
/// Encodings longer than necessary are accepted, as RFC 9000 demands.
pub fn read(buf: &[u8]) -> Result<(u64, usize), VarintError> {
    let Some(&first) = buf.first() else {
        return Err(VarintError::Truncated { have: 0, need: 1 });
    };
    let need = 1usize << (first >> 6);
    let Some(bytes) = buf.get(..need) else {
        return Err(VarintError::Truncated { have: buf.len(), need });
    };
    let value = bytes[1..].iter().fold(u64::from(first & 0x3f), |v, &b| v << 8 | u64::from(b));
    Ok((value, need))
}

/// Appends `v` in its shortest form. A value above [`MAX`] is a mistake of the caller: its two top
/// bits are lost (and a debug build stops).
pub fn write(v: u64, out: &mut Vec<u8>) {
    debug_assert!(v <= MAX, "varint above 62 bits: {v}");
    let mut b = (v & MAX).to_be_bytes();
    match len(v) {
        1 => out.push(b[7]),
        2 => out.extend_from_slice(&[0x40 | b[6], b[7]]),
        4 => {
            b[4] |= 0x80;
            out.extend_from_slice(&b[4..]);
        }
        _ => {
            b[0] |= 0xc0;
            out.extend_from_slice(&b);
        }
    }
}

/// Number of bytes [`write()`] uses for `v`.
pub const fn len(v: u64) -> usize {
    match v {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_9000_appendix_a() {
        for (bytes, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
        ] {
            assert_eq!(read(bytes), Ok((value, bytes.len())));
            let mut out = Vec::new();
            write(value, &mut out);
            assert_eq!(out, bytes);
        }
        assert_eq!(read(&[0x40, 0x25]), Ok((37, 2)), "longer than necessary is legal");
    }

    #[test]
    fn truncation_is_told_apart() {
        assert_eq!(read(&[]), Err(VarintError::Truncated { have: 0, need: 1 }));
        assert_eq!(read(&[0xc0, 1, 2]), Err(VarintError::Truncated { have: 3, need: 8 }));
    }

    #[test]
    fn lengths_change_at_the_right_values() {
        for v in [0, 63, 64, 16_383, 16_384, (1 << 30) - 1, 1 << 30, MAX] {
            let mut out = Vec::new();
            write(v, &mut out);
            assert_eq!(out.len(), len(v));
            assert_eq!(read(&out), Ok((v, out.len())));
        }
    }
}
