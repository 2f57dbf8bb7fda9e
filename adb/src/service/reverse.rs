//! The answer to `reverse:` requests: `OKAY` (once or twice, by age of the device) or `FAIL` with
//! a message. Not the streams that follow; those are opened by the device.

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::error::{AdbError, clip};

/// Longer than any message adbd writes.
const ANSWER_MAX: u64 = 4096;

/// Reads the answer to the end of the stream.
pub async fn read_status(stream: impl AsyncRead + Unpin) -> Result<(), AdbError> {
    let mut answer = Vec::new();
    stream
        .take(ANSWER_MAX)
        .read_to_end(&mut answer)
        .await
        .map_err(|source| AdbError::io("reading the answer to reverse", source))?;
    parse_status(&answer)
}

/// Judges such an answer.
pub fn parse_status(answer: &[u8]) -> Result<(), AdbError> {
    let mut rest = answer;
    while let Some(after) = rest.strip_prefix(b"OKAY") {
        rest = after;
    }
    if let Some(message) = rest.strip_prefix(b"FAIL") {
        let message = clip(message.get(4..).unwrap_or(message));
        return Err(AdbError::Failed { service: "reverse", message });
    }
    // What may follow OKAY is the number of a port the device chose.
    if rest.len() < answer.len() {
        return Ok(());
    }
    Err(AdbError::BadReply { service: "reverse", what: clip(answer) })
}

/// The device's answer when it listens.
pub const ACCEPTED: &[u8] = b"OKAYOKAY";

/// The device's answer when it cannot.
#[must_use]
pub fn refused(message: &str) -> Vec<u8> {
    const MESSAGE_MAX: usize = 1000;
    let message = &message.as_bytes()[..message.len().min(MESSAGE_MAX)];
    let mut answer = format!("FAIL{:04x}", message.len()).into_bytes();
    answer.extend_from_slice(message);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_answers_are_understood() {
        for good in [&b"OKAY"[..], ACCEPTED, b"OKAY0005tcp:1"] {
            assert!(parse_status(good).is_ok(), "{good:?}");
        }
        let error = parse_status(&refused("no such socket")).unwrap_err();
        assert_eq!(error.to_string(), "reverse failed: no such socket");
        assert!(matches!(parse_status(b"OKAYFAIL0002no"), Err(AdbError::Failed { .. })));
        assert!(matches!(parse_status(b""), Err(AdbError::BadReply { .. })));
        assert!(matches!(parse_status(b"GARBAGE"), Err(AdbError::BadReply { .. })));
        assert!(matches!(parse_status(b"FAIL"), Err(AdbError::Failed { .. })));
    }
}
