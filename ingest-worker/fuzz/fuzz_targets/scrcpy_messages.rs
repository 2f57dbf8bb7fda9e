//! What the scrcpy server says on the control socket. Invariants: no panic; what is read does not
//! depend on how the bytes were cut.
#![no_main]
#![allow(dead_code, reason = "the parser's file is taken in whole")]

#[path = "../../src/source/scrcpy/messages.rs"]
mod messages;

use messages::{ServerMessage, ServerMessageError, ServerMessageReader};

fn read<'a>(
    chunks: impl Iterator<Item = &'a [u8]>,
) -> (Vec<ServerMessage>, Option<ServerMessageError>) {
    let mut reader = ServerMessageReader::default();
    let mut seen = Vec::new();
    for chunk in chunks {
        reader.push(chunk);
        loop {
            match reader.next_message() {
                Ok(Some(message)) => seen.push(message),
                Ok(None) => break,
                Err(error) => return (seen, Some(error)),
            }
        }
    }
    (seen, None)
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [cut, bytes @ ..] = input else { return };
    assert_eq!(read(std::iter::once(bytes)), read(bytes.chunks(usize::from(*cut) + 1)));
});
