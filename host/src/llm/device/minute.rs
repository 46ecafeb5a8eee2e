//! Requests and tokens per minute, asked for the call at the head of the queue only.
//!
//! `governor` counts (GCRA, no background task) by the device's own clock, so that it holds in virtual time
//! as well. Its check takes what it allows and gives nothing back: what was allowed for a call that then was
//! not made, or whose tokens were not allowed, is kept in hand for the next.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// The device's time for `governor`, set before each question.
#[derive(Clone, Debug, Default)]
struct Ticks(Arc<AtomicU64>);

impl Clock for Ticks {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.load(Ordering::Relaxed))
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<Nanos>>;

/// What a provider takes per minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests started per minute; no limit when absent or 0.
    pub requests: Option<u32>,
    /// Prompt tokens per minute; no limit when absent or 0.
    pub tokens: Option<u32>,
}

/// A limiter and what it allowed that was not used.
#[derive(Debug)]
struct Allowance {
    limiter: Limiter,
    /// The most that can be had at once.
    most: u32,
    in_hand: u32,
}

impl Allowance {
    fn new(quota: Quota, ticks: &Ticks) -> Self {
        let most = quota.burst_size().get();
        Self { limiter: RateLimiter::direct_with_clock(quota, ticks.clone()), most, in_hand: 0 }
    }

    /// Has `n` in hand, or tells how long it takes until it can be.
    fn fetch(&mut self, n: u32, now: Nanos) -> Result<(), Duration> {
        let Some(more) = NonZeroU32::new(n.saturating_sub(self.in_hand)) else { return Ok(()) };
        match self.limiter.check_n(more) {
            Ok(Err(not)) => return Err(not.wait_time_from(now)),
            // It cannot be refused for good: nobody asks for more than `most`.
            Ok(Ok(())) | Err(_) => self.in_hand += more.get(),
        }
        Ok(())
    }
}

/// What is left of the minute.
#[derive(Debug)]
pub(super) struct Minute {
    ticks: Ticks,
    requests: Option<Allowance>,
    tokens: Option<Allowance>,
}

impl Minute {
    pub(super) fn new(limits: Limits) -> Self {
        let ticks = Ticks::default();
        let some = |n: Option<u32>| n.and_then(NonZeroU32::new);
        // A burst of a whole minute's requests at once is what the limit of a provider refuses.
        let requests = some(limits.requests).map(|n| {
            let burst = NonZeroU32::new(n.get().div_ceil(6)).unwrap_or(n);
            Allowance::new(Quota::per_minute(n).allow_burst(burst), &ticks)
        });
        let tokens = some(limits.tokens).map(|n| Allowance::new(Quota::per_minute(n), &ticks));
        Self { ticks, requests, tokens }
    }

    /// Both allowances and what a call takes of each; a prompt larger than a minute's tokens takes all of them.
    fn parts(&mut self, prompt_tokens: u32) -> impl Iterator<Item = (&mut Allowance, u32)> {
        let tokens = self.tokens.as_mut().map(|t| (prompt_tokens.min(t.most), t)).map(|(n, t)| (t, n));
        self.requests.as_mut().map(|r| (r, 1)).into_iter().chain(tokens)
    }

    /// Whether a call may go now; if so, it is counted.
    ///
    /// # Errors
    /// When to ask again, in seconds of the device's clock.
    pub(super) fn admit(&mut self, now: f64, prompt_tokens: u32) -> Result<(), f64> {
        let at = Duration::try_from_secs_f64(now.max(0.0)).unwrap_or(Duration::MAX);
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        self.ticks.0.store(nanos, Ordering::Relaxed);
        for (part, n) in self.parts(prompt_tokens) {
            // A microsecond more, for what is lost between nanoseconds and seconds.
            part.fetch(n, Nanos::from(nanos)).map_err(|wait| now + wait.as_secs_f64() + 1e-6)?;
        }
        self.parts(prompt_tokens).for_each(|(part, n)| part.in_hand -= n);
        Ok(())
    }

    /// Takes back what was counted for a call that was not made after all.
    pub(super) fn not_made(&mut self, prompt_tokens: u32) {
        self.parts(prompt_tokens).for_each(|(part, n)| part.in_hand = (part.in_hand + n).min(part.most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_nothing_is_lost_between_them() {
        let mut minute = Minute::new(Limits { requests: Some(6), tokens: Some(600) });
        assert_eq!(minute.admit(0.0, 600), Ok(()));
        // The next request is allowed after ten seconds; its tokens only after sixty.
        let next = minute.admit(0.0, 600).unwrap_err();
        assert!((next - 10.0).abs() < 1e-3, "{next}");
        let next = minute.admit(10.1, 600).unwrap_err();
        assert!((next - 60.0).abs() < 1e-3, "{next}");
        // A smaller one at the head takes the request that was allowed, and no second one.
        assert_eq!(minute.admit(10.2, 100), Ok(()));
        let next = minute.admit(10.3, 1).unwrap_err();
        assert!(next > 19.0 && next < 21.0, "{next}");
    }

    #[test]
    fn a_call_that_was_not_made_gives_back_what_it_took() {
        let mut minute = Minute::new(Limits { requests: Some(1), tokens: Some(100) });
        assert_eq!(minute.admit(0.0, 1_000_000), Ok(()), "one larger than a minute takes all of it");
        assert!(minute.admit(0.0, 1).is_err());
        minute.not_made(1_000_000);
        minute.not_made(1_000_000);
        assert_eq!(minute.admit(0.0, 100), Ok(()));
        assert!(minute.admit(0.0, 1).is_err(), "it was given back once");
    }

    #[test]
    fn without_limits_everything_goes() {
        let mut minute = Minute::new(Limits { requests: None, tokens: Some(0) });
        assert!((0..100).all(|_| minute.admit(0.0, u32::MAX).is_ok()));
    }
}
