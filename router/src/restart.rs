//! What a PATCH on a session may carry (draft-ietf-wish-whep, RFC 8840): trickled candidates, or new
//! ICE credentials. Pure: text in, meaning out. Invariant: only credentials whose alphabet and length
//! RFC 8839 allows come out.

use fanlight_router_core::IceCredentials;

/// Largest fragment read, in bytes. A browser's with twenty candidates has two thousand.
pub(crate) const FRAGMENT_BYTES_MAX: usize = 8 * 1024;

/// A fragment that cannot be understood: the client's mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FragmentError {
    #[error("a=ice-ufrag and a=ice-pwd come together.")]
    Half,
    #[error("a=ice-ufrag has 4 to 256, a=ice-pwd 22 to 256 letters, digits, + or /.")]
    Alphabet,
}

/// The credentials that a fragment names, if it names any. Candidates are not read: a lite agent
/// learns its peer's addresses from its checks.
pub(crate) fn credentials(fragment: &str) -> Result<Option<IceCredentials>, FragmentError> {
    let find = |name: &str| fragment.lines().find_map(|l| l.trim_end().strip_prefix(name));
    let (ufrag, pwd) = match (find("a=ice-ufrag:"), find("a=ice-pwd:")) {
        (None, None) => return Ok(None),
        (Some(ufrag), Some(pwd)) => (ufrag, pwd),
        _ => return Err(FragmentError::Half),
    };
    let clean = |text: &str, min: usize| {
        (min..=256).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
    };
    if !clean(ufrag, 4) || !clean(pwd, 22) {
        return Err(FragmentError::Alphabet);
    }
    Ok(Some(IceCredentials { ufrag: ufrag.to_owned(), pwd: pwd.to_owned() }))
}

/// The answer to a restart: our new credentials. Candidates stay as they were.
pub(crate) fn fragment(local: &IceCredentials) -> String {
    format!(
        "a=ice-lite\r\na=ice-options:ice2\r\na=ice-ufrag:{}\r\na=ice-pwd:{}\r\n",
        local.ufrag, local.pwd
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browsers_fragment_gives_its_credentials() {
        let text = "a=ice-options:trickle\r\na=group:BUNDLE 0\r\nm=video 9 UDP/TLS/RTP/SAVPF 0\r\n\
                    a=mid:0\r\na=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\n\
                    a=candidate:1387637174 1 udp 2122260223 192.0.2.1 61764 typ host\r\n";
        let found = credentials(text).unwrap().unwrap();
        assert_eq!((found.ufrag.as_str(), found.pwd.len()), ("EsAw", 24));
        let answer = fragment(&found);
        assert_eq!(credentials(&answer), Ok(Some(found)));
    }

    #[test]
    fn candidates_alone_name_no_credentials_and_halves_are_refused() {
        assert_eq!(credentials("a=end-of-candidates\r\n"), Ok(None));
        assert_eq!(credentials("a=ice-ufrag:EsAw\r\n"), Err(FragmentError::Half));
        for (ufrag, pwd) in [
            ("abc", "0123456789012345678901"),
            ("ab cd", "0123456789012345678901"),
            ("abcd", "short"),
            ("abcd", "01234567890123456789\u{e9}1"),
        ] {
            let text = format!("a=ice-ufrag:{ufrag}\r\na=ice-pwd:{pwd}\r\n");
            assert_eq!(credentials(&text), Err(FragmentError::Alphabet), "{text}");
        }
    }
}
