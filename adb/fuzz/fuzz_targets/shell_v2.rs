//! The shell framing with any bytes in any chunks: nothing is lost, invented or reserved.
#![no_main]

use fanlight_adb::{
    ShellStream,
    service::shell_v2::{Decoder, Kind},
};
use futures::executor::block_on;
use libfuzzer_sys::fuzz_target;

fn decode(data: &[u8], step: usize) -> (Vec<(Kind, Vec<u8>)>, bool) {
    let mut decoder = Decoder::new();
    let mut pieces: Vec<(Kind, Vec<u8>)> = Vec::new();
    let mut open = false;
    for chunk in data.chunks(step) {
        let mut input = chunk;
        while let Some((kind, part)) = decoder.next(&mut input) {
            match pieces.last_mut() {
                Some((last, bytes)) if open => {
                    assert_eq!(*last, kind);
                    bytes.extend_from_slice(part);
                }
                _ => pieces.push((kind, part.to_vec())),
            }
            open = !decoder.at_boundary();
        }
        assert!(input.is_empty());
    }
    (pieces, decoder.at_boundary())
}

fuzz_target!(|data: &[u8]| {
    let [step, data @ ..] = data else { return };
    let whole = decode(data, usize::MAX);
    assert_eq!(whole, decode(data, usize::from(*step) + 1));
    let bytes: usize = whole.0.iter().map(|(_, data)| data.len()).sum();
    assert!(bytes + 5 * whole.0.len() <= data.len());
    if let Ok(output) = block_on(ShellStream::new(data, true).collect()) {
        assert!(output.exit.is_some());
        assert!(output.stdout.len() + output.stderr.len() <= bytes);
    }
});
