//! `aok serve`: a kernel that stays.

use super::error::Error;
use super::out::Out;
use super::session::{Session, Signals};

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
    out.side(&format!("serving {}", session.socket().display()));
    if !args.no_resume {
        match kernel.resume_all().await {
            Ok(0) => {}
            Ok(1) => out.side("1 unfinished process goes on"),
            Ok(n) => out.side(&format!("{n} unfinished processes go on")),
            Err(e) => out.notice("unfinished processes were not resumed", &e.to_string()),
        }
    }
    // That it is asked to end is how it ends well.
    signals.next().await;
    owner.stop(None, &mut signals, out).await;
    Ok(())
}
