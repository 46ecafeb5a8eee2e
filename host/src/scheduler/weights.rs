//! Nice values and their weights, and how time becomes virtual time.
//!
//! It owns the division. It must not know who is weighed.

pub(super) use crate::process::weight::NORMAL;
use crate::process::weight::of_nice;

/// How nice a task is to others: −20 (gets the most) to 19 (gets the least).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nice(i8);

impl Nice {
    /// The lowest value: the most CPU.
    pub const MIN: Self = Self(-20);
    /// The highest value: the least CPU.
    pub const MAX: Self = Self(19);

    /// `None` outside of −20…19.
    #[must_use]
    pub fn new(value: i64) -> Option<Self> {
        i8::try_from(value).ok().map(Self).filter(|nice| (Self::MIN..=Self::MAX).contains(nice))
    }

    /// The value, −20…19.
    #[must_use]
    pub fn get(self) -> i8 {
        self.0
    }

    /// The weight, 15…88761; 1024 at nice 0.
    #[must_use]
    pub fn weight(self) -> u32 {
        of_nice(self.0)
    }
}

/// The virtual nanoseconds that `ns` real ones cost at `weight`: the same number at the normal weight.
pub(super) fn virtual_ns(ns: u64, weight: u32) -> u64 {
    if weight == NORMAL {
        return ns;
    }
    // Rounded up, so that no weight makes time free.
    let cost = (u128::from(ns) * u128::from(NORMAL)).div_ceil(u128::from(weight.max(1)));
    u64::try_from(cost).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_range_is_none() {
        for bad in [-21, 20, i64::MIN, i64::MAX, 300] {
            assert_eq!(Nice::new(bad), None, "{bad}");
        }
        assert_eq!(Nice::new(19), Some(Nice::MAX));
        assert_eq!(Nice::new(-20).map(Nice::get), Some(-20));
    }

    #[test]
    fn virtual_time_is_never_free_and_never_overflows() {
        assert_eq!(virtual_ns(1_000, NORMAL), 1_000);
        assert_eq!(virtual_ns(1_000, 2 * NORMAL), 500);
        assert_eq!(virtual_ns(1, 88761), 1);
        assert_eq!(virtual_ns(0, 15), 0);
        assert_eq!(virtual_ns(u64::MAX, 15), u64::MAX);
        assert_eq!(virtual_ns(5, 0), 5 * u64::from(NORMAL));
    }
}
