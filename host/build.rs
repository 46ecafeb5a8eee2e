//! Builds the bundled guests, so that the one binary carries them: `OUT_DIR/bundled.rs` holds
//! `pub static BUNDLED: &[Bundled]`, whose struct the including module defines, and `PROOF`, the guest of
//! `aok doctor --prove-limits`, and `EXAMPLES`, which are served only where somebody adds them. `OUT_DIR/rust_project.rs`
//! holds the files of `aok plugin new --lang rust`, and `rust_tool.rs` and `rust_hook.rs` those of each kind.

#![allow(clippy::print_stdout, reason = "cargo reads directives from stdout")]

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use guest_build::Build;
use sha2::{Digest as _, Sha256};

const BUNDLED: [&str; 4] = ["assistant", "calc", "fs", "http"];

/// In `plugins/hooks`.
const EXAMPLES: [&str; 5] = ["tidy-paths", "read-only", "ask-first", "mask-secrets", "tally"];

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the host crate is in the workspace's folder")?;
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let build = Build {
        workspace: root.join("plugins"),
        packages: BUNDLED.into_iter().chain(EXAMPLES).map(str::to_owned).collect(),
        target_dir: root.join("target/guests"),
        locked: true,
    };
    let mut guests = guest_build::build(&build)?;
    let examples = guests.split_off(BUNDLED.len());
    guest_build::print_rerun_directives(&build)?;
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../migrations");

    let proof = Path::new("../plugins/proof.wat");
    println!("cargo:rerun-if-changed={}", proof.display());
    println!("cargo:rerun-if-changed=../wit");

    let mut source = String::from("/// The bundled components.\npub static BUNDLED: &[Bundled] = &[\n");
    for guest in guests {
        writeln!(source, "    {},", bundled(&out, &guest.name, &fs::read(&guest.component)?)?)?;
    }
    let proof = bundled(&out, "proof", &guest_build::by_hand(proof, &root.join("wit"), "tool")?)?;
    writeln!(source, "];\n/// The guest that proves the limits; no plugin.\nstatic PROOF: Bundled = {proof};")?;
    source.push_str("/// The examples.\npub static EXAMPLES: &[Example] = &[\n");
    for guest in examples {
        writeln!(source, "    {},", example(root, &out, &guest.name, &fs::read(&guest.component)?)?)?;
    }
    source.push_str("];\n");
    guest_build::write_if_changed(&out.join("bundled.rs"), source.as_bytes())?;
    for watched in ["plugins/Cargo.toml", "plugins/Cargo.lock", "sdk/rust", "sdk/templates/rust"] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    let workspace: toml::Table = read(root, "plugins/Cargo.toml")?.parse()?;
    for (name, files) in [
        ("rust_project.rs", rust_project(root, &workspace)?),
        ("rust_tool.rs", rust_template(root, &workspace, "tool")?),
        ("rust_hook.rs", rust_template(root, &workspace, "hook")?),
    ] {
        let lines = files.iter().map(|(path, text)| format!("    ({path:?}, {text:?}),\n"));
        let array = format!("&[\n{}]", lines.collect::<String>());
        guest_build::write_if_changed(&out.join(name), array.as_bytes())?;
    }
    Ok(())
}

/// Paths and texts of a new project, in both of which `__name__` stands for its name.
type Files = Vec<(String, String)>;

fn read(root: &Path, path: &str) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("reading {path}"))
}

/// What the Rust plugins of all kinds begin with: the SDK, which no registry has, and the versions that the bundled
/// guests were built with.
fn rust_project(root: &Path, workspace: &toml::Table) -> Result<Files> {
    let sdk = standalone(read(root, "sdk/rust/Cargo.toml")?.parse()?, workspace)?;
    let mut files = vec![
        ("Cargo.lock".to_owned(), read(root, "plugins/Cargo.lock")?),
        (".gitignore".to_owned(), "/target\n/__name__.wasm\n".to_owned()),
        ("vendor/agent-os/sdk/rust/Cargo.toml".to_owned(), sdk.to_string()),
    ];
    let copies = [
        ("sdk/rust/src", "vendor/agent-os/sdk/rust/src"),
        ("wit/types", "vendor/agent-os/wit/types"),
        ("wit/plugin", "vendor/agent-os/wit/plugin"),
        ("wit/agent", "vendor/agent-os/wit/agent"),
    ];
    for (from, to) in copies {
        copy(root, from, to, &mut files)?;
    }
    Ok(files)
}

/// What a Rust plugin of one kind begins with: its manifests and its source.
fn rust_template(root: &Path, workspace: &toml::Table, kind: &str) -> Result<Files> {
    let template = format!("sdk/templates/rust/{kind}");
    let mut plugin: toml::Table = read(root, &format!("{template}/Cargo.toml"))?.parse()?;
    plugin.insert("profile".to_owned(), workspace["profile"].clone());
    let mut plugin = standalone(plugin, workspace)?;
    // As an author would order it.
    let sections = ["package", "lib", "dependencies", "profile", "workspace"].map(|name| {
        let section = plugin.remove(name).map(|section| (name.to_owned(), section));
        toml::Table::from_iter(section).to_string()
    });
    let manifest = read(root, &format!("{template}/__name__.toml"))?;
    let mut files = vec![("Cargo.toml".to_owned(), sections.join("\n")), ("__name__.toml".to_owned(), manifest)];
    copy(root, &format!("{template}/src"), "src", &mut files)?;
    Ok(files)
}

/// Adds the files of the folder `from`, which become those of the folder `to`.
fn copy(root: &Path, from: &str, to: &str, files: &mut Files) -> Result<()> {
    let mut names = fs::read_dir(root.join(from))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        files.push((format!("{to}/{name}"), read(root, &format!("{from}/{name}"))?));
    }
    Ok(())
}

/// A manifest with what it inherits from its workspace written out.
fn standalone(mut manifest: toml::Table, workspace: &toml::Table) -> Result<toml::Table> {
    fn inherit(table: &mut toml::Table, from: &toml::Value) -> Result<()> {
        table.remove("workspace");
        for (key, value) in table.iter_mut() {
            let inherits = value.as_table().is_some_and(|value| value.contains_key("workspace"));
            if inherits {
                *value = from.get(key).with_context(|| format!("the workspace has no `{key}`"))?.clone();
            }
        }
        Ok(())
    }
    let shared = &workspace["workspace"];
    manifest.remove("lints");
    if let Some(package) = manifest.get_mut("package").and_then(toml::Value::as_table_mut) {
        inherit(package, &shared["package"])?;
    }
    if let Some(dependencies) = manifest.get_mut("dependencies").and_then(toml::Value::as_table_mut) {
        inherit(dependencies, &shared["dependencies"])?;
    }
    let targets = manifest.get_mut("target").and_then(toml::Value::as_table_mut);
    for (_, target) in targets.into_iter().flatten() {
        if let Some(dependencies) = target.get_mut("dependencies").and_then(toml::Value::as_table_mut) {
            inherit(dependencies, &shared["dependencies"])?;
        }
    }
    Ok(manifest)
}

/// Puts a component where the compiler finds it, and says how the source names it.
fn bundled(out: &Path, name: &str, component: &[u8]) -> Result<String> {
    let path = placed(out, name, component)?;
    let digest = Sha256::digest(component).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    Ok(format!("Bundled {{ name: {name:?}, component: include_bytes!({path:?}), digest: {digest:?} }}"))
}

/// The same for an example, whose manifest is part of it.
fn example(root: &Path, out: &Path, name: &str, component: &[u8]) -> Result<String> {
    let path = placed(out, name, component)?;
    let file = format!("plugins/hooks/{name}/{name}.toml");
    println!("cargo:rerun-if-changed={}", root.join(&file).display());
    let manifest = read(root, &file)?;
    let table: toml::Table = manifest.parse().with_context(|| format!("reading {file}"))?;
    let description = table.get("description").and_then(toml::Value::as_str);
    let description = description.with_context(|| format!("{file} has no description"))?;
    Ok(format!(
        "Example {{ name: {name:?}, description: {description:?}, manifest: {manifest:?}, \
         component: include_bytes!({path:?}) }}"
    ))
}

fn placed(out: &Path, name: &str, component: &[u8]) -> Result<PathBuf> {
    let path = out.join(format!("{name}.wasm"));
    guest_build::write_if_changed(&path, component)?;
    Ok(path)
}
