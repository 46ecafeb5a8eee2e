//! `aok plugin add FILE`, `aok plugin add --example NAME` and `aok plugin rm NAME`: what lies in the data directory's
//! `plugins/`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use super::doctor;
use crate::capability::Permissions;
use crate::cli::error::{Error, usage};
use crate::cli::format::one_line;
use crate::cli::out::Out;
use crate::cli::session::Session;
use crate::kernel::report_file;
use crate::plugin::{Example, bundled, check_name, examples};
use crate::server::error::{ApiError, Code};

#[derive(Debug, clap::Args)]
pub(super) struct Add {
    /// The component; the manifest and the WIT beside it, `FILE.toml` and `FILE.wit`, go with it
    #[arg(required_unless_present = "example", conflicts_with = "example")]
    file: Option<PathBuf>,
    /// An example that aok has inside, instead of a file
    #[arg(long, value_name = "NAME", value_parser = example_of_name())]
    example: Option<&'static Example>,
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

/// Takes the name of an example, and lists them.
fn example_of_name() -> impl TypedValueParser<Value = &'static Example> {
    let names = examples().iter().map(|example| PossibleValue::new(example.name).help(example.description));
    PossibleValuesParser::new(names)
        .try_map(|name| examples().iter().find(|example| example.name == name).ok_or("there is no such example"))
}

/// Where the parts of a plugin come from.
#[derive(Clone, Copy)]
enum Source<'a> {
    File(&'a Path),
    Example(&'static Example),
}

impl Source<'_> {
    /// Writes one of the parts to `to`; false where there is none.
    fn copy(self, part: &str, to: &Path) -> io::Result<bool> {
        match (self, part) {
            (Self::File(file), _) => {
                let from = file.with_extension(part);
                Ok(from.exists() && fs::copy(from, to).map(|_| true)?)
            }
            (Self::Example(example), "toml") => fs::write(to, example.manifest).map(|()| true),
            (Self::Example(example), "wasm") => fs::write(to, example.component).map(|()| true),
            (Self::Example(_), _) => Ok(false),
        }
    }
}

pub(super) fn add(args: &Add, session: &Session, out: &mut Out) -> Result<(), Error> {
    let (name, source, requested) = match (&args.file, args.example) {
        (Some(file), _) => {
            // Under the name that it gets: its manifest may speak of another.
            let report = report_file(file, args.name.as_deref(), session.wasi03()?);
            let (name, requested) = (report.name.clone(), report.requested.clone());
            doctor::verdict(report)?;
            (name, Source::File(file), requested)
        }
        (None, Some(example)) => {
            let name = args.name.as_deref().unwrap_or(example.name);
            check_name(name).map_err(|fault| usage(fault.message, fault.hint))?;
            (name.to_owned(), Source::Example(example), Permissions::default())
        }
        // The arguments' own rules say so before.
        (None, None) => return Err(usage("there is nothing to add", "give a component's file, or `--example NAME`")),
    };
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
        let to = dir.join(format!("{name}.{part}"));
        put(source, part, &to).map_err(|e| failed(&to, &e))?;
    }
    tell(out, &target, "added")?;
    let asks = requested.words();
    if !asks.is_empty() {
        let how = format!("what it has is what you grant: `aok plugin grant {name} KEY=VALUE…`");
        out.notice(&format!("{name} asks for {}", asks.join("  ")), &how);
    }
    Ok(())
}

/// Writes beside the target and renames, so that nobody loads half of it. A part that the new plugin does not have is
/// taken away: what is said of the older component is not of the new one.
fn put(source: Source<'_>, part: &str, to: &Path) -> io::Result<()> {
    let partial = to.with_extension(format!("{}.part", std::process::id()));
    if source.copy(part, &partial)? {
        fs::rename(&partial, to)
    } else if to.exists() {
        fs::remove_file(to)
    } else {
        Ok(())
    }
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
