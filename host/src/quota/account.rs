//! Accounts: what processes and groups have used, and what is promised to calls under way, in one tree.
//!
//! A process's account lies below its spawner's, that of a tree's root below its group's. What is used anywhere counts
//! in each account above, so a limit holds for all that lies below it. Three rules keep the books:
//! 1. before a call, what it may take is held in every account up to the root, or in none;
//! 2. after it, what it took is used in each of them, and what was held is given back;
//! 3. a hold that is dropped, because its process was killed, is given back whole.
//!
//! Nothing is locked. A sum is never too small while two calls race, so a limit is never passed: at worst one of two
//! that would fit alone is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ResourceQuota;

/// What an account counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Instructions, in wasmtime fuel.
    Fuel,
    /// Tokens, prompt and generated together.
    Tokens,
    /// Price in micro-USD.
    MicroUsd,
    /// Tool calls.
    ToolCalls,
    /// Bytes of linear memory. Held while an instance lives, never used up.
    Memory,
    /// Processes below. Held while they live, never used up.
    Children,
    /// Bytes written to the store.
    StoreBytes,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Fuel, Self::Tokens, Self::MicroUsd, Self::ToolCalls, Self::Memory, Self::Children, Self::StoreBytes];

    /// The limit's name in errors and events.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fuel => "fuel",
            Self::Tokens => "tokens",
            Self::MicroUsd => "usd",
            Self::ToolCalls => "tool-calls",
            Self::Memory => "memory",
            Self::Children => "children",
            Self::StoreBytes => "store-bytes",
        }
    }

    fn of(self, quota: &ResourceQuota) -> u64 {
        match self {
            Self::Fuel => quota.fuel,
            Self::Tokens => quota.tokens,
            Self::MicroUsd => quota.micro_usd,
            Self::ToolCalls => quota.tool_calls,
            Self::Memory => quota.memory,
            Self::Children => quota.children,
            Self::StoreBytes => quota.store_bytes,
        }
    }
}

/// A limit that something would pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{owner} has {used} {what} used or promised of {limit} that it may have, and {asked} more were asked for", what = resource.name())]
pub struct Exceeded {
    /// Whose limit: `process 7` or `group ann`.
    pub owner: String,
    /// Which.
    pub resource: Resource,
    /// Used and promised.
    pub used: u64,
    /// What was asked for.
    pub asked: u64,
    /// The limit.
    pub limit: u64,
}

/// One resource of one account.
#[derive(Debug, Default)]
struct Line {
    limit: AtomicU64,
    used: AtomicU64,
    held: AtomicU64,
}

impl Line {
    fn sum(&self) -> u64 {
        // `settle` adds to one before it takes from the other: read the other way round, nothing is missed.
        let held = self.held.load(Ordering::SeqCst);
        held.saturating_add(self.used.load(Ordering::SeqCst))
    }
}

/// The books of a process or a group.
#[derive(Debug)]
pub struct Account {
    owner: String,
    above: Option<Arc<Self>>,
    lines: [Line; Resource::ALL.len()],
}

impl Account {
    /// An account with the limits of `quota`, below `above`. `used` is what its owner used in earlier lives, which the
    /// accounts above know already.
    #[must_use]
    pub fn new(
        owner: String,
        quota: &ResourceQuota,
        above: Option<Arc<Self>>,
        used: impl IntoIterator<Item = (Resource, u64)>,
    ) -> Arc<Self> {
        let account = Self { owner, above, lines: Default::default() };
        account.set_limits(quota);
        for (resource, amount) in used {
            account.line(resource).used.store(amount, Ordering::SeqCst);
        }
        Arc::new(account)
    }

    /// Replaces the limits; what is used stays.
    pub fn set_limits(&self, quota: &ResourceQuota) {
        for resource in Resource::ALL {
            self.line(resource).limit.store(resource.of(quota), Ordering::SeqCst);
        }
    }

    fn line(&self, resource: Resource) -> &Line {
        &self.lines[resource as usize]
    }

    fn up(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |account| account.above.as_deref())
    }

    /// Used and not given back, with what is below.
    #[must_use]
    pub fn used(&self, resource: Resource) -> u64 {
        self.line(resource).used.load(Ordering::SeqCst)
    }

    /// Promised to what is under way, with what is below.
    #[must_use]
    pub fn held(&self, resource: Resource) -> u64 {
        self.line(resource).held.load(Ordering::SeqCst)
    }

    /// What may still be had: the least that is left in this account and those above.
    #[must_use]
    pub fn left(&self, resource: Resource) -> u64 {
        let left = |account: &Self| {
            let line = account.line(resource);
            line.limit.load(Ordering::SeqCst).saturating_sub(line.sum())
        };
        self.up().map(left).min().unwrap_or(0)
    }

    /// Holds `amount` here and above.
    ///
    /// # Errors
    /// The first limit on the way up that it would pass. Then nothing is held.
    pub fn reserve(self: &Arc<Self>, resource: Resource, amount: u64) -> Result<Reservation, Exceeded> {
        for (depth, account) in self.up().enumerate() {
            let line = account.line(resource);
            let held = line.held.fetch_add(amount, Ordering::SeqCst);
            let used = held.saturating_add(line.used.load(Ordering::SeqCst));
            let limit = line.limit.load(Ordering::SeqCst);
            if used.saturating_add(amount) > limit {
                for account in self.up().take(depth + 1) {
                    account.line(resource).held.fetch_sub(amount, Ordering::SeqCst);
                }
                return Err(Exceeded { owner: account.owner.clone(), resource, used, asked: amount, limit });
            }
        }
        Ok(Reservation { account: Arc::clone(self), resource, held: amount })
    }

    /// A hold of nothing, to be resized.
    #[must_use]
    pub fn hold(self: &Arc<Self>, resource: Resource) -> Reservation {
        Reservation { account: Arc::clone(self), resource, held: 0 }
    }

    /// Notes what was used without a hold.
    pub fn charge(&self, resource: Resource, amount: u64) {
        for account in self.up() {
            account.line(resource).used.fetch_add(amount, Ordering::SeqCst);
        }
    }

    /// The first limit on the way up that is used up: one more would pass it.
    #[must_use]
    pub fn exhausted(&self, resource: Resource) -> Option<Exceeded> {
        self.up().find_map(|account| {
            let line = account.line(resource);
            let (used, limit) = (line.sum(), line.limit.load(Ordering::SeqCst));
            (used >= limit).then(|| Exceeded { owner: account.owner.clone(), resource, used, asked: 1, limit })
        })
    }
}

/// A hold. Dropped, it gives back what it held.
#[derive(Debug)]
pub struct Reservation {
    account: Arc<Account>,
    resource: Resource,
    held: u64,
}

impl Reservation {
    /// Turns the hold into what was really used, which may be more or less.
    pub fn settle(self, used: u64) {
        self.account.charge(self.resource, used);
        // The drop gives the hold back, after the charge.
    }

    /// Holds so much in all from now on.
    ///
    /// # Errors
    /// The limit that it would pass; the hold stays as it was.
    pub fn resize(&mut self, amount: u64) -> Result<(), Exceeded> {
        if amount > self.held {
            let mut more = self.account.reserve(self.resource, amount - self.held)?;
            more.held = 0;
        } else {
            self.give_back(self.held - amount);
        }
        self.held = amount;
        Ok(())
    }

    fn give_back(&self, amount: u64) {
        for account in self.account.up() {
            account.line(self.resource).held.fetch_sub(amount, Ordering::SeqCst);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.give_back(self.held);
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    fn quota(tokens: u64) -> ResourceQuota {
        ResourceQuota { tokens, ..ResourceQuota::STANDARD }
    }

    fn tokens(account: &Account) -> (u64, u64) {
        (account.used(Resource::Tokens), account.held(Resource::Tokens))
    }

    #[test]
    fn a_limit_above_holds_for_all_below() {
        let group = Account::new("group g".into(), &quota(100), None, [(Resource::Tokens, 10)]);
        let a = Account::new("process 1".into(), &quota(80), Some(Arc::clone(&group)), []);
        let b = Account::new("process 2".into(), &quota(80), Some(Arc::clone(&group)), [(Resource::Tokens, 10)]);
        let hold = a.reserve(Resource::Tokens, 60).unwrap();
        assert_eq!((tokens(&a), tokens(&group)), ((0, 60), (10, 60)));
        assert_eq!(b.left(Resource::Tokens), 30);
        let refused = b.reserve(Resource::Tokens, 31).unwrap_err();
        assert_eq!((refused.owner.as_str(), refused.used, refused.limit), ("group g", 70, 100));
        assert_eq!(tokens(&b), (10, 0), "a refused hold leaves nothing");
        assert_eq!(a.reserve(Resource::Tokens, 21).unwrap_err().owner, "process 1");
        hold.settle(5);
        assert_eq!((tokens(&a), tokens(&group)), ((5, 0), (15, 0)));
        a.set_limits(&quota(5));
        assert_eq!(a.exhausted(Resource::Tokens).unwrap().owner, "process 1");
        assert!(b.exhausted(Resource::Tokens).is_none());
    }

    #[test]
    fn a_hold_grows_and_shrinks_and_goes() {
        let a = Account::new("process 1".into(), &quota(10), None, []);
        let mut hold = a.reserve(Resource::Tokens, 4).unwrap();
        hold.resize(10).unwrap();
        assert!(hold.resize(11).is_err());
        assert_eq!(tokens(&a), (0, 10));
        hold.resize(3).unwrap();
        assert_eq!(tokens(&a), (0, 3));
        drop(hold);
        assert_eq!(tokens(&a), (0, 0));
    }

    /// Threads reserve, settle, and die with what they hold, in a random tree: at the end each account has used what
    /// it and those below were charged, holds nothing, and passed no limit.
    #[test]
    fn the_books_balance_whoever_is_killed() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut accounts: Vec<(Arc<Account>, Option<usize>)> =
            vec![(Account::new("group".into(), &quota(30_000), None, []), None)];
        for n in 1..40 {
            let above = rng.random_range(0..accounts.len());
            let limit = rng.random_range(500..5_000);
            let account = Account::new(format!("process {n}"), &quota(limit), Some(Arc::clone(&accounts[above].0)), []);
            accounts.push((account, Some(above)));
        }
        let charged: Vec<AtomicU64> = accounts.iter().map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (accounts, charged) = (&accounts, &charged);
                let mut rng = StdRng::seed_from_u64(seed ^ (thread + 1));
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let n = rng.random_range(0..accounts.len());
                        let Ok(hold) = accounts[n].0.reserve(Resource::Tokens, rng.random_range(1..40)) else {
                            continue;
                        };
                        match rng.random_range(0..3) {
                            0 => drop(hold),
                            _ => {
                                let used = rng.random_range(0..=hold.held);
                                charged[n].fetch_add(used, Ordering::SeqCst);
                                hold.settle(used);
                            }
                        }
                    }
                });
            }
        });
        let mut expected: Vec<u64> = charged.iter().map(|c| c.load(Ordering::SeqCst)).collect();
        for n in (1..accounts.len()).rev() {
            // Those below come later, so theirs are complete here.
            let above = accounts[n].1.unwrap();
            expected[above] += expected[n];
        }
        assert!(expected[0] > 0);
        for (n, (account, _)) in accounts.iter().enumerate() {
            assert_eq!(tokens(account), (expected[n], 0), "{}", account.owner);
            assert!(account.used(Resource::Tokens) <= account.line(Resource::Tokens).limit.load(Ordering::SeqCst));
        }
    }
}
