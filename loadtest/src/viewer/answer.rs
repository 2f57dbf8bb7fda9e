//! What a viewer has to know of the router's answer: payload types, extension ids, feedback. Not
//! an SDP parser: the protocol library reads the whole. Invariant: what the answer does not say is
//! not used.

/// What was agreed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Payload type of the video.
    pub payload_type: u8,
    /// Payload type of repairs; none: they cannot be asked for.
    pub rtx: Option<u8>,
    /// Id of the transport-wide sequence number.
    pub twcc: Option<u8>,
    /// Lost packets may be asked for.
    pub nack: bool,
    /// Keyframes may be asked for.
    pub pli: bool,
    /// The router's ICE user fragment.
    pub ufrag: String,
}

/// Why an answer is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer has no H.264 that is sent to us")]
pub struct NoVideo;

const TWCC: &str = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";

impl Terms {
    /// Reads the first video section.
    ///
    /// # Errors
    /// There is none with H.264 in it.
    pub fn read(answer: &str) -> Result<Self, NoVideo> {
        let video = answer.split("m=").find(|part| part.starts_with("video ")).ok_or(NoVideo)?;
        let lines = || video.lines().map(str::trim);
        let attribute = |name: &'static str| lines().filter_map(move |l| l.strip_prefix(name));
        let payload_type: u8 = attribute("a=rtpmap:")
            .filter(|map| map.to_ascii_uppercase().contains(" H264/90000"))
            .find_map(|map| map.split(' ').next()?.parse().ok())
            .ok_or(NoVideo)?;
        let apt = format!("apt={payload_type}");
        let rtx = attribute("a=fmtp:")
            .filter_map(|fmtp| fmtp.split_once(' '))
            .find(|(_, values)| values.split(';').any(|v| v.trim() == apt))
            .and_then(|(pt, _)| pt.parse().ok());
        let feedback = |wanted: &str| {
            attribute("a=rtcp-fb:").filter_map(|fb| fb.split_once(' ')).any(|(pt, what)| {
                (pt == "*" || pt.parse() == Ok(payload_type)) && what.trim() == wanted
            })
        };
        let twcc = attribute("a=extmap:")
            .filter_map(|map| map.split_once(' '))
            .find(|(_, uri)| uri.trim() == TWCC)
            .and_then(|(id, _)| id.split('/').next()?.parse().ok());
        let ufrag = answer.lines().find_map(|line| line.trim().strip_prefix("a=ice-ufrag:"));
        Ok(Self {
            ufrag: ufrag.unwrap_or_default().to_owned(),
            payload_type,
            rtx,
            twcc: twcc.filter(|_| feedback("transport-cc")),
            nack: feedback("nack"),
            pli: feedback("nack pli"),
        })
    }
}

/// The answer with another address in its candidates: for a path with a relay in it.
pub fn with_candidates(
    answer: &str,
    change: &dyn Fn(std::net::SocketAddr) -> std::net::SocketAddr,
) -> String {
    let mut out = String::with_capacity(answer.len());
    for line in answer.lines() {
        match moved(line, change) {
            Some(line) => out.push_str(&line),
            None => out.push_str(line),
        }
        out.push_str("\r\n");
    }
    out
}

/// `a=candidate:foundation component transport priority address port ...`
fn moved(
    line: &str,
    change: &dyn Fn(std::net::SocketAddr) -> std::net::SocketAddr,
) -> Option<String> {
    let body = line.trim_end().strip_prefix("a=candidate:")?;
    let mut fields: Vec<String> = body.split(' ').map(str::to_owned).collect();
    if !fields.get(2)?.eq_ignore_ascii_case("udp") {
        return None;
    }
    let address =
        std::net::SocketAddr::new(fields.get(4)?.parse().ok()?, fields.get(5)?.parse().ok()?);
    let to = change(address);
    *fields.get_mut(4)? = to.ip().to_string();
    *fields.get_mut(5)? = to.port().to_string();
    Some(format!("a=candidate:{}", fields.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "v=0\r\na=ice-ufrag:abcd\r\nm=audio 9 X 111\r\na=rtpmap:111 opus/48000/2\r\n\
        m=video 9 UDP/TLS/RTP/SAVPF 108 109\r\na=rtpmap:108 H264/90000\r\n\
        a=rtcp-fb:108 nack\r\na=rtcp-fb:108 nack pli\r\na=rtcp-fb:108 transport-cc\r\n\
        a=rtpmap:109 rtx/90000\r\na=fmtp:109 apt=108\r\n\
        a=extmap:4 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01\r\n\
        a=candidate:1 1 UDP 2130706175 127.0.0.1 4242 typ host\r\n\
        m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n";

    #[test]
    fn terms_are_those_of_the_video_section() {
        let terms = Terms::read(ANSWER).unwrap();
        let wanted = Terms {
            payload_type: 108,
            rtx: Some(109),
            twcc: Some(4),
            nack: true,
            pli: true,
            ufrag: "abcd".to_owned(),
        };
        assert_eq!(terms, wanted);
    }

    #[test]
    fn feedback_that_was_not_agreed_is_not_used() {
        let without = ANSWER.replace("a=rtcp-fb:108 transport-cc\r\n", "");
        assert_eq!(Terms::read(&without).unwrap().twcc, None);
        assert_eq!(Terms::read("v=0\r\nm=audio 9 X 0\r\n"), Err(NoVideo));
    }

    #[test]
    fn candidates_move_and_nothing_else_does() {
        let moved = with_candidates(ANSWER, &|a| {
            assert_eq!(a.to_string(), "127.0.0.1:4242");
            "127.0.0.1:9".parse().unwrap()
        });
        assert_eq!(moved, ANSWER.replace("127.0.0.1 4242", "127.0.0.1 9"));
    }
}
