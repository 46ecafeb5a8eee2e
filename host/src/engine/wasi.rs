//! WASI for guests. Agents: clocks that move only with journaled outcomes, random sources seeded per
//! process, no files, no sockets. Tools: real clocks, and the directories and variables that the call was granted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::{FsPerms, HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder};

use crate::capability::Rights;
use crate::syscall::{Caller, Syscall};

/// Bytes of one request for random bytes.
const MAX_RANDOM: u64 = 1 << 20;

/// The WASI context of an agent.
pub(crate) fn agent(caller: &Caller) -> WasiCtx {
    let mut rng = StdRng::seed_from_u64(caller.spec().seed);
    let clock = Clock(caller.clock());
    let (secure, insecure, seed) = (rng.random(), rng.random(), rng.random());
    WasiCtxBuilder::new()
        .wall_clock(clock.clone())
        .monotonic_clock(clock)
        .secure_random(StdRng::from_seed(secure))
        .insecure_random(StdRng::from_seed(insecure))
        .insecure_random_seed(seed)
        .max_random_size(MAX_RANDOM)
        .allow_tcp(false)
        .allow_udp(false)
        .build()
}

/// The WASI context of a tool call that was granted nothing.
pub(crate) fn without_rights() -> WasiCtx {
    tool_builder().build()
}

fn tool_builder() -> WasiCtxBuilder {
    let mut builder = WasiCtxBuilder::new();
    builder.max_random_size(MAX_RANDOM).allow_tcp(false).allow_udp(false);
    builder
}

/// The WASI context of one tool call; `None` where no right has to be carried.
///
/// # Errors
/// The directory that can no longer be opened.
pub(crate) fn tool(rights: &Rights) -> Result<Option<Box<WasiCtx>>, String> {
    let plugin = rights.plugin.as_ref().filter(|p| !(p.env.is_empty() && p.secrets.is_empty()));
    // Private mounts are no directories of WASI's: see `private`.
    let mut mounts = rights.mounts.iter().filter(|mount| !mount.is_private()).peekable();
    if mounts.peek().is_none() && plugin.is_none() {
        return Ok(None);
    }
    let mut builder = tool_builder();
    if let Some(plugin) = plugin {
        builder.envs(&plugin.env);
        // The value stays here; the placeholder becomes it on the way out.
        for secret in &plugin.secrets {
            builder.env(&secret.name, &secret.placeholder);
        }
    }
    for mount in mounts {
        let perms = if mount.writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
        builder
            .preopened_dir(&mount.host, &mount.guest, perms)
            .map_err(|e| format!("the directory {} cannot be opened: {e}", mount.host.display()))?;
    }
    Ok(Some(Box::new(builder.build())))
}

/// Time as the agent sees it.
#[derive(Clone)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

const MILLI: u64 = 1_000_000;

impl HostWallClock for Clock {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms())
    }
}

impl HostMonotonicClock for Clock {
    fn resolution(&self) -> u64 {
        MILLI
    }

    fn now(&self) -> u64 {
        self.now_ms().saturating_mul(MILLI)
    }
}

/// Replaces WASI's monotonic clock, whose timers are real whatever clock it is given: here a sleep is
/// the kernel's own syscall.
pub(crate) fn link_virtual_sleep<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> Sleeper<'_>,
) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    monotonic_clock::add_to_linker::<T, HasSleeper>(linker, view)?;
    linker.allow_shadowing(false);
    Ok(())
}

struct HasSleeper;

impl HasData for HasSleeper {
    type Data<'a> = Sleeper<'a>;
}

/// A borrowed view of an agent's store for its monotonic clock.
pub(crate) struct Sleeper<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) table: &'a mut ResourceTable,
}

impl Sleeper<'_> {
    fn now(&self) -> u64 {
        Clock(self.caller.clock()).now_ms().saturating_mul(MILLI)
    }

    fn until(&mut self, until: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let alarm = self.table.push(Alarm { caller: self.caller.clone(), until })?;
        subscribe(self.table, alarm)
    }
}

impl monotonic_clock::Host for Sleeper<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(Sleeper::now(self))
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(MILLI)
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.until(when)
    }

    fn subscribe_duration(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let until = Sleeper::now(self).saturating_add(when);
        self.until(until)
    }
}

/// A timer of an agent.
struct Alarm {
    caller: Caller,
    until: u64,
}

#[wasmtime_wasi::async_trait]
impl Pollable for Alarm {
    async fn ready(&mut self) {
        let now = Clock(self.caller.clock()).now_ms().saturating_mul(MILLI);
        if self.until <= now {
            return;
        }
        let ms = (self.until - now).div_ceil(MILLI);
        // A process that must stop does so at its next host call or tick; there is no way to say it here.
        drop(self.caller.call(Syscall::Sleep { ms }).await);
        // The journaled outcome moved the clock by what really passed; a timer never fires early.
        self.caller.reach(self.until.div_ceil(MILLI));
    }
}
