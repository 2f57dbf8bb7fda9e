//! Tickets of moved viewers: a router, or the control API for one that died, vouches that a viewer
//! was watching, so that the stream's new router lets it in though its join token's time is over.
//! Not a token: it says nothing of who the viewer is or what it may do, and is of no use without
//! the join token whose id it names. Invariant: a ticket is good for one stream, one token id, one
//! origin's key and [`LIFE_S`] seconds.

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};

/// How long a ticket is good, in seconds. A viewer that is told to move does so at once; one that
/// is alone with a slow network tries for a while.
pub const LIFE_S: u64 = 60;
/// Name of the query parameter that carries it on a WHEP address.
pub const PARAMETER: &str = "ticket";
/// Clocks of the two routers may differ by this much, in seconds.
const LEEWAY_S: u64 = 30;
/// Longest ticket that is looked at, in bytes: twenty digits, a dot, 64 hexadecimal digits.
const BYTES_MAX: usize = 85;

/// A ticket for the holder of token `jti`, from `now_s` (seconds since 1970).
pub fn issue(key: &[u8], stream: &str, jti: &str, now_s: u64) -> String {
    sealed(key, stream, jti, now_s.saturating_add(LIFE_S))
}

/// Whether a ticket is good for the holder of token `jti` at `now_s`.
pub fn is_good(key: &[u8], stream: &str, jti: &str, ticket: &str, now_s: u64) -> bool {
    let until = ticket.split('.').next().and_then(|s| s.parse::<u64>().ok());
    let Some(until_s) = until.filter(|_| ticket.len() <= BYTES_MAX && !key.is_empty()) else {
        return false;
    };
    let in_time = now_s <= until_s.saturating_add(LEEWAY_S)
        && until_s <= now_s.saturating_add(LIFE_S + LEEWAY_S);
    let ours = sealed(key, stream, jti, until_s);
    in_time && verify_slices_are_equal(ours.as_bytes(), ticket.as_bytes()).is_ok()
}

/// A WHEP address with a ticket.
pub fn on(whep_url: &str, ticket: &str) -> String {
    let sign = if whep_url.contains('?') { '&' } else { '?' };
    format!("{whep_url}{sign}{PARAMETER}={ticket}")
}

fn sealed(key: &[u8], stream: &str, jti: &str, until_s: u64) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    // Neither ids of streams nor those of tokens hold a zero byte that could shift the border.
    for part in [b"fanlight ticket".as_slice(), stream.as_bytes(), jti.as_bytes()] {
        context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(part);
    }
    context.update(&until_s.to_be_bytes());
    let tag = context.sign();
    let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("{until_s}.{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_ticket_is_good_for_its_stream_its_token_its_origin_and_its_time_only() {
        let ticket = issue(&KEY, "phone", "j1", NOW);
        let good = |key: &[u8], stream, jti, at| is_good(key, stream, jti, &ticket, at);
        assert!(good(&KEY, "phone", "j1", NOW));
        assert!(good(&KEY, "phone", "j1", NOW + LIFE_S + LEEWAY_S));
        assert!(good(&KEY, "phone", "j1", NOW - LEEWAY_S), "the other clock is behind");
        assert!(!good(&KEY, "phone", "j1", NOW + LIFE_S + LEEWAY_S + 1), "its time is over");
        assert!(!good(&KEY, "phone", "j2", NOW), "another token");
        assert!(!good(&KEY, "phon", "ej1", NOW), "the border is part of what is sealed");
        assert!(!good(&KEY, "tablet", "j1", NOW), "another stream");
        assert!(!good(&[8; 32], "phone", "j1", NOW), "another origin, or another epoch of it");
        assert!(!good(&[], "phone", "j1", NOW), "an origin without a key takes none");
    }

    #[test]
    fn what_is_no_ticket_is_none_and_one_cannot_be_stretched() {
        let ticket = issue(&KEY, "phone", "j1", NOW);
        let later = ticket.replacen(&(NOW + LIFE_S).to_string(), &(NOW + 80).to_string(), 1);
        let far = issue(&KEY, "phone", "j1", NOW + 10_000);
        for bad in ["", ".", "x.y", "99999999999999999999999.00", &later, &far, &ticket[1..]] {
            assert!(!is_good(&KEY, "phone", "j1", bad, NOW), "{bad}");
        }
        assert!(!is_good(&KEY, "phone", "j1", &format!("{ticket}0"), NOW));
        assert!(!is_good(&KEY, "phone", "j1", &"1".repeat(10_000), NOW));
    }

    #[test]
    fn it_travels_as_a_query() {
        assert_eq!(on("http://a/whep/x", "1.ab"), "http://a/whep/x?ticket=1.ab");
        assert_eq!(on("http://a/whep/x?y=z", "1.ab"), "http://a/whep/x?y=z&ticket=1.ab");
    }
}
