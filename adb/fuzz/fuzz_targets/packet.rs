//! Any bytes in any chunks: the packet decoder returns packets or a typed error, the same ones
//! whatever the chunking, and what it returns encodes to what it read.
#![no_main]

use bytes::BytesMut;
use fanlight_adb::packet::{ChecksumRule, Command, Packet, PacketDecoder, checksum};
use libfuzzer_sys::fuzz_target;

const MAX_PAYLOAD: u32 = 4096;

fn decode(data: &[u8], step: usize, rule: ChecksumRule) -> (Vec<Packet>, bool) {
    let mut decoder = PacketDecoder::new(MAX_PAYLOAD, rule);
    let mut input = BytesMut::new();
    let mut packets = Vec::new();
    for chunk in data.chunks(step) {
        input.extend_from_slice(chunk);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => break,
                Err(_) => return (packets, true),
            }
        }
        assert!(input.capacity() <= 2 * (data.len() + 4096 + 24));
    }
    (packets, false)
}

/// Makes most headers of the input pass the magic, which a fuzzer never guesses: where a packet
/// would begin, the first word becomes a command and, by two bits of it, checksum and length are
/// put right as well.
fn repair(data: &mut [u8]) {
    let mut at = 0;
    while data.len() >= at + 24 {
        let (header, rest) = data[at..].split_at_mut(24);
        let choice = header[0];
        let commands = [
            Command::Cnxn,
            Command::Auth,
            Command::Open,
            Command::Okay,
            Command::Wrte,
            Command::Clse,
            Command::Stls,
        ];
        let Some(command) = commands.get(usize::from(choice % 8)) else { return };
        header[..4].copy_from_slice(&command.word().to_le_bytes());
        header[20..].copy_from_slice(&(!command.word()).to_le_bytes());
        if choice & 0x80 == 0 {
            header[13..16].fill(0);
        }
        let len = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
        if choice & 0x40 == 0 {
            let sum = checksum(&rest[..len.min(rest.len())]);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
        }
        at = at.saturating_add(24).saturating_add(len);
    }
}

fuzz_target!(|data: &[u8]| {
    let [selector, step, data @ ..] = data else { return };
    let mut data = data.to_vec();
    if selector & 0x80 == 0 {
        repair(&mut data);
    }
    let rule = [ChecksumRule::Handshake, ChecksumRule::Skip, ChecksumRule::Verify]
        [usize::from(*selector) % 3];
    let whole = decode(&data, usize::MAX, rule);
    let pieces = decode(&data, usize::from(*step) + 1, rule);
    assert_eq!(whole, pieces);
    let mut at = 0;
    for packet in &whole.0 {
        let bytes = packet.to_bytes(rule);
        let read = &data[at..at + bytes.len()];
        assert_eq!(bytes[..16], read[..16]);
        assert_eq!(bytes[20..], read[20..]);
        at += bytes.len();
    }
});
