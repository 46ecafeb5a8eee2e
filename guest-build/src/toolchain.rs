//! Which compiler can make Wasm on this machine, and how to get one.
//!
//! In order: a toolchain whose sysroot has the target; rustup, which can add it; Debian's compiler, which builds
//! the standard library from source. A build script never installs a system package; `xtask` may.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::TARGET;

/// Chooses the toolchain: `rustup` or `debian`; unset, the first that works.
pub const TOOLCHAIN_VARIABLE: &str = "AOK_GUEST_TOOLCHAIN";

const DEBIAN_PACKAGES: [&str; 5] = ["rustc-web", "cargo-web", "rust-web-src", "rust-web-llvm", "lld-22"];

/// A compiler that can build the guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The calling toolchain: its sysroot has the target's standard library.
    Installed {
        /// The cargo to run.
        cargo: PathBuf,
    },
    /// Debian's compiler and sources, with the linker at hand.
    Debian {
        /// LLVM's Wasm linker.
        linker: PathBuf,
    },
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed { .. } => f.write_str("the installed toolchain"),
            Self::Debian { .. } => f.write_str("Debian's rustc (the standard library is built too)"),
        }
    }
}

impl Toolchain {
    /// The command to build with, clear of what an outer cargo left in the environment.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = match self {
            Self::Installed { cargo } => Command::new(cargo),
            Self::Debian { .. } => Command::new("/usr/bin/cargo"),
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_inherited_setting(name)) {
            command.env_remove(name);
        }
        if let Self::Debian { linker } = self {
            // An outer cargo of another toolchain points the loader at that toolchain's libraries.
            command.env_remove("LD_LIBRARY_PATH").env_remove("RUSTUP_TOOLCHAIN");
            command.env("RUSTC", "/usr/bin/rustc");
            // The sources of the standard library are built with its unstable flag on a stable compiler.
            command.env("RUSTC_BOOTSTRAP", "1");
            command.args(["-Zbuild-std=std,panic_abort"]);
            command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        }
        command
    }
}

/// Whether a variable would carry the outer build's compiler, flags or profile into the guests'. What reaches
/// registries and the job server stays.
fn is_inherited_setting(name: &OsStr) -> bool {
    const KEPT: [&str; 8] = ["HOME", "MAKEFLAGS", "NET_", "HTTP_", "REGISTRIES_", "REGISTRY_", "SOURCE_", "TERM_"];
    let Some(name) = name.to_str() else {
        return false;
    };
    if let Some(setting) = name.strip_prefix("CARGO_") {
        return !KEPT.iter().any(|kept| setting.starts_with(kept));
    }
    name.starts_with("RUSTC") || name.starts_with("RUSTDOC") || name == "RUSTFLAGS" || name == "CARGO"
}

/// Finds a toolchain for the guests, adding rustup's target where rustup can.
///
/// With `install`, also installs Debian's packages when running as root on a machine that has them.
///
/// # Errors
/// None can be had; the message lists the commands that install one.
pub fn ensure_toolchain(install: bool) -> Result<Toolchain> {
    let wish = std::env::var(TOOLCHAIN_VARIABLE).unwrap_or_default();
    let (rustup, debian) = match wish.as_str() {
        "" => (true, true),
        "rustup" => (true, false),
        "debian" => (false, true),
        other => bail!("{TOOLCHAIN_VARIABLE} is `{other}`; it can be `rustup` or `debian`"),
    };
    let mut tried = Vec::new();
    if rustup {
        match installed_or_added() {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => tried.push(format!("{error:#}")),
        }
    }
    if debian {
        if let Some(toolchain) = debian_toolchain() {
            return Ok(toolchain);
        }
        if install {
            match install_debian() {
                Ok(toolchain) => return Ok(toolchain),
                Err(error) => tried.push(format!("{error:#}")),
            }
        } else {
            tried.push("Debian's compiler for Wasm is not installed".to_owned());
        }
    }
    bail!(
        "no toolchain can compile the Wasm guests ({}). Install one of:\n  \
         rustup target add {TARGET}\n  \
         apt-get install -y --no-install-recommends {}   (as root, on Debian)",
        tried.join("; "),
        DEBIAN_PACKAGES.join(" ")
    )
}

fn installed_or_added() -> Result<Toolchain> {
    // Within a build script these name the calling toolchain's own programs.
    let program = |variable, name: &str| std::env::var_os(variable).map_or_else(|| name.into(), PathBuf::from);
    let (cargo, rustc) = (program("CARGO", "cargo"), program("RUSTC", "rustc"));
    if has_target(&rustc)? {
        return Ok(Toolchain::Installed { cargo });
    }
    eprintln!("guest-build: adding the target {TARGET} with rustup (a download of about 20 MB)");
    // rustup's stdout would be read as directives when this is a build script.
    let status = Command::new("rustup").args(["target", "add", TARGET]).stdout(Stdio::null()).status();
    match status {
        Ok(status) if status.success() && has_target(&rustc)? => Ok(Toolchain::Installed { cargo }),
        Ok(_) => bail!("`rustup target add {TARGET}` failed"),
        Err(error) => {
            bail!("the installed toolchain lacks {TARGET}, and rustup cannot be run: {error}")
        }
    }
}

fn has_target(rustc: &Path) -> Result<bool> {
    let sysroot = sysroot(rustc)?;
    let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    Ok(libraries.read_dir().is_ok_and(|mut files| files.next().is_some()))
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    let output = Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .with_context(|| format!("running {}", rustc.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

fn debian_toolchain() -> Option<Toolchain> {
    let rustc = Path::new("/usr/bin/rustc");
    if !rustc.exists() || !Path::new("/usr/bin/cargo").exists() {
        return None;
    }
    if !sysroot(rustc).ok()?.join("lib/rustlib/src/rust/library/std").exists() {
        return None;
    }
    Some(Toolchain::Debian { linker: wasm_linker(Path::new("/usr/bin"))? })
}

/// The newest `wasm-ld` of a folder: Debian appends the version to the name.
fn wasm_linker(folder: &Path) -> Option<PathBuf> {
    let version = |path: &PathBuf| match path.file_name()?.to_str()?.strip_prefix("wasm-ld")? {
        "" => Some(0),
        suffix => suffix.strip_prefix('-')?.parse::<u32>().ok(),
    };
    let files = folder.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files.filter_map(|path| Some((version(&path)?, path))).max().map(|(_, path)| path)
}

fn install_debian() -> Result<Toolchain> {
    let apt = |arguments: &[&str]| -> Result<()> {
        eprintln!("guest-build: apt-get {}", arguments.join(" "));
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments).stdout(Stdio::null());
        let status = command.status().context("running apt-get")?;
        if !status.success() {
            bail!("`apt-get {}` failed ({status}); it needs root", arguments.join(" "));
        }
        Ok(())
    };
    apt(&["update"])?;
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(DEBIAN_PACKAGES);
    apt(&install)?;
    debian_toolchain().context("Debian's packages are installed, but not the compiler, its sources or wasm-ld")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_outer_build_are_dropped_and_access_is_kept() {
        let dropped = |name: &str| is_inherited_setting(OsStr::new(name));
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC",
            "CARGO",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_TARGET",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_INCREMENTAL",
            "CARGO_PKG_NAME",
        ] {
            assert!(dropped(name), "{name}");
        }
        for name in ["PATH", "CARGO_HOME", "CARGO_REGISTRIES_X_INDEX", "CARGO_NET_OFFLINE", "CARGO_MAKEFLAGS"] {
            assert!(!dropped(name), "{name}");
        }
    }

    #[test]
    fn the_newest_linker_is_found() {
        let folder = std::env::temp_dir().join(format!("guest-build-linker-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["wasm-ld-9", "wasm-ld-22", "wasm-ld", "wasm-ld-x", "ld"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        assert_eq!(wasm_linker(&folder), Some(folder.join("wasm-ld-22")));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(wasm_linker(&folder), None);
    }
}
