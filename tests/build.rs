//! Builds the test guests and says where they are: `OUT_DIR/guests.rs` holds a constant with the path of each
//! component, and `foreach_guest!`, which hands all their names to another macro, so that a test can ask whether
//! each guest is used.

#![allow(clippy::print_stdout, reason = "cargo reads directives from stdout")]

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use guest_build::{Build, Guest};

fn main() -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.parent().context("the tests are in the workspace's folder")?;
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let sources = here.join("guests");
    let build = Build {
        workspace: root.join("plugins"),
        packages: packages(&sources)?,
        target_dir: root.join("target/guests"),
        locked: true,
    };
    let mut guests = guest_build::build(&build)?;
    guests.push(by_hand(root, &sources.join("tables.wat"), &out)?);
    guests.push(as_it_is(&sources.join("netagent.wat"), &out)?);
    guest_build::print_rerun_directives(&build)?;
    println!("cargo:rerun-if-changed=build.rs");
    // A new folder there is a new guest.
    println!("cargo:rerun-if-changed={}", sources.display());

    let mut source = String::new();
    for guest in &guests {
        let name = guest.name.to_uppercase().replace('-', "_");
        writeln!(source, "/// The component of `tests/guests/{}`.", guest.name)?;
        writeln!(
            source,
            "#[allow(dead_code, reason = \"not each target needs each guest\")]\npub(crate) const {name}: &str = {:?};",
            guest.component
        )?;
    }
    let names: Vec<_> = guests.iter().map(|guest| guest.name.replace('-', "_")).collect();
    writeln!(source, "/// Calls `$each!` with the name of every test guest.")?;
    writeln!(source, "#[allow(unused_macros, reason = \"only the test that looks for orphans uses it\")]")?;
    writeln!(source, "macro_rules! foreach_guest {{")?;
    writeln!(source, "    ($each:ident) => {{ $each! {{ {} }} }};", names.join(" "))?;
    writeln!(source, "}}")?;
    guest_build::write_if_changed(&out.join("guests.rs"), source.as_bytes())
}

/// A guest that is a core module in text: made a component of the `tool` world.
fn by_hand(root: &Path, wat: &Path, out: &Path) -> Result<Guest> {
    let name = wat.file_stem().context("a guest has a name")?.to_string_lossy().into_owned();
    let component = out.join(format!("{name}.wasm"));
    guest_build::write_if_changed(&component, &guest_build::by_hand(wat, &root.join("wit"), "tool")?)?;
    Ok(Guest { name, component })
}

/// A guest that is a whole component in text.
fn as_it_is(wat: &Path, out: &Path) -> Result<Guest> {
    let name = wat.file_stem().context("a guest has a name")?.to_string_lossy().into_owned();
    let component = out.join(format!("{name}.wasm"));
    guest_build::write_if_changed(&component, &wat::parse_file(wat)?)?;
    Ok(Guest { name, component })
}

/// The names of the packages: a folder each.
fn packages(sources: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(sources).with_context(|| format!("reading {}", sources.display()))? {
        let entry = entry?;
        if entry.path().join("Cargo.toml").exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
