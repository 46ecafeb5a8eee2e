//! `aok plugin add FILE` and `aok plugin rm NAME`: what lies in the data directory's `plugins/`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::doctor;
use crate::cli::error::{Error, usage};
use crate::cli::format::one_line;
use crate::cli::out::Out;
use crate::cli::session::Session;
use crate::kernel::report_file;
use crate::plugin::{bundled, check_name};
use crate::server::error::{ApiError, Code};

#[derive(Debug, clap::Args)]
pub(super) struct Add {
    /// The component; the manifest and the WIT beside it, `FILE.toml` and `FILE.wit`, go with it
    file: PathBuf,
    /// The plugin's name, where the file has another
    #[arg(long)]
    name: Option<String>,
    /// Take the place of a plugin that is there
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Rm {
    /// The plugin's name
    name: String,
}

/// The files that a plugin may have. The component is put there last and taken away first, so that it is
/// never served without the others.
const PARTS: [&str; 3] = ["toml", "wit", "wasm"];

pub(super) fn add(args: &Add, session: &Session, out: &mut Out) -> Result<(), Error> {
    // Under the name that it gets: its manifest may speak of another.
    let report = report_file(&args.file, args.name.as_deref(), session.wasi03()?);
    let (name, requested) = (report.name.clone(), report.requested.clone());
    doctor::verdict(report)?;
    if is_bundled(&name) {
        return Err(usage(format!("the name `{name}` belongs to a bundled plugin"), "give another name with `--name`"));
    }
    let dir = session.plugins();
    let target = dir.join(format!("{name}.wasm"));
    if target.exists() && !args.replace {
        let hint = "`--replace` takes its place, `--name` gives another name";
        return Err(usage(format!("there is a plugin `{name}` already: {}", target.display()), hint));
    }
    fs::create_dir_all(&dir).map_err(|e| failed(&dir, &e))?;
    for part in PARTS {
        let (from, to) = (args.file.with_extension(part), dir.join(format!("{name}.{part}")));
        if from.exists() {
            copy(&from, &to)?;
        } else if to.exists() {
            // What is said of the older component is not of the new one.
            fs::remove_file(&to).map_err(|e| failed(&to, &e))?;
        }
    }
    tell(out, &target, "added")?;
    let asks = requested.words();
    if !asks.is_empty() {
        let how = format!("what it has is what you grant: `aok plugin grant {name} KEY=VALUE…`");
        out.notice(&format!("{name} asks for {}", asks.join("  ")), &how);
    }
    Ok(())
}

pub(super) fn rm(args: &Rm, session: &Session, out: &mut Out) -> Result<(), Error> {
    let name = &args.name;
    check_name(name).map_err(|fault| usage(fault.message, fault.hint))?;
    if is_bundled(name) {
        return Err(usage(
            format!("`{name}` is bundled: it is inside aok"),
            "only plugins of the data directory can be taken out",
        ));
    }
    let dir = session.plugins();
    let mut removed = false;
    for part in PARTS.into_iter().rev() {
        let path = dir.join(format!("{name}.{part}"));
        match fs::remove_file(&path) {
            Ok(()) => {
                removed = true;
                tell(out, &path, "removed")?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(&path, &e)),
        }
    }
    if removed {
        return Ok(());
    }
    let message = format!("there is no plugin `{name}` in {}", dir.display());
    Err(ApiError::new(Code::UnknownPlugin, message, "`aok plugin ls` shows the files; other directories are yours")
        .into())
}

pub(super) fn is_bundled(name: &str) -> bool {
    bundled().iter().any(|b| b.name == name)
}

/// Copies beside the target and renames, so that nobody loads half of it.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let partial = to.with_extension(format!("{}.part", std::process::id()));
    fs::copy(from, &partial).and_then(|_| fs::rename(&partial, to)).map_err(|e| failed(to, &e))
}

fn failed(path: &Path, error: &io::Error) -> Error {
    let message = format!("{} cannot be written: {error}", path.display());
    ApiError::new(Code::Io, message, "check the permissions and the space of the data directory").into()
}

fn tell(out: &mut Out, path: &Path, what: &str) -> Result<(), Error> {
    if out.json {
        return out.line(&serde_json::json!({ "file": path, "done": what }).to_string());
    }
    out.line(&one_line(&format!("{}: {what}", path.display())))
}
