//! `aok plugin new --lang LANG [--kind KIND] NAME` and `aok plugin build`: from nothing to a component.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use guest_build::Build;

use super::doctor;
use super::files::is_bundled;
use crate::cli::error::{Error, usage};
use crate::cli::format::one_line;
use crate::cli::out::Out;
use crate::cli::session::Session;
use crate::kernel::report_file;
use crate::plugin::check_name;
use crate::server::error::{ApiError, Code};

#[derive(Debug, clap::Args)]
pub(super) struct New {
    /// The plugin's name, and the new directory's within this one
    name: String,
    /// The language that it is written in
    #[arg(long)]
    lang: Language,
    /// What it is to be
    #[arg(long, default_value = "tool")]
    kind: Kind,
}

#[derive(Debug, clap::Args)]
pub(super) struct Make {
    /// The project's directory
    #[arg(default_value = ".")]
    dir: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Language {
    Rust,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    /// Does something for agents
    Tool,
    /// Decides about what processes do, or watches it
    Hook,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Tool => "tool",
            Self::Hook => "hook",
        }
    }
}

/// Paths and texts; `__name__` stands for the project's name in both.
type Files = &'static [(&'static str, &'static str)];

impl Language {
    /// The files of a new project of any kind, and those of this one.
    fn project(self, kind: Kind) -> [Files; 2] {
        match (self, kind) {
            (Self::Rust, Kind::Tool) => [RUST, include!(concat!(env!("OUT_DIR"), "/rust_tool.rs"))],
            (Self::Rust, Kind::Hook) => [RUST, include!(concat!(env!("OUT_DIR"), "/rust_hook.rs"))],
        }
    }
}

const RUST: Files = include!(concat!(env!("OUT_DIR"), "/rust_project.rs"));

pub(super) fn new(args: &New, out: &mut Out) -> Result<(), Error> {
    let name = &args.name;
    check_name(name).map_err(|fault| usage(fault.message, fault.hint))?;
    if is_bundled(name) {
        return Err(usage(format!("the name `{name}` belongs to a bundled plugin"), "give it another name"));
    }
    let dir = Path::new(name);
    fs::create_dir(dir).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            usage(format!("there is a `{name}` here already"), "give the plugin another name, or go elsewhere")
        }
        _ => failed(dir, &e),
    })?;
    for (path, text) in args.lang.project(args.kind).into_iter().flatten() {
        let path = dir.join(path.replace("__name__", name));
        let parent = path.parent().unwrap_or(dir);
        let written = fs::create_dir_all(parent).and_then(|()| fs::write(&path, text.replace("__name__", name)));
        written.map_err(|e| failed(&path, &e))?;
    }
    if out.json {
        return out.line(&serde_json::json!({ "dir": dir, "done": "created" }).to_string());
    }
    let kind = args.kind.name();
    out.line(&format!("{name}/src/lib.rs has a {kind} to begin with. `aok plugin build {name}` makes the component."))
}

pub(super) fn build(args: &Make, session: &Session, out: &mut Out) -> Result<(), Error> {
    let name = package(&args.dir)?;
    check_name(&name).map_err(|fault| usage(fault.message, fault.hint))?;
    guest_build::ensure_toolchain(false).map_err(|e| {
        ApiError::new(Code::Unhealthy, format!("{e:#}"), "install the toolchain, then run the command again")
    })?;
    let project = Build {
        workspace: args.dir.clone(),
        packages: vec![name.clone()],
        target_dir: std::path::absolute(args.dir.join("target"))?,
        // The author may have added a dependency.
        locked: false,
    };
    let hint = "correct what the compiler says above, and export the tools with `agent_os_sdk::export_tools!`, a hook with \
                `export_hook!`";
    let guests = guest_build::build(&project).map_err(|e| ApiError::new(Code::BuildFailed, format!("{e:#}"), hint))?;
    let file = args.dir.join(format!("{name}.wasm"));
    for guest in guests {
        let mut component = fs::read(&guest.component).map_err(|e| failed(&guest.component, &e))?;
        let wit = args.dir.join("wit");
        if wit.is_dir() {
            let hint = "correct the WIT files; their comments are what a model is told of the functions";
            component = guest_build::document(component, &wit)
                .map_err(|e| ApiError::new(Code::BuildFailed, format!("{e:#}"), hint))?;
        }
        fs::write(&file, component).map_err(|e| failed(&file, &e))?;
    }
    let report = report_file(&file, None, session.wasi03()?);
    let told = doctor::text(&report);
    doctor::verdict(report)?;
    if out.json {
        return out.line(&serde_json::json!({ "file": file, "done": "built" }).to_string());
    }
    for line in told {
        out.line(&one_line(&line))?;
    }
    out.line(&one_line(&format!("`aok plugin add {}` puts it into the data directory.", file.display())))
}

/// The name of the package in `dir`.
fn package(dir: &Path) -> Result<String, Error> {
    let path = dir.join("Cargo.toml");
    let wrong = |why: String| usage(why, "`aok plugin new --lang rust NAME` makes a project; give its directory");
    let text = fs::read_to_string(&path).map_err(|e| wrong(format!("{} cannot be read: {e}", path.display())))?;
    let manifest: toml::Table = text.parse().map_err(|e| wrong(format!("{}: {e}", path.display())))?;
    let name = manifest.get("package").and_then(|package| package.get("name")).and_then(toml::Value::as_str);
    name.map(str::to_owned).ok_or_else(|| wrong(format!("{} names no package", path.display())))
}

fn failed(path: &Path, error: &io::Error) -> Error {
    let message = format!("{} cannot be written: {error}", path.display());
    ApiError::new(Code::Io, message, "check the permissions and the space there").into()
}
