//! The scrcpy video socket. Invariants: no panic; what is read does not depend on how the bytes
//! were cut; the reader holds no more than a packet and one read.
#![no_main]
#![allow(dead_code, reason = "the parser's files are taken in whole")]

use std::collections::VecDeque;

#[path = "../../src/source/scrcpy/stream.rs"]
mod stream;
#[path = "../../src/source/scrcpy/table.rs"]
mod table;

use stream::{MAX_PACKET_BYTES, StreamError, StreamEvent, StreamReader};
use table::Layout;

fn read<'a>(
    layout: Layout,
    chunks: impl Iterator<Item = &'a [u8]>,
) -> (VecDeque<StreamEvent>, Option<StreamError>) {
    let mut reader = StreamReader::new(layout);
    let mut events = VecDeque::new();
    for chunk in chunks {
        reader.push(chunk);
        loop {
            match reader.next_event() {
                Ok(Some(event)) => events.push_back(event),
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
        assert!(reader.buffered() <= MAX_PACKET_BYTES + 12);
    }
    (events, None)
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [choice, bytes @ ..] = input else { return };
    let layout = if choice & 1 == 0 { Layout::V3 } else { Layout::V4 };
    // Half of the inputs start behind the opening, so that packets are reached soon.
    let mut whole = Vec::new();
    if choice & 2 == 0 {
        whole.extend_from_slice(&[0; 65]);
        whole.extend_from_slice(b"h264");
        if layout == Layout::V3 {
            whole.extend_from_slice(&[0, 0, 2, 0xd0, 0, 0, 5, 0]);
        }
    }
    whole.extend_from_slice(bytes);
    let cut = usize::from(choice >> 2) + 1;
    assert_eq!(read(layout, std::iter::once(&whole[..])), read(layout, whole.chunks(cut)));
});
