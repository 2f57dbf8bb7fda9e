//! Pages of lists: sizes and opaque tokens. Not the rows. Invariant: a page token means something
//! only for the list (method, parent, filter) that handed it out; anything else is refused.

use aws_lc_rs::{
    digest::{SHA256, digest},
    hmac,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::error::ControlError;

/// Page size when none is asked for.
const DEFAULT_SIZE: usize = 100;
/// Largest page.
const MAX_SIZE: usize = 1000;
/// Bytes of the tag in front of a token: 96 bits, a seal against accidents and probing.
const TAG: usize = 12;
/// Longest token taken: a tag, a scope and the longest name (two ids), in base64.
const MAX_TOKEN_BYTES: usize = 512;

/// Which list a page belongs to.
#[derive(Debug)]
pub struct Pager<'a> {
    key: &'a hmac::Key,
    scope: [u8; 32],
}

impl<'a> Pager<'a> {
    /// `scope` names the list: method, parent, filter.
    pub fn new(key: &'a hmac::Key, scope: &[&str]) -> Self {
        let mut bytes = Vec::new();
        for part in scope {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &bytes).as_ref());
        Self { key, scope: hash }
    }

    fn tag(&self, last: &str) -> hmac::Tag {
        let mut bytes = self.scope.to_vec();
        bytes.extend_from_slice(last.as_bytes());
        hmac::sign(self.key, &bytes)
    }

    /// Token for the page after `last`.
    pub fn token(&self, last: &str) -> String {
        let mut bytes = self.tag(last).as_ref()[..TAG].to_vec();
        bytes.extend_from_slice(last.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The name after which the page begins; `None` for the first page.
    pub fn after(&self, token: &str) -> Result<Option<String>, ControlError> {
        if token.is_empty() {
            return Ok(None);
        }
        let bad = || ControlError::field("page_token", "is not a token of this list");
        if token.len() > MAX_TOKEN_BYTES {
            return Err(bad());
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
        let (tag, last) = bytes.split_at_checked(TAG).ok_or_else(bad)?;
        let last = std::str::from_utf8(last).map_err(|_| bad())?;
        let want = self.tag(last);
        aws_lc_rs::constant_time::verify_slices_are_equal(tag, &want.as_ref()[..TAG])
            .map_err(|_| bad())?;
        Ok(Some(last.to_owned()))
    }
}

/// A page size as asked for: zero is the default, more than the largest is the largest.
pub fn size(asked: i32) -> Result<usize, ControlError> {
    match usize::try_from(asked) {
        Err(_) => Err(ControlError::field("page_size", "must not be negative")),
        Ok(0) => Ok(DEFAULT_SIZE),
        Ok(n) => Ok(n.min(MAX_SIZE)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, b"k")
    }

    #[test]
    fn a_token_belongs_to_its_list() {
        let key = key();
        let list = Pager::new(&key, &["ListViewers", "streams/a", ""]);
        let token = list.token("v1");
        assert_eq!(list.after(&token).unwrap(), Some("v1".to_owned()));
        let other = Pager::new(&key, &["ListViewers", "streams/b", ""]);
        assert!(other.after(&token).is_err());
        let elsewhere = hmac::Key::new(hmac::HMAC_SHA256, b"other");
        assert!(Pager::new(&elsewhere, &["ListViewers", "streams/a", ""]).after(&token).is_err());
        assert_eq!(list.after("").unwrap(), None);
    }

    #[test]
    fn sizes_are_bounded() {
        assert!(size(-1).is_err());
        assert_eq!((size(0).unwrap(), size(7).unwrap(), size(i32::MAX).unwrap()), (100, 7, 1000));
    }

    proptest! {
        #[test]
        fn garbage_is_refused(token in ".{1,600}") {
            let key = key();
            prop_assert!(Pager::new(&key, &["l"]).after(&token).is_err());
        }
    }
}
