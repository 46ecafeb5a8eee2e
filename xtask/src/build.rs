//! `cargo xtask build`: the guests' toolchain, the guests, the kernel.

use anyhow::Result;

use crate::step::{aok, cargo, note, run, step};

/// Makes sure that guests can be compiled; installs what is missing.
///
/// # Errors
/// When it can neither be found nor installed; the message says what to run.
pub(crate) fn toolchain() -> Result<()> {
    step("Looking for a compiler for wasm32", "at once, or a minute to install it", || {
        guest_build::ensure_toolchain(true)?;
        Ok(())
    })
}

/// Builds everything in one profile and says where it is.
///
/// # Errors
/// When the toolchain is missing or something does not compile.
pub(crate) fn build() -> Result<()> {
    toolchain()?;
    // The kernel's build script compiles the bundled guests and puts them into the binary.
    step("Building the bundled guests and the kernel", "about 15 minutes from nothing, seconds after that", || {
        run(cargo().args(["build", "--release", "--workspace"]))
    })?;
    note(&format!("the kernel with its bundled plugins: {}", aok()?.display()));
    Ok(())
}
