//! What a nice value weighs: the table of the Linux kernel, in which a step of one is a factor of about 1.25 and moves
//! about 10 % of a core between two that compete.

/// The weight of nice 0, and of a group or a tree of which nothing is said.
pub const NORMAL: u32 = 1024;

/// Weights of nice −20 … 19 (`sched_prio_to_weight` of Linux).
const WEIGHTS: [u32; 40] = [
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, 9548, 7620, 6100, 4904, 3906, 3121, 2501,
    1991, 1586, 1277, 1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
];

/// What `nice` weighs; a value beyond −20 … 19 counts as the nearest.
#[must_use]
pub fn of_nice(nice: i8) -> u32 {
    let step = i32::from(nice.clamp(-20, 19)) + 20;
    WEIGHTS[usize::try_from(step).unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_falls_step_by_step_and_its_ends_are_kept() {
        assert_eq!((of_nice(0), of_nice(-20), of_nice(19)), (NORMAL, 88761, 15));
        assert_eq!((of_nice(i8::MIN), of_nice(i8::MAX)), (88761, 15));
        for step in WEIGHTS.windows(2) {
            let factor = f64::from(step[0]) / f64::from(step[1]);
            assert!((1.15..1.32).contains(&factor), "{step:?}");
        }
    }
}
