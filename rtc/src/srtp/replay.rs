//! A replay window (RFC 3711, 3.3.2). Not authentication: only indices of packets that have
//! authenticated are marked. Invariant: an index is fresh at most once.

/// Remembers which of the newest `64 * WORDS` indices were seen.
#[derive(Clone, Debug)]
pub(super) struct Window<const WORDS: usize> {
    highest: u64,
    /// Bit `i` stands for the one index of the window that is `i` modulo its length.
    seen: [u64; WORDS],
}

impl<const WORDS: usize> Window<WORDS> {
    const LEN: u64 = 64 * WORDS as u64;

    /// Nothing below `first` was seen, nor was `first`.
    pub(super) const fn new(first: u64) -> Self {
        Self { highest: first, seen: [0; WORDS] }
    }

    /// The highest index marked, or the first.
    pub(super) const fn highest(&self) -> u64 {
        self.highest
    }

    /// Word and bit of an index.
    #[allow(clippy::cast_possible_truncation, reason = "both are below the window's length")]
    const fn place(index: u64) -> (usize, u64) {
        let at = index % Self::LEN;
        ((at / 64) as usize, 1 << (at % 64))
    }

    /// Whether the index was not marked and is not too old to tell.
    pub(super) const fn is_fresh(&self, index: u64) -> bool {
        let (word, bit) = Self::place(index);
        index > self.highest || (self.highest - index < Self::LEN && self.seen[word] & bit == 0)
    }

    /// Marks a fresh index.
    pub(super) fn mark(&mut self, index: u64) {
        if index > self.highest {
            if index - self.highest >= Self::LEN {
                self.seen = [0; WORDS];
            } else {
                // Places that are taken over from indices that leave the window.
                for skipped in self.highest + 1..index {
                    let (word, bit) = Self::place(skipped);
                    self.seen[word] &= !bit;
                }
            }
            self.highest = index;
        }
        let (word, bit) = Self::place(index);
        self.seen[word] |= bit;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_index_is_fresh_once_and_while_in_the_window() {
        let mut window = Window::<2>::new(5);
        assert!(window.is_fresh(5));
        window.mark(5);
        assert!(!window.is_fresh(5));
        window.mark(132);
        assert!(window.is_fresh(6) && !window.is_fresh(5), "5 is 127 behind and was marked");
        window.mark(133);
        assert!(!window.is_fresh(5) && window.is_fresh(6), "5 is out, 6 is the last one in");
        window.mark(134);
        assert!(!window.is_fresh(6));
        window.mark(10_000);
        assert!(!window.is_fresh(134) && window.is_fresh(9_999) && window.is_fresh(9_873));
        assert!(!window.is_fresh(9_872));
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(steps in prop::collection::vec((0u64..400, any::<bool>()), 1..400)) {
            let mut window = Window::<2>::new(1_000);
            let (mut seen, mut highest) = (BTreeSet::new(), 1_000u64);
            for (step, ahead) in steps {
                let index = if ahead { highest + step } else { highest.saturating_sub(step) };
                let fresh = !seen.contains(&index) && index + 128 > highest;
                prop_assert_eq!(window.is_fresh(index), fresh);
                if fresh {
                    window.mark(index);
                    seen.insert(index);
                    highest = highest.max(index);
                    prop_assert_eq!(window.highest(), highest);
                }
            }
        }
    }
}
