//! When and how often a provider is asked: slots, requests and tokens per minute, retries, a circuit
//! breaker and a deadline, in front of any [`Provider`].
//!
//! Order of one call: its turn in the [`Device`]'s queue, which keeps the limits per minute too, then the
//! attempt; a failure for the moment gives the slot back, waits (what the provider asks for, else longer each
//! time, with jitter) and begins again. A provider that asks to be left alone for a time gets no call
//! meanwhile. The deadline spans all of it. A provider that failed [`BREAKS_AFTER`] times in a row is left
//! alone for a while; refusals that are the request's own fault, and being asked to slow down, do not count.
//!
//! `failsafe` is the breaker (its state machine can be driven by hand, which streaming needs), `backon` gives
//! the waits.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder as _, ExponentialBuilder};
use failsafe::failure_policy::{ConsecutiveFailures, consecutive_failures};
use failsafe::{StateMachine, backoff};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::device::expected::Expected;
use super::device::{Device, Limits, Policy, Standing, Ticket};
use super::{Delta, Error, Provider, Request};
use crate::abi::Reply;
use crate::config::Traffic;

/// Failures in a row after which a provider is left alone.
const BREAKS_AFTER: u32 = 8;

/// How long it is left alone, at first and at most.
const OPEN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// The wait before the first retry, and the longest that is made up here.
const WAIT: (Duration, Duration) = (Duration::from_millis(400), Duration::from_secs(20));

type Breaker = StateMachine<ConsecutiveFailures<backoff::Exponential>, ()>;

/// A provider and how it is asked.
pub struct Gateway {
    name: String,
    provider: Arc<dyn Provider>,
    traffic: Traffic,
    /// The first and the longest wait that is made up here.
    wait: (Duration, Duration),
    device: Device,
    breaker: Breaker,
    last_failure: Mutex<String>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("provider", &self.provider)
            .field("traffic", &self.traffic)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// Puts `traffic` in front of `provider`, whose name is for messages; calls go in the default order.
    #[must_use]
    pub fn new(name: &str, provider: Arc<dyn Provider>, traffic: Traffic) -> Self {
        Self::with_policy(name, provider, traffic, Box::new(Expected::default()))
    }

    /// The same in the order of `policy`.
    #[must_use]
    pub fn with_policy(name: &str, provider: Arc<dyn Provider>, traffic: Traffic, policy: Box<dyn Policy>) -> Self {
        let limits = Limits { requests: traffic.requests_per_minute, tokens: traffic.tokens_per_minute };
        Self {
            name: name.to_owned(),
            provider,
            traffic,
            wait: WAIT,
            device: Device::new(traffic.slots, policy, limits),
            breaker: failsafe::Config::new()
                .failure_policy(consecutive_failures(BREAKS_AFTER, backoff::exponential(OPEN.0, OPEN.1)))
                .build(),
            last_failure: Mutex::default(),
        }
    }

    /// The queue in front of the provider.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// One attempt, when it is the call's turn; `called` is when the call was made.
    async fn attempt(
        &self,
        request: &Arc<Request>,
        deltas: &UnboundedSender<Delta>,
        called: Instant,
    ) -> Result<Reply, Error> {
        let slot = self.device.acquire(ticket(request), called).await;
        if !self.breaker.is_call_permitted() {
            slot.unused();
            let last = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return Err(Error::Open { provider: self.name.clone(), last });
        }
        let outcome = self.provider.generate(Arc::clone(request), deltas.clone()).await;
        self.note(&outcome);
        match &outcome {
            Ok(_) => slot.done(),
            // Before the slot is free for the next one. It may be one model's limit and not the provider's:
            // after a while somebody asks again.
            Err(Error::Status { retry_after: Some(after), .. }) => {
                self.device.pause_until(Instant::now() + (*after).min(OPEN.1));
            }
            Err(_) => {}
        }
        outcome
    }

    fn note(&self, outcome: &Result<Reply, Error>) {
        match outcome {
            Err(e @ (Error::Unreachable { .. } | Error::Status { status: 500..=599, .. })) => {
                *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = e.to_string();
                self.breaker.on_error();
            }
            // It answered: whatever it said, it is there.
            _ => self.breaker.on_success(),
        }
    }

    async fn within(
        &self,
        request: Arc<Request>,
        deltas: UnboundedSender<Delta>,
        deadline: Instant,
    ) -> Result<Reply, Error> {
        let called = Instant::now();
        let mut waits = ExponentialBuilder::new()
            .with_min_delay(self.wait.0)
            .with_max_delay(self.wait.1)
            .with_max_times(self.traffic.retries)
            .with_jitter()
            .build();
        loop {
            let outcome = self.attempt(&request, &deltas, called).await;
            let error = match outcome {
                Err(e) if e.is_transient() => e,
                other => return other,
            };
            let Some(wait) = waits.next() else { return Err(error) };
            let asked = match &error {
                Error::Status { retry_after, .. } => retry_after.unwrap_or_default(),
                _ => Duration::ZERO,
            };
            let wait = wait.max(asked);
            if Instant::now() + wait >= deadline {
                return Err(error);
            }
            tracing::debug!(provider = self.name, wait_ms = wait.as_millis(), "asked again: {error}");
            let _ = deltas.send(Delta::Restart { why: error.to_string() }); // nobody has to listen
            tokio::time::sleep(wait).await;
        }
    }
}

fn ticket(request: &Request) -> Ticket {
    Ticket {
        pid: request.claim.pid,
        program: request.claim.program,
        agent: request.agent.as_str().into(),
        standing: request.claim.standing.clone(),
        prompt_tokens: super::estimate_usage(&request.messages, "", &[]).input,
    }
}

#[async_trait]
impl Provider for Gateway {
    async fn generate(&self, request: Arc<Request>, deltas: UnboundedSender<Delta>) -> Result<Reply, Error> {
        let deadline = Instant::now() + Duration::from_secs(self.traffic.timeout_s);
        match tokio::time::timeout_at(deadline, self.within(request, deltas, deadline)).await {
            Ok(reply) => reply,
            Err(_) => Err(Error::Deadline { provider: self.name.clone(), seconds: self.traffic.timeout_s }),
        }
    }

    fn references(&self, agent: &str, index: u64) -> Vec<String> {
        self.provider.references(agent, index)
    }

    fn window(&self, model: &str) -> u32 {
        self.provider.window(model)
    }

    fn raise(&self, pid: u64, to: Option<&Standing>) {
        self.device.raise(pid, to);
    }

    fn finished(&self, program: u64) {
        self.device.finished(program);
    }

    async fn stop(&self) {
        self.provider.stop().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::abi::{Finish, TokenUsage};

    /// Fails as often as it is told to, then answers; notes how many ran at once.
    #[derive(Debug)]
    struct Flaky {
        failures: Vec<Error>,
        asked: AtomicUsize,
        running: AtomicUsize,
        most: AtomicUsize,
    }

    impl Flaky {
        fn new(failures: Vec<Error>) -> Arc<Self> {
            Arc::new(Self { failures, asked: 0.into(), running: 0.into(), most: 0.into() })
        }
    }

    #[async_trait]
    impl Provider for Flaky {
        async fn generate(&self, _: Arc<Request>, _: UnboundedSender<Delta>) -> Result<Reply, Error> {
            let n = self.asked.fetch_add(1, Ordering::SeqCst);
            self.most.fetch_max(self.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.running.fetch_sub(1, Ordering::SeqCst);
            match self.failures.get(n) {
                Some(e) => Err(e.clone()),
                None => Ok(Reply {
                    text: "yes".into(),
                    tool_calls: vec![],
                    finish: Finish::Stop,
                    usage: TokenUsage::default(),
                }),
            }
        }

        fn window(&self, _: &str) -> u32 {
            1
        }
    }

    fn status(status: u16, wait_ms: u64) -> Error {
        let retry_after = (wait_ms > 0).then(|| Duration::from_millis(wait_ms));
        Error::Status { provider: "p".into(), status, message: "m".into(), retry_after }
    }

    fn request() -> Arc<Request> {
        Arc::new(Request {
            model: "m".into(),
            agent: "a".into(),
            index: 1,
            messages: vec![crate::abi::Message::User { text: "x".repeat(4000) }],
            tools: vec![],
            temperature: None,
            max_tokens: None,
            response_schema: None,
            results: std::collections::HashMap::new(),
            claim: crate::llm::Claim::default(),
        })
    }

    async fn ask(gateway: &Gateway) -> (Result<Reply, Error>, usize) {
        let (deltas, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let reply = gateway.generate(request(), deltas).await;
        let mut restarts = 0;
        while let Some(delta) = seen.recv().await {
            restarts += usize::from(matches!(delta, Delta::Restart { .. }));
        }
        (reply, restarts)
    }

    /// With waits that a test can sit out.
    fn gateway(provider: &Arc<Flaky>, traffic: Traffic) -> Gateway {
        let provider = Arc::clone(provider) as Arc<dyn Provider>;
        Gateway { wait: (Duration::from_millis(1), Duration::from_millis(4)), ..Gateway::new("p", provider, traffic) }
    }

    #[tokio::test]
    async fn what_fails_for_the_moment_is_asked_again_and_told() {
        let flaky = Flaky::new(vec![status(503, 0), status(429, 120)]);
        let began = Instant::now();
        let (reply, restarts) = ask(&gateway(&flaky, Traffic::default())).await;
        assert_eq!((reply.unwrap().text.as_str(), restarts, flaky.asked.load(Ordering::SeqCst)), ("yes", 2, 3));
        // A lower bound: a slow machine only makes it longer.
        assert!(began.elapsed() >= Duration::from_millis(120), "retry-after was not kept: {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn retries_end_and_what_will_not_change_is_not_retried() {
        let flaky = Flaky::new(vec![status(500, 0); 9]);
        let (reply, restarts) = ask(&gateway(&flaky, Traffic { retries: 2, ..Traffic::default() })).await;
        assert!(matches!(reply, Err(Error::Status { status: 500, .. })));
        assert_eq!((restarts, flaky.asked.load(Ordering::SeqCst)), (2, 3));
        let flaky = Flaky::new(vec![status(401, 0)]);
        let (reply, restarts) = ask(&gateway(&flaky, Traffic::default())).await;
        assert!(matches!(reply, Err(Error::Status { status: 401, .. })) && restarts == 0);
        assert_eq!(flaky.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_wait_beyond_the_deadline_is_not_begun_and_a_silent_provider_ends_at_it() {
        let traffic = Traffic { timeout_s: 1, ..Traffic::default() };
        let (reply, _) = ask(&gateway(&Flaky::new(vec![status(429, 3_600_000)]), traffic)).await;
        assert!(matches!(reply, Err(Error::Status { status: 429, .. })));

        #[derive(Debug)]
        struct Silent;
        #[async_trait]
        impl Provider for Silent {
            async fn generate(&self, _: Arc<Request>, _: UnboundedSender<Delta>) -> Result<Reply, Error> {
                std::future::pending().await
            }
            fn window(&self, _: &str) -> u32 {
                1
            }
        }
        let (reply, _) = ask(&Gateway::new("p", Arc::new(Silent), traffic)).await;
        assert!(matches!(reply, Err(Error::Deadline { seconds: 1, .. })));
    }

    #[tokio::test]
    async fn slots_bound_what_runs_at_once() {
        let flaky = Flaky::new(vec![]);
        let gateway = Arc::new(gateway(&flaky, Traffic { slots: 3, ..Traffic::default() }));
        let all = (0..20).map(|_| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { ask(&gateway).await.0.unwrap() })
        });
        for task in all.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        assert_eq!((flaky.most.load(Ordering::SeqCst), flaky.asked.load(Ordering::SeqCst)), (3, 20));
    }

    #[tokio::test]
    async fn a_provider_that_is_down_is_left_alone() {
        let flaky = Flaky::new(vec![status(500, 0); 100]);
        let down = gateway(&flaky, Traffic { retries: 20, ..Traffic::default() });
        let (reply, _) = ask(&down).await;
        assert!(matches!(&reply, Err(Error::Open { last, .. }) if last.contains("500")), "{reply:?}");
        assert_eq!(flaky.asked.load(Ordering::SeqCst), BREAKS_AFTER as usize);
        assert!(matches!(ask(&down).await.0, Err(Error::Open { .. })));
        assert_eq!(flaky.asked.load(Ordering::SeqCst), BREAKS_AFTER as usize);
        // Being told to slow down is no failure of the provider.
        let busy = Flaky::new(vec![status(429, 0); 40]);
        let (reply, _) = ask(&gateway(&busy, Traffic { retries: 100, ..Traffic::default() })).await;
        assert_eq!(reply.unwrap().text, "yes");
    }

    #[tokio::test]
    async fn a_provider_that_asks_for_a_pause_is_asked_by_nobody_meanwhile() {
        let flaky = Flaky::new(vec![status(429, 300)]);
        let gateway = gateway(&flaky, Traffic { retries: 0, ..Traffic::default() });
        let began = Instant::now();
        assert!(matches!(ask(&gateway).await.0, Err(Error::Status { status: 429, .. })));
        // Another call, which was told nothing, waits as well, and holds no slot.
        let (reply, load) = tokio::join!(ask(&gateway), async {
            tokio::task::yield_now().await;
            gateway.device().load()
        });
        assert!(reply.0.is_ok() && began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
        assert_eq!((load.running, load.waiting), (0, 1));
    }

    #[tokio::test]
    async fn requests_and_tokens_per_minute_are_kept() {
        // The first request goes at once, a later one must wait.
        for traffic in [
            Traffic { requests_per_minute: Some(1), timeout_s: 1, ..Traffic::default() },
            // One prompt is 1000 tokens.
            Traffic { tokens_per_minute: Some(1500), timeout_s: 1, ..Traffic::default() },
        ] {
            let flaky = Flaky::new(vec![]);
            let gateway = gateway(&flaky, traffic);
            assert!(ask(&gateway).await.0.is_ok());
            assert!(matches!(ask(&gateway).await.0, Err(Error::Deadline { .. })), "{traffic:?}");
            assert_eq!(flaky.asked.load(Ordering::SeqCst), 1);
        }
    }
}
