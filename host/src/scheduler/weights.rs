//! Weights: what a nice value is worth, and how time becomes virtual time.
//!
//! It owns the table and the division. It must not know who is weighed.

/// What a task of nice 0, a tree without a root task and a group without a setting weigh.
pub(super) const NORMAL: u32 = 1024;

/// Linux's table: one step is a factor of about 1.25, so that it moves about 10 % of a core between two.
const WEIGHTS: [u32; 40] = [
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, 9548, 7620, 6100, 4904, 3906, 3121, 2501,
    1991, 1586, 1277, 1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
];

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
        WEIGHTS[usize::from(self.0.saturating_add(20).unsigned_abs()).min(WEIGHTS.len() - 1)]
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
    fn the_table_falls_and_has_its_fixed_points() {
        let all: Vec<u32> = (-20..=19).map(|n| Nice::new(n).unwrap().weight()).collect();
        assert!(all.is_sorted_by(|a, b| a > b));
        assert_eq!((all[0], all[20], all[39]), (88761, NORMAL, 15));
        for step in all.windows(2) {
            let factor = f64::from(step[0]) / f64::from(step[1]);
            assert!((1.15..1.32).contains(&factor), "{step:?}");
        }
    }

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
