//! Builds the bundled guests, so that the one binary carries them: `OUT_DIR/bundled.rs` holds
//! `pub static BUNDLED: &[Bundled]`, whose struct the including module defines.

#![allow(clippy::print_stdout, reason = "cargo reads directives from stdout")]

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use guest_build::Build;
use sha2::{Digest as _, Sha256};

const BUNDLED: [&str; 4] = ["assistant", "calc", "fs", "http"];

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the host crate is in the workspace's folder")?;
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let build = Build {
        workspace: root.join("plugins"),
        packages: BUNDLED.map(str::to_owned).to_vec(),
        target_dir: root.join("target/guests"),
    };
    let guests = guest_build::build(&build)?;
    guest_build::print_rerun_directives(&build)?;
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../migrations");

    let mut source = String::from("/// The bundled components.\npub static BUNDLED: &[Bundled] = &[\n");
    for guest in guests {
        let component = fs::read(&guest.component)?;
        let path = out.join(format!("{}.wasm", guest.name));
        guest_build::write_if_changed(&path, &component)?;
        let digest = Sha256::digest(&component).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        writeln!(
            source,
            "    Bundled {{ name: {:?}, component: include_bytes!({path:?}), digest: {digest:?} }},",
            guest.name
        )?;
    }
    source.push_str("];\n");
    guest_build::write_if_changed(&out.join("bundled.rs"), source.as_bytes())
}
