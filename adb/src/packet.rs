//! The 24-byte packet codec, alike on both sides.
//!
//! ```text
//!  0        4        8        12       16       20       24
//! +--------+--------+--------+--------+--------+--------+---------- - -
//! | command|  arg0  |  arg1  | length |checksum| magic  | payload
//! +--------+--------+--------+--------+--------+--------+---------- - -
//! ```
//! Words are little-endian; `magic` is the complement of `command`; `checksum` is the byte sum
//! of the payload and is left 0 once both sides announced version 0x01000001.
//! Not here: what packets mean (`mux`), who may send which when (`handshake`).
//! Invariant: a length is checked against the bound before a byte of payload is reserved.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::ProtocolError;

/// Bytes of a header.
pub const HEADER_LEN: usize = 24;
/// Largest payload this implementation announces (and adb's own `MAX_PAYLOAD`).
pub const MAX_PAYLOAD: u32 = 1024 * 1024;
/// Largest payload before the handshake is over, and what v1 peers announce.
pub const MAX_PAYLOAD_V1: u32 = 4096;
/// First protocol version: every packet carries a checksum.
pub const VERSION_MIN: u32 = 0x0100_0000;
/// Protocol version from which checksums are left out.
pub const VERSION_SKIP_CHECKSUM: u32 = 0x0100_0001;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Connect: version, maximum payload, banner.
    Cnxn,
    /// Authenticate: token, signature or public key.
    Auth,
    /// Open a stream: local id, window or 0, service name and NUL.
    Open,
    /// Ready for more: local id, remote id, nothing or four bytes of acknowledged count.
    Okay,
    /// Data: local id, remote id, bytes.
    Wrte,
    /// Close: local id (0 for a refused OPEN), remote id.
    Clse,
    /// Continue over TLS.
    Stls,
}

impl Command {
    /// The ASCII word as it travels.
    #[must_use]
    pub const fn word(self) -> u32 {
        u32::from_le_bytes(*match self {
            Self::Cnxn => b"CNXN",
            Self::Auth => b"AUTH",
            Self::Open => b"OPEN",
            Self::Okay => b"OKAY",
            Self::Wrte => b"WRTE",
            Self::Clse => b"CLSE",
            Self::Stls => b"STLS",
        })
    }

    /// The command of a word, if there is one.
    #[must_use]
    pub fn from_word(word: u32) -> Option<Self> {
        [Self::Cnxn, Self::Auth, Self::Open, Self::Okay, Self::Wrte, Self::Clse, Self::Stls]
            .into_iter()
            .find(|command| command.word() == word)
    }

    /// Its four letters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cnxn => "CNXN",
            Self::Auth => "AUTH",
            Self::Open => "OPEN",
            Self::Okay => "OKAY",
            Self::Wrte => "WRTE",
            Self::Clse => "CLSE",
            Self::Stls => "STLS",
        }
    }
}

/// How checksums are written and read at a given moment of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumRule {
    /// Before versions are known: written always, read always, except that a CNXN which announces
    /// a version without checksums may leave its own at 0.
    Handshake,
    /// Both sides announced a version without checksums: written as 0, never read.
    Skip,
    /// One side is old: written and read on every packet.
    Verify,
}

impl ChecksumRule {
    /// The rule after both versions are known.
    #[must_use]
    pub fn for_versions(ours: u32, theirs: u32) -> Self {
        if ours.min(theirs) >= VERSION_SKIP_CHECKSUM { Self::Skip } else { Self::Verify }
    }
}

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// What it is for.
    pub command: Command,
    /// First argument; mostly the sender's stream id.
    pub arg0: u32,
    /// Second argument; mostly the receiver's stream id.
    pub arg1: u32,
    /// The payload.
    pub payload: Bytes,
}

impl Packet {
    /// A packet from its parts.
    pub fn new(command: Command, arg0: u32, arg1: u32, payload: impl Into<Bytes>) -> Self {
        Self { command, arg0, arg1, payload: payload.into() }
    }

    /// The header that goes in front of the payload.
    #[must_use]
    pub fn header(&self, rule: ChecksumRule) -> [u8; HEADER_LEN] {
        let checksum = match rule {
            ChecksumRule::Skip => 0,
            ChecksumRule::Handshake | ChecksumRule::Verify => checksum(&self.payload),
        };
        // Payloads come from callers that bound them by the agreed maximum (at most 1 MiB).
        let len = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        let command = self.command.word();
        let mut header = [0; HEADER_LEN];
        let words = [command, self.arg0, self.arg1, len, checksum, !command];
        for (slot, word) in header.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        header
    }

    /// Header and payload in one buffer; for the handshake and for tests.
    #[must_use]
    pub fn to_bytes(&self, rule: ChecksumRule) -> Vec<u8> {
        let mut bytes = self.header(rule).to_vec();
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// Sum of all bytes, the protocol's name for it being "crc32".
#[must_use]
pub fn checksum(payload: &[u8]) -> u32 {
    payload.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

/// Cuts a byte stream into packets.
#[derive(Debug, Clone)]
pub struct PacketDecoder {
    max_payload: u32,
    rule: ChecksumRule,
}

impl PacketDecoder {
    /// A decoder that takes payloads of at most `max_payload` bytes.
    #[must_use]
    pub fn new(max_payload: u32, rule: ChecksumRule) -> Self {
        Self { max_payload, rule }
    }

    /// Takes the next packet off the front of `input`; `None` when it is not complete yet, with
    /// room for the rest of it reserved. After an error the connection is beyond repair.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Packet>, ProtocolError> {
        if input.len() < HEADER_LEN {
            return Ok(None);
        }
        let word = |i: usize| {
            u32::from_le_bytes([input[i * 4], input[i * 4 + 1], input[i * 4 + 2], input[i * 4 + 3]])
        };
        let (command, arg0, arg1, len) = (word(0), word(1), word(2), word(3));
        let (expected, magic) = (word(4), word(5));
        if magic != !command {
            return Err(ProtocolError::BadMagic { command, magic });
        }
        let command = Command::from_word(command).ok_or(ProtocolError::UnknownCommand(command))?;
        if len > self.max_payload {
            return Err(ProtocolError::Oversized { len, max: self.max_payload });
        }
        let total = HEADER_LEN + len as usize;
        if input.len() < total {
            input.reserve(total - input.len());
            return Ok(None);
        }
        input.advance(HEADER_LEN);
        let payload = input.split_to(len as usize).freeze();
        if self.must_verify(command, arg0, expected) {
            let actual = checksum(&payload);
            if actual != expected {
                return Err(ProtocolError::BadChecksum { expected, actual });
            }
        }
        Ok(Some(Packet { command, arg0, arg1, payload }))
    }

    fn must_verify(&self, command: Command, arg0: u32, expected: u32) -> bool {
        match self.rule {
            ChecksumRule::Skip => false,
            ChecksumRule::Verify => true,
            ChecksumRule::Handshake => {
                !(command == Command::Cnxn && arg0 >= VERSION_SKIP_CHECKSUM && expected == 0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(bytes: &[u8], rule: ChecksumRule) -> Result<Vec<Packet>, ProtocolError> {
        let mut decoder = PacketDecoder::new(MAX_PAYLOAD_V1, rule);
        let mut input = BytesMut::from(bytes);
        let mut packets = Vec::new();
        while let Some(packet) = decoder.decode(&mut input)? {
            packets.push(packet);
        }
        Ok(packets)
    }

    #[test]
    fn a_header_is_laid_out_as_adb_writes_it() {
        let packet = Packet::new(Command::Okay, 1, 2, Bytes::new());
        assert_eq!(
            packet.to_bytes(ChecksumRule::Verify),
            [
                b'O', b'K', b'A', b'Y', // command
                1, 0, 0, 0, // local id
                2, 0, 0, 0, // remote id
                0, 0, 0, 0, // length
                0, 0, 0, 0, // checksum
                0xb0, 0xb4, 0xbe, 0xa6, // complement of "OKAY"
            ]
        );
    }

    #[test]
    fn checksum_is_written_and_read_by_rule() {
        let packet = Packet::new(Command::Wrte, 1, 2, &b"\x01\x02\xff"[..]);
        let with = packet.to_bytes(ChecksumRule::Verify);
        assert_eq!(with[16..20], 0x102u32.to_le_bytes());
        let without = packet.to_bytes(ChecksumRule::Skip);
        assert_eq!(without[16..20], [0; 4]);

        assert_eq!(decode_all(&with, ChecksumRule::Verify).unwrap(), std::slice::from_ref(&packet));
        assert_eq!(decode_all(&without, ChecksumRule::Skip).unwrap(), [packet]);
        assert_eq!(
            decode_all(&without, ChecksumRule::Verify).unwrap_err(),
            ProtocolError::BadChecksum { expected: 0, actual: 0x102 }
        );
        assert!(decode_all(&without, ChecksumRule::Handshake).is_err());
    }

    #[test]
    fn a_new_peers_cnxn_may_leave_its_checksum_out() {
        let new = Packet::new(Command::Cnxn, VERSION_SKIP_CHECKSUM, 4096, &b"device::"[..]);
        assert!(decode_all(&new.to_bytes(ChecksumRule::Skip), ChecksumRule::Handshake).is_ok());
        let old = Packet::new(Command::Cnxn, VERSION_MIN, 4096, &b"device::"[..]);
        assert!(decode_all(&old.to_bytes(ChecksumRule::Skip), ChecksumRule::Handshake).is_err());
    }

    #[test]
    fn bad_magic_unknown_command_and_oversize_are_told_apart() {
        let good = Packet::new(Command::Wrte, 1, 2, Bytes::new()).to_bytes(ChecksumRule::Skip);
        let mut magic = good.clone();
        magic[20] ^= 1;
        assert!(matches!(
            decode_all(&magic, ChecksumRule::Skip),
            Err(ProtocolError::BadMagic { .. })
        ));
        let mut unknown = good.clone();
        unknown[0] = b'X';
        unknown[20] = !b'X';
        assert!(matches!(
            decode_all(&unknown, ChecksumRule::Skip),
            Err(ProtocolError::UnknownCommand(_))
        ));
        let mut oversized = good;
        oversized[12..16].copy_from_slice(&(MAX_PAYLOAD_V1 + 1).to_le_bytes());
        assert_eq!(
            decode_all(&oversized, ChecksumRule::Skip).unwrap_err(),
            ProtocolError::Oversized { len: MAX_PAYLOAD_V1 + 1, max: MAX_PAYLOAD_V1 }
        );
    }

    #[test]
    fn packets_survive_any_chunking() {
        let packets: Vec<Packet> = (0..5u32)
            .map(|i| Packet::new(Command::Wrte, i, i + 1, vec![7u8; (i * 100) as usize]))
            .collect();
        let bytes: Vec<u8> =
            packets.iter().flat_map(|packet| packet.to_bytes(ChecksumRule::Verify)).collect();
        for step in [1, 7, 23, 24, 25, 1000] {
            let mut decoder = PacketDecoder::new(MAX_PAYLOAD_V1, ChecksumRule::Verify);
            let mut input = BytesMut::new();
            let mut out = Vec::new();
            for chunk in bytes.chunks(step) {
                input.extend_from_slice(chunk);
                while let Some(packet) = decoder.decode(&mut input).unwrap() {
                    out.push(packet);
                }
            }
            assert_eq!(out, packets, "step {step}");
        }
    }
}
