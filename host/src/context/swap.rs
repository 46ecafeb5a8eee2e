//! `SwapManager`: which turns leave the window, and the account of hits, faults and evictions.
//!
//! It owns the watermarks. It must not know texts, messages or the store. Today's rule is the stop-gap:
//! oldest first.

/// The part of the window that is kept for the reply at most, as a divisor: half.
const MOST_RESERVED: u32 = 2;
/// How far a batch goes down, as a divisor of the high watermark. Evicting to half in one batch keeps
/// 88 % of the prompt in a provider's prefix cache where sliding by one page keeps 75 %.
const LOW: u32 = 2;

/// A turn as the eviction sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// The id of its leading page.
    pub(super) id: u64,
    /// What it takes up in the window.
    pub(super) tokens: u32,
    /// Pinned, or the current one.
    pub(super) stays: bool,
}

/// Decides what is swapped out and counts what happened.
#[derive(Clone, Debug, Default)]
pub struct SwapManager {
    pub(super) hits: u64,
    pub(super) faults: u64,
    pub(super) evictions: u64,
}

impl SwapManager {
    /// The most that a window may hold beside a reply of `reserve` tokens: the high watermark.
    pub(super) fn high(window: u32, reserve: u32) -> u32 {
        window - reserve.min(window / MOST_RESERVED)
    }

    /// The turns to evict, oldest first, from a window that holds `resident` tokens: none up to the
    /// high watermark; over it as many as bring it down to the low one, or all that may go.
    pub(super) fn victims(turns: &[Turn], resident: u32, high: u32) -> Vec<u64> {
        if resident <= high {
            return Vec::new();
        }
        let mut left = resident;
        let mut victims = Vec::new();
        for turn in turns.iter().filter(|t| !t.stays) {
            if left <= high / LOW {
                break;
            }
            left = left.saturating_sub(turn.tokens);
            victims.push(turn.id);
        }
        victims
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tokens: &[(u32, bool)], high: u32) -> Vec<u64> {
        let turns: Vec<_> = (0..).zip(tokens).map(|(id, &(tokens, stays))| Turn { id, tokens, stays }).collect();
        SwapManager::victims(&turns, tokens.iter().map(|t| t.0).sum(), high)
    }

    #[test]
    fn eviction_starts_over_the_high_mark_and_ends_at_the_low_one() {
        let turns = [(10, false), (10, true), (10, false), (10, false), (10, true)];
        assert!(check(&turns, 50).is_empty());
        assert_eq!(check(&turns, 49), [0, 2, 3]);
        assert_eq!(check(&turns[..4], 38), [0, 2, 3]);
        assert_eq!(check(&[(10, false); 6], 50), [0, 1, 2, 3]);
        assert_eq!(check(&[(90, true), (1, false)], 10), [1]);
    }

    #[test]
    fn a_reply_never_takes_more_than_half_of_the_window() {
        assert_eq!([SwapManager::high(100, 20), SwapManager::high(100, 900), SwapManager::high(0, 9)], [80, 50, 0]);
    }
}
