//! Builds Wasm guests from source: picks a toolchain, runs one cargo for all packages, makes components.
//!
//! Used by build scripts (`host`, `tests`) and by `xtask`. It knows nothing of what the guests do.
//!
//! The inner cargo has a target folder of its own, so it never waits for the lock that the outer cargo holds.
//! Two build scripts that use the same folder at the same time take turns by cargo's own lock.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "build scripts speak to cargo on stdout and to people on stderr"
)]

mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use wit_component::{ComponentEncoder, StringEncoding};

pub use toolchain::{TOOLCHAIN_VARIABLE, Toolchain, ensure_toolchain};

/// The guests' target. Not a WASI one: a guest imports only what its world names.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// What to build, and where.
#[derive(Clone, Debug)]
pub struct Build {
    /// The folder of the guest workspace's `Cargo.toml`.
    pub workspace: PathBuf,
    /// The packages, each a `cdylib` of its own name.
    pub packages: Vec<String>,
    /// The inner cargo's target folder; the components are in its `components/`.
    pub target_dir: PathBuf,
    /// Whether `Cargo.lock` must be right already.
    pub locked: bool,
}

/// A built guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The package's name.
    pub name: String,
    /// The component, validated.
    pub component: PathBuf,
}

/// Builds every package with one cargo invocation, and makes each a component.
///
/// Does nothing for what has not changed; a component whose bytes stay the same keeps its file's time.
///
/// # Errors
/// No toolchain (the error says what to install), a guest that does not compile, or a module that is not a
/// component of its world.
pub fn build(build: &Build) -> Result<Vec<Guest>> {
    let toolchain = ensure_toolchain(false)?;
    compile(build, &toolchain)?;
    build.packages.iter().map(|package| componentize(build, package)).collect()
}

/// Tells cargo, from a build script, to run the script again when one of the guests' sources changes.
///
/// The compiler's own dependency lists name the sources, the WIT included; the manifests are added.
///
/// # Errors
/// A dependency list of a finished build that cannot be read.
pub fn print_rerun_directives(build: &Build) -> Result<()> {
    println!("cargo:rerun-if-env-changed={TOOLCHAIN_VARIABLE}");
    for file in ["Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", build.workspace.join(file).display());
    }
    let mut manifests = std::collections::BTreeSet::new();
    for package in &build.packages {
        let list = module_path(build, package).with_extension("d");
        let text = fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
        for source in dependencies(&text) {
            println!("cargo:rerun-if-changed={}", source.display());
            manifests.extend(source.ancestors().map(|folder| folder.join("Cargo.toml")).find(|file| file.exists()));
        }
    }
    for manifest in manifests {
        println!("cargo:rerun-if-changed={}", manifest.display());
    }
    Ok(())
}

/// Reads a dependency list in make's syntax, `target: file file`, where a space within a name is escaped.
fn dependencies(list: &str) -> impl Iterator<Item = PathBuf> {
    let files = list.lines().next().and_then(|line| line.split_once(": ")).map_or("", |(_, files)| files);
    files
        .replace("\\ ", "\0")
        .split(' ')
        .map(|file| file.replace('\0', " "))
        .filter(|file| !file.is_empty())
        .map(PathBuf::from)
        .collect::<Vec<_>>()
        .into_iter()
}

fn compile(build: &Build, toolchain: &Toolchain) -> Result<()> {
    eprintln!(
        "guest-build: compiling {} for {TARGET} with {toolchain} (about a minute the first time)",
        build.packages.join(", ")
    );
    let mut cargo = toolchain.cargo();
    cargo.current_dir(&build.workspace).args(["build", "--release", "--target", TARGET]);
    if build.locked {
        cargo.arg("--locked");
    }
    for package in &build.packages {
        cargo.args(["--package", package]);
    }
    cargo.arg("--target-dir").arg(&build.target_dir);
    // A build script's stdout is read by the outer cargo as directives.
    let status = cargo.stdout(Stdio::null()).status().with_context(|| format!("starting cargo ({toolchain})"))?;
    if !status.success() {
        bail!(
            "the guests in {} did not compile with {toolchain}; the compiler's messages are above",
            build.workspace.display()
        );
    }
    Ok(())
}

fn module_path(build: &Build, package: &str) -> PathBuf {
    let file = format!("{}.wasm", package.replace('-', "_"));
    build.target_dir.join(TARGET).join("release").join(file)
}

fn componentize(build: &Build, package: &str) -> Result<Guest> {
    let path = module_path(build, package);
    let module =
        fs::read(&path).with_context(|| format!("package `{package}` left no {}; is it a cdylib?", path.display()))?;
    let component = encode(&module).with_context(|| format!("making a component of `{package}`"))?;
    let folder = build.target_dir.join("components");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let path = folder.join(format!("{package}.wasm"));
    write_if_changed(&path, &component)?;
    Ok(Guest { name: package.to_owned(), component: path })
}

/// Makes a validated component of a core module that carries its world in custom sections.
///
/// # Errors
/// A module that is not what its world says.
pub fn encode(module: &[u8]) -> Result<Vec<u8>> {
    ComponentEncoder::default().module(module)?.validate(true).encode()
}

/// The custom section that holds the WIT text of a component's world with its comments, which components lose.
pub const DOCS_SECTION: &str = "aok-docs";

/// Adds the WIT package in the folder `wit`, comments and all, to a component as its section `aok-docs`.
///
/// # Errors
/// A folder that holds no WIT package.
pub fn document(mut component: Vec<u8>, wit: &Path) -> Result<Vec<u8>> {
    let mut resolve = wit_parser::Resolve::default();
    let package = match resolve.push_dir(wit) {
        Ok((package, _)) => package,
        Err(e) => bail!("the WIT in {} cannot be used: {}", wit.display(), resolve.render_error(&e)),
    };
    let mut printer = wit_component::WitPrinter::default();
    printer.print(&resolve, package, &[])?;
    let text = String::from(printer.output);
    let section = wasm_encoder::CustomSection { name: DOCS_SECTION.into(), data: text.as_bytes().into() };
    component.push(wasm_encoder::ComponentSectionId::CoreCustom as u8);
    wasm_encoder::Encode::encode(&section, &mut component);
    Ok(component)
}

/// Makes a component of a core module in text, for a world of the package `plugin` in the folder `wit`.
///
/// # Errors
/// Text that is no module, or a module that is not what the world says.
pub fn by_hand(wat: &Path, wit: &Path, world: &str) -> Result<Vec<u8>> {
    let mut module = wat::parse_file(wat)?;
    let mut resolve = wit_parser::Resolve::default();
    resolve.push_dir(wit.join("types"))?;
    let (package, _) = resolve.push_dir(wit.join("plugin"))?;
    let world = resolve.select_world(&[package], Some(world))?;
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false)?;
    encode(&module).with_context(|| format!("making a component of {}", wat.display()))
}

/// Makes a component of the world `world` of the last of some WIT packages, each a name and a text. It has
/// the world's imports and exports, and its functions trap: for tests of what is told from a border alone.
///
/// # Errors
/// Text that is no WIT, or no such world in it.
pub fn hollow(packages: &[(&str, &str)], world: &str) -> Result<Vec<u8>> {
    component(packages, world, |resolve, world| {
        Ok(wit_component::dummy_module(resolve, world, wit_parser::ManglingAndAbi::Standard32))
    })
}

/// Makes a component of a core module in text, for the world `world` of the last of some WIT packages.
///
/// # Errors
/// Text that is no module or no WIT, or a module that is not what the world says.
pub fn of_text(wat: &str, packages: &[(&str, &str)], world: &str) -> Result<Vec<u8>> {
    component(packages, world, |_, _| Ok(wat::parse_str(wat)?))
}

fn component(
    packages: &[(&str, &str)],
    world: &str,
    module: impl FnOnce(&wit_parser::Resolve, wit_parser::WorldId) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let mut resolve = wit_parser::Resolve::default();
    let mut last = None;
    for (name, text) in packages {
        last = Some(resolve.push_source(name, text)?);
    }
    let package = last.context("a world is in a package")?;
    let world = resolve.select_world(&[package], Some(world))?;
    let mut module = module(&resolve, world)?;
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false)?;
    encode(&module)
}

/// Writes `bytes`, unless they are there already: a newer file would make everything that includes it compile again.
/// The rename keeps a concurrent reader from seeing half of it.
///
/// # Errors
/// The file system's.
pub fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    fs::write(&partial, bytes).with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("renaming {} to {}", partial.display(), path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependency_lists_are_read() {
        let files: Vec<_> = dependencies("/t/a.wasm: /s/a\\ b.rs /s/lib.rs\n\n/s/lib.rs:\n").collect();
        assert_eq!(files, [PathBuf::from("/s/a b.rs"), PathBuf::from("/s/lib.rs")]);
        assert_eq!(dependencies("").count(), 0);
    }

    #[test]
    fn an_unchanged_file_is_left_alone() {
        let folder = std::env::temp_dir().join(format!("guest-build-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("file");
        write_if_changed(&path, b"one").unwrap();
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        write_if_changed(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
        write_if_changed(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_not_a_module_is_refused() {
        assert!(encode(b"not wasm").is_err());
        assert!(encode(b"").is_err());
    }
}
