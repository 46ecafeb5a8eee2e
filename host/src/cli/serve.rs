//! `aok serve`: a kernel that stays.

use super::error::Error;
use super::out::Out;
use super::session::{Session, Signals};
use crate::server::error::ApiError;

/// Run a kernel in the foreground until a signal ends it; other commands are its clients
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Leave unfinished processes as they are; without it they go on
    #[arg(long)]
    no_resume: bool,
}

pub(super) async fn run(args: Args, session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut signals = Signals::listen()?;
    let owner = session.serve().await?;
    let kernel = owner.kernel();
    out.notice(&format!("serving {}", session.socket().display()), "`aok spawn` starts a process, Ctrl-C ends this");
    if !args.no_resume {
        match kernel.resume_all().await {
            Ok(0) => {}
            Ok(n) => out.notice(&format!("unfinished processes that go on: {n}"), "`aok ps` lists them"),
            Err(e) => out.notice("unfinished processes were not resumed", &e.to_string()),
        }
    }
    // That it is asked to end is how it ends well.
    let asked = tokio::select! {
        _ = signals.next() => true,
        () = kernel.ended() => false,
    };
    owner.stop(None, &mut signals, out).await;
    match asked {
        true => Ok(()),
        false => Err(ApiError::internal("the kernel ended by itself; the lines above say why").into()),
    }
}
