//! Who does the work (CONTRACT §1): the live kernel of the data directory, the store alone, or a
//! kernel of this command's own, which then serves the socket while it lives.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Globals;
use super::error::{Error, Signal};
use super::out::Out;
use crate::config::Config;
use crate::kernel::info::Check;
use crate::kernel::{self, Builder, Examination, Kernel};
use crate::process::Pid;
use crate::server::client::{Client, Found};
use crate::server::error::{ApiError, Code};
use crate::server::socket::{SOCKET, Server};
use crate::server::wire::{Origin, Request};
use crate::server::{Lines, handle, list};

/// How long a kernel that holds the lock may take to put its socket into service, or to give the
/// lock back: both are moments, but a cold start compiles every plugin first.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at a lock that is held.
const AGAIN: Duration = Duration::from_millis(20);

/// Between two looks at whether clients' processes still run.
const LINGER: Duration = Duration::from_millis(100);

/// A data directory, and what the command line says about a kernel on it.
#[derive(Debug)]
pub(super) struct Session {
    data: PathBuf,
    config: PathBuf,
    origin: Origin,
}

/// A request that is being served.
pub(super) struct Started {
    /// Its answer.
    pub(super) answer: Result<Lines, ApiError>,
    /// The kernel, where it is this command's own. It must be finished or stopped.
    pub(super) owner: Option<Owner>,
}

impl Session {
    /// Resolves the global options.
    pub(super) fn new(globals: &Globals) -> Result<Self, Error> {
        let data = match globals.data.clone().filter(|d| !d.as_os_str().is_empty()) {
            Some(dir) => dir,
            None => platform_data_dir()?,
        };
        let absolute = |path: PathBuf| {
            std::path::absolute(&path)
                .map_err(|e| super::error::usage(format!("{} is no path: {e}", path.display()), "give another path"))
        };
        let data = absolute(data)?;
        let config = globals.config.clone().map(absolute).transpose()?;
        let origin = Origin { plugins: globals.plugins.clone(), config: config.clone() };
        Ok(Self { config: config.unwrap_or_else(|| data.join("aok.toml")), data, origin })
    }

    fn builder(&self) -> Result<Builder, ApiError> {
        let config = Config::load(&self.config, self.origin.config.is_some())?;
        let builder = Kernel::builder(&self.data).config(config);
        Ok(self.origin.plugins.iter().fold(builder, Builder::plugin_dir))
    }

    /// Whether the configuration lets tools import WASI 0.3.
    pub(super) fn wasi03(&self) -> Result<bool, ApiError> {
        Ok(Config::load(&self.config, self.origin.config.is_some())?.plugins.wasi03)
    }

    /// Serves a request that only looks: by the live kernel, else from the store.
    pub(super) async fn look(&self, request: Request) -> Result<Lines, ApiError> {
        if let Found::Kernel(client) = Client::find(&self.data).await? {
            match client.call(&request, &self.origin).await {
                // It ended, or is about to: the store tells the same.
                Err(e) if matches!(e.code, Code::KernelGone | Code::KernelEnding) => {}
                answer => return answer,
            }
        }
        let kernel = self.builder()?.read().await?;
        handle(&kernel, request).await
    }

    /// Says what works here: the live kernel of itself, else what can be seen from outside. A kernel that
    /// cannot be asked is a line of that report.
    pub(super) async fn examine(&self, model: Option<String>) -> Result<Lines, ApiError> {
        let mut unasked = None;
        match Client::find(&self.data).await {
            Ok(Found::Kernel(client)) => {
                match client.call(&Request::Doctor { model: model.clone() }, &self.origin).await {
                    Err(e) if matches!(e.code, Code::KernelGone | Code::KernelEnding) => {}
                    answer => return answer,
                }
            }
            Ok(Found::Closing) => tokio::time::sleep(AGAIN).await,
            Ok(_) => {}
            Err(e) => unasked = Some(Check::fail("running kernel", e.message, e.hint)),
        }
        let examination = Examination {
            data: self.data.clone(),
            config: self.config.clone(),
            config_is_named: self.origin.config.is_some(),
            plugins: self.origin.plugins.clone(),
            model,
        };
        let checks = Box::pin(examination.run()).await;
        list(unasked.into_iter().chain(checks).collect())
    }

    /// Serves a request that acts: by the live kernel, else by one of our own.
    pub(super) async fn act(&self, request: Request) -> Result<Started, ApiError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = Client::find(&self.data).await?;
            let silent = matches!(found, Found::Silent);
            if let Found::Kernel(client) = found {
                match client.call(&request, &self.origin).await {
                    // Refused, so nothing was begun. After a broken connection that is not sure.
                    Err(e) if e.code == Code::KernelEnding => {}
                    answer => return Ok(Started { answer, owner: None }),
                }
            } else {
                match self.builder()?.start().await {
                    Ok(kernel) => return self.own(kernel, request).await,
                    Err(e @ kernel::Error::Locked { .. }) if silent || Instant::now() >= until => return Err(e.into()),
                    Err(kernel::Error::Locked { .. }) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            if Instant::now() >= until {
                return Err(ApiError::new(
                    Code::Locked,
                    format!("the kernel on {} is ending and does not come to its end", self.data.display()),
                    "wait and try again, end its process, or use another `--data`",
                ));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// A kernel of this command's own, with its socket in service.
    pub(super) async fn serve(&self) -> Result<Owner, ApiError> {
        let kernel = self.builder()?.start().await?;
        self.bind(kernel).await
    }

    /// Where the socket is.
    pub(super) fn socket(&self) -> PathBuf {
        self.data.join(SOCKET)
    }

    /// Serves a request that only a kernel that goes on running can serve.
    pub(super) async fn ask(&self, request: Request) -> Result<Lines, ApiError> {
        if let Found::Kernel(client) = Client::find(&self.data).await? {
            return client.call(&request, &self.origin).await;
        }
        let message = format!("no kernel runs on {}", self.data.display());
        Err(ApiError::new(Code::ReadOnly, message, "start one with `aok serve`, or use `aok run`"))
    }

    /// Has a request done that answers nothing, by the live kernel or one for this request alone.
    pub(super) async fn do_it(&self, request: Request, out: &mut Out) -> Result<(), super::error::Error> {
        let started = self.act(request).await?;
        let end = started.answer.map(drop);
        if let Some(owner) = started.owner {
            let mut signals = Signals::listen()?;
            owner.finish(None, &mut signals, out).await;
        }
        Ok(end?)
    }

    /// Looks as `top` does: whether a kernel answered, its processes, its metrics.
    pub(super) async fn glance(&self) -> Result<(bool, Lines, Option<Lines>), ApiError> {
        if let Found::Kernel(client) = Client::find(&self.data).await? {
            let ps = client.call(&Request::Ps {}, &self.origin).await?;
            if let Found::Kernel(client) = Client::find(&self.data).await? {
                return Ok((true, ps, Some(client.call(&Request::Metrics {}, &self.origin).await?)));
            }
            return Ok((false, ps, None));
        }
        let kernel = self.builder()?.read().await?;
        Ok((false, handle(&kernel, Request::Ps {}).await?, None))
    }

    async fn own(&self, kernel: Kernel, request: Request) -> Result<Started, ApiError> {
        let owner = self.bind(kernel).await?;
        let answer = handle(&owner.kernel, request).await;
        Ok(Started { answer, owner: Some(owner) })
    }

    /// Puts the socket of a kernel into service.
    async fn bind(&self, kernel: Kernel) -> Result<Owner, ApiError> {
        match Server::bind(&self.data, kernel.clone(), self.origin.clone()) {
            Ok(server) => Ok(Owner { kernel, server }),
            Err(source) => {
                kernel.shutdown().await;
                Err(kernel::Error::Io { what: "the socket", path: self.data.join(SOCKET), source }.into())
            }
        }
    }

    /// Where `plugin add` puts plugins.
    pub(super) fn plugins(&self) -> PathBuf {
        self.data.join("plugins")
    }

    /// Stops a process of the live kernel where it is. A kernel that is gone has stopped it already.
    pub(super) async fn suspend(&self, pid: Pid) -> Result<(), ApiError> {
        let Found::Kernel(client) = Client::find(&self.data).await? else { return Ok(()) };
        client.call(&Request::Suspend { pid }, &Origin::default()).await.map(drop)
    }
}

fn platform_data_dir() -> Result<PathBuf, Error> {
    use etcetera::BaseStrategy as _;
    match etcetera::base_strategy::choose_native_strategy() {
        Ok(dirs) => Ok(dirs.data_dir().join("aok")),
        Err(e) => Err(super::error::usage(
            format!("there is no home directory to keep data in: {e}"),
            "give `--data DIR` or set AOK_HOME",
        )),
    }
}

/// A kernel of this command's own, with its socket in service.
pub(super) struct Owner {
    kernel: Kernel,
    server: Server,
}

impl Owner {
    /// The kernel.
    pub(super) fn kernel(&self) -> Kernel {
        self.kernel.clone()
    }

    /// Says which processes are unfinished, and how to go on with them.
    pub(super) async fn announce(&self, out: &mut Out) -> Result<(), Error> {
        let unfinished = self.kernel.unfinished().await.map_err(ApiError::from)?;
        let Some(first) = unfinished.first() else { return Ok(()) };
        let all = self.kernel.ps().await.map_err(ApiError::from)?;
        let name = |pid: &Pid| match all.iter().find(|p| p.pid == pid.0) {
            Some(p) => format!("{pid} ({})", p.name),
            None => pid.to_string(),
        };
        let names: Vec<String> = unfinished.iter().map(name).collect();
        let what = if names.len() == 1 { "a process is unfinished" } else { "processes are unfinished" };
        out.notice(&format!("{what}: {}", names.join(", ")), &format!("continue it with: aok run --resume {first}"));
        Ok(())
    }

    /// Ends well: serves until every client's process and request has ended, or a signal comes.
    pub(super) async fn finish(self, own: Option<Pid>, signals: &mut Signals, out: &mut Out) {
        let mut told = false;
        loop {
            let others = self.others(own);
            // Asked only where nobody runs: once it says yes, no request is taken any more.
            if others.is_empty() && self.server.close_if_idle() {
                break;
            }
            if !told && !others.is_empty() {
                told = true;
                let message = format!("processes of other clients still run: {}", others.join(", "));
                out.notice(&message, "serving until they end; Ctrl-C stops them, resumable");
            }
            tokio::select! {
                () = tokio::time::sleep(LINGER) => {}
                _ = signals.next() => break,
            }
        }
        self.stop(own, signals, out).await;
    }

    /// Ends now: every process stops where it is and can be resumed. A second signal does not wait
    /// for that; what is journaled is safe anyway.
    pub(super) async fn stop(self, own: Option<Pid>, signals: &mut Signals, out: &mut Out) {
        self.server.refuse();
        let others = self.others(own);
        if !others.is_empty() {
            let message = format!("stopped with this kernel, of other clients: {}", others.join(", "));
            out.notice(&message, "each is resumed with: aok run --resume PID");
        }
        self.server.withdraw();
        tokio::select! {
            () = self.kernel.shutdown() => self.server.drain().await,
            _ = signals.next() => {}
        }
    }

    fn others(&self, own: Option<Pid>) -> Vec<String> {
        self.kernel.running().iter().filter(|p| Some(**p) != own).map(Pid::to_string).collect()
    }
}

/// The signals that ask aok to end.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// Takes the signals over; from now on none ends aok by itself.
    pub(super) fn listen() -> Result<Self, Error> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| {
            signal(kind).map_err(|e| {
                let hint = "run aok where processes may handle signals";
                Error::Failed(ApiError::new(Code::Io, format!("signals cannot be handled: {e}"), hint))
            })
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the next. Cancel safe.
    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}
