//! Requests and tokens per minute, asked for the call at the head of the queue only.
//!
//! `governor` counts (GCRA, no background task) by the device's own clock, so that it holds in virtual time
//! as well. Its check takes what it allows and gives nothing back; a request that was allowed while its
//! tokens were not is kept in hand for whichever call is at the head then.

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

/// What is left of the minute.
#[derive(Debug)]
pub(super) struct Minute {
    ticks: Ticks,
    requests: Option<Limiter>,
    tokens: Option<(NonZeroU32, Limiter)>,
    /// A request that was allowed and not made.
    in_hand: bool,
}

impl Minute {
    pub(super) fn new(limits: Limits) -> Self {
        let ticks = Ticks::default();
        let limiter = |quota| RateLimiter::direct_with_clock(quota, ticks.clone());
        let some = |n: Option<u32>| n.and_then(NonZeroU32::new);
        // A burst of a whole minute's requests at once is what the limit of a provider refuses.
        let requests = some(limits.requests).map(|n| {
            let burst = NonZeroU32::new(n.get().div_ceil(6)).unwrap_or(n);
            limiter(Quota::per_minute(n).allow_burst(burst))
        });
        let tokens = some(limits.tokens).map(|n| (n, limiter(Quota::per_minute(n))));
        Self { ticks, requests, tokens, in_hand: false }
    }

    /// Whether a call may go now; if so, it is counted.
    ///
    /// # Errors
    /// When to ask again, in seconds of the device's clock.
    pub(super) fn admit(&mut self, now: f64, prompt_tokens: u32) -> Result<(), f64> {
        let at = Duration::try_from_secs_f64(now.max(0.0)).unwrap_or(Duration::MAX);
        let nanos = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        // The clock never runs backwards, whoever asks.
        let at = Nanos::from(self.ticks.0.fetch_max(nanos, Ordering::Relaxed).max(nanos));
        // A microsecond more, for what is lost between nanoseconds and seconds.
        let later = |wait: Duration| now + wait.as_secs_f64() + 1e-6;
        if let (Some(requests), false) = (&self.requests, self.in_hand) {
            requests.check().map_err(|not| later(not.wait_time_from(at)))?;
            self.in_hand = true;
        }
        if let Some((most, tokens)) = &self.tokens {
            // A prompt larger than a minute's tokens takes all of them.
            if let Some(n) = NonZeroU32::new(prompt_tokens.min(most.get())) {
                // It cannot be refused for good: it is no larger than the burst.
                if let Ok(Err(not)) = tokens.check_n(n) {
                    return Err(later(not.wait_time_from(at)));
                }
            }
        }
        self.in_hand = false;
        Ok(())
    }

    /// Takes back the request of a call that was let go and never made. Its tokens are gone until they
    /// fill up again.
    pub(super) fn not_made(&mut self) {
        self.in_hand = self.requests.is_some();
    }
}
