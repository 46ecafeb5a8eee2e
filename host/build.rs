//! Builds the bundled guests, so that the one binary carries them: `OUT_DIR/bundled.rs` holds
//! `pub static BUNDLED: &[Bundled]`, whose struct the including module defines, and `PROOF`, the guest of
//! `aok doctor --prove-limits`.

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

    let proof = Path::new("../plugins/proof.wat");
    println!("cargo:rerun-if-changed={}", proof.display());
    println!("cargo:rerun-if-changed=../wit");

    let mut source = String::from("/// The bundled components.\npub static BUNDLED: &[Bundled] = &[\n");
    for guest in guests {
        writeln!(source, "    {},", bundled(&out, &guest.name, &fs::read(&guest.component)?)?)?;
    }
    let proof = bundled(&out, "proof", &guest_build::by_hand(proof, &root.join("wit"), "tool")?)?;
    writeln!(source, "];\n/// The guest that proves the limits; no plugin.\nstatic PROOF: Bundled = {proof};")?;
    guest_build::write_if_changed(&out.join("bundled.rs"), source.as_bytes())
}

/// Puts a component where the compiler finds it, and says how the source names it.
fn bundled(out: &Path, name: &str, component: &[u8]) -> Result<String> {
    let path = out.join(format!("{name}.wasm"));
    guest_build::write_if_changed(&path, component)?;
    let digest = Sha256::digest(component).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    Ok(format!("Bundled {{ name: {name:?}, component: include_bytes!({path:?}), digest: {digest:?} }}"))
}
