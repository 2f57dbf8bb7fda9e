//! From a datagram to the viewer it belongs to.
//!
//! Two tables: local ICE user fragment (the first STUN check of a viewer) and remote address
//! (everything after it). Not the check of credentials, which is the protocol library's.
//! Invariant: an address is learnt only from a STUN request whose integrity was verified, and a
//! viewer has at most [`ADDRESSES_PER_VIEWER_MAX`] of them.

use ahash::AHashMap;
use rand::Rng;
use rand::distr::Alphanumeric;
use smallvec::SmallVec;
use str0m::IceCreds;

use crate::api::Route;
use crate::limits::{ADDRESSES_PER_VIEWER_MAX, REMOTE_CANDIDATES_MAX};

/// What a datagram is, by its first byte (RFC 7983).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Stun,
    Dtls,
    Media,
}

/// Sorts a datagram; `None` is nothing that a viewer sends.
pub(crate) fn kind(bytes: &[u8]) -> Option<Kind> {
    match (bytes.first()?, bytes.len()) {
        (0..=1, 20..) => Some(Kind::Stun),
        (20..=63, 13..) => Some(Kind::Dtls),
        (128..=191, 8..) => Some(Kind::Media),
        _ => None,
    }
}

/// The tables. Values are keys of the viewer table.
#[derive(Debug, Default)]
pub(crate) struct Demux {
    by_address: AHashMap<Route, usize>,
    by_ufrag: AHashMap<Box<str>, usize>,
}

/// One viewer's entries, kept by the viewer, so that removing it costs nothing to find.
#[derive(Debug)]
pub(crate) struct Entries {
    ufrag: Box<str>,
    addresses: SmallVec<[Route; 2]>,
    /// Addresses ever learnt.
    learnt: usize,
}

impl Demux {
    /// Random credentials whose user fragment no viewer has. `random` must be cryptographic: who
    /// guesses the password can take the viewer's place. (The library's own credentials are not.)
    pub(crate) fn fresh_credentials(&self, random: &mut impl Rng) -> IceCreds {
        let mut text = |len: usize| -> String {
            (0..len).map(|_| char::from(random.sample(Alphanumeric))).collect()
        };
        loop {
            let credentials = IceCreds { ufrag: text(8), pass: text(24) };
            if !self.by_ufrag.contains_key(credentials.ufrag.as_str()) {
                return credentials;
            }
        }
    }

    pub(crate) fn insert(&mut self, viewer: usize, ufrag: &str) -> Entries {
        self.by_ufrag.insert(ufrag.into(), viewer);
        Entries { ufrag: ufrag.into(), addresses: SmallVec::new(), learnt: 0 }
    }

    pub(crate) fn remove(&mut self, entries: &Entries) {
        let viewer = self.by_ufrag.remove(&entries.ufrag);
        for address in &entries.addresses {
            // The address may be another viewer's by now.
            if self.by_address.get(address) == viewer.as_ref() {
                self.by_address.remove(address);
            }
        }
    }

    /// The viewer that speaks from this address.
    pub(crate) fn by_address(&self, from: Route) -> Option<usize> {
        self.by_address.get(&from).copied()
    }

    /// The viewer that this STUN request names.
    pub(crate) fn by_stun(&self, bytes: &[u8]) -> Option<usize> {
        self.by_ufrag.get(stun_local_ufrag(bytes)?).copied()
    }

    /// The viewer proved that it is at this address.
    pub(crate) fn learn(&mut self, viewer: usize, entries: &mut Entries, from: Route) {
        self.by_address.insert(from, viewer);
        if entries.addresses.contains(&from) {
            return;
        }
        entries.learnt += 1;
        if entries.addresses.len() == ADDRESSES_PER_VIEWER_MAX {
            let oldest = entries.addresses.remove(0);
            if self.by_address.get(&oldest) == Some(&viewer) {
                self.by_address.remove(&oldest);
            }
        }
        entries.addresses.push(from);
    }

    /// Whether a viewer may prove another address.
    pub(crate) fn may_learn(entries: &Entries) -> bool {
        entries.learnt < REMOTE_CANDIDATES_MAX
    }

    /// Gives a viewer another user fragment in place of its own.
    pub(crate) fn rename(&mut self, viewer: usize, entries: &mut Entries, ufrag: &str) {
        self.by_ufrag.remove(&entries.ufrag);
        self.by_ufrag.insert(ufrag.into(), viewer);
        entries.ufrag = ufrag.into();
    }

    /// Entries in both tables.
    pub(crate) fn len(&self) -> usize {
        self.by_address.len() + self.by_ufrag.len()
    }
}

/// Whether a STUN request nominates the path that it came by (RFC 8445, 7.1.2).
pub(crate) fn nominates(bytes: &[u8]) -> bool {
    const USE_CANDIDATE: u16 = 0x0025;
    bytes.starts_with(&[0, 1]) && attributes(bytes).any(|(kind, _)| kind == USE_CANDIDATE)
}

/// The user fragment before the colon of a STUN message's USERNAME: ours, in a request to us.
fn stun_local_ufrag(bytes: &[u8]) -> Option<&str> {
    const USERNAME: u16 = 0x0006;
    let (_, name) = attributes(bytes).find(|(kind, _)| *kind == USERNAME)?;
    std::str::from_utf8(name).ok()?.split_once(':').map(|(local, _)| local)
}

/// The attributes of a STUN message, type and value, up to the first that does not fit.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes.get(20..).unwrap_or_default();
    std::iter::from_fn(move || {
        let [t0, t1, l0, l1, tail @ ..] = rest else { return None };
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        let value = tail.get(..len)?;
        rest = tail.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_be_bytes([*t0, *t1]), value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Route {
        Route::udp(([127, 0, 0, 1], port).into())
    }

    fn stun(username: &str) -> Vec<u8> {
        let mut bytes = vec![0, 1, 0, 0];
        bytes.extend([0u8; 16]);
        // An attribute before it, with padding.
        bytes.extend([0x80, 0x22, 0, 3, b'a', b'b', b'c', 0]);
        bytes.extend([0, 6, 0, u8::try_from(username.len()).unwrap()]);
        bytes.extend(username.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn the_local_fragment_is_found_behind_other_attributes() {
        let mut demux = Demux::default();
        let entries = demux.insert(5, "abcd");
        assert_eq!(demux.by_stun(&stun("abcd:remote")), Some(5));
        assert_eq!(demux.by_stun(&stun("abcX:remote")), None);
        assert_eq!(demux.by_stun(&stun("abcd")), None);
        for len in 0..40 {
            assert!(stun("abcd:remote").get(..len).is_none_or(|b| demux.by_stun(b).is_none()));
        }
        demux.remove(&entries);
        assert_eq!(demux.len(), 0);
    }

    #[test]
    fn a_viewer_has_a_bounded_number_of_addresses() {
        let mut demux = Demux::default();
        let mut entries = demux.insert(1, "a");
        assert!(Demux::may_learn(&entries));
        for port in 1..=100 {
            demux.learn(1, &mut entries, at(port));
        }
        assert!(!Demux::may_learn(&entries), "the library would keep each");
        assert_eq!(demux.len(), 1 + ADDRESSES_PER_VIEWER_MAX);
        assert_eq!(demux.by_address(at(100)), Some(1));
        // A later viewer behind the same address keeps it when the first one goes.
        let mut other = demux.insert(2, "b");
        demux.learn(2, &mut other, at(100));
        demux.remove(&entries);
        assert_eq!(demux.by_address(at(100)), Some(2));
        demux.remove(&other);
        assert_eq!(demux.len(), 0);
    }
}
