//! What this machine has for building tools. Nothing of it is needed to run them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::super::info::Check;

/// The target of guests that import only what their world names.
const TARGET: &str = "wasm32-unknown-unknown";

/// How long a compiler may take to say where it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// The toolchains in `path` (as `PATH` is written).
pub(super) async fn toolchains(path: Option<&OsStr>) -> Vec<Check> {
    let found = |name: &str| find(name, path);
    let rust = rust(found("cargo"), found("rustc")).await;
    vec![rust, interpreter("python", "python3", found("python3")), interpreter("node", "nodejs", found("node"))]
}

async fn rust(cargo: Option<PathBuf>, rustc: Option<PathBuf>) -> Check {
    let (Some(cargo), Some(rustc)) = (cargo, rustc) else {
        let fix = "install it: curl --proto '=https' -sSf https://sh.rustup.rs | sh";
        return Check::warn("rust", "there is no cargo in PATH: no tool can be built in Rust here", fix);
    };
    let cargo = cargo.display();
    if has_target(&rustc).await {
        return Check::ok("rust", format!("{cargo}, with the target {TARGET}"));
    }
    let what = format!("{cargo}, without the target {TARGET} that tools are built for");
    Check::warn("rust", what, format!("rustup target add {TARGET}"))
}

/// Whether a compiler has the standard library of [`TARGET`].
async fn has_target(rustc: &Path) -> bool {
    let mut command = tokio::process::Command::new(rustc);
    // A toolchain file of the folder that aok is called in is not meant.
    command.args(["--print", "sysroot"]).current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    let Ok(Ok(output)) = tokio::time::timeout(PATIENCE, command.output()).await else { return false };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let library = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    std::fs::read_dir(library).is_ok_and(|mut files| files.next().is_some())
}

fn interpreter(check: &str, package: &str, found: Option<PathBuf>) -> Check {
    match found {
        Some(file) => Check::ok(check, file.display().to_string()),
        None => {
            let command = if cfg!(target_os = "macos") {
                format!("brew install {}", package.trim_end_matches("js").trim_end_matches('3'))
            } else {
                format!("apt-get install {package}")
            };
            let what = format!("there is none in PATH: no tool can be built with {check} here");
            Check::warn(check, what, format!("{command} (or your system's own way)"))
        }
    }
}

/// The first program of a name.
fn find(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let is_program =
        |file: &PathBuf| std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    std::env::split_paths(path?).map(|dir| dir.join(name)).find(is_program)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::kernel::info::Health;

    fn program(dir: &Path, name: &str, text: &str) {
        let file = dir.join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    async fn states(path: &Path) -> Vec<(String, Health, Option<String>)> {
        let all = toolchains(Some(path.as_os_str())).await;
        all.into_iter().map(|c| (c.check, c.state, c.fix)).collect()
    }

    #[tokio::test]
    async fn what_is_missing_comes_with_the_command_that_brings_it() {
        let dir = tempfile::tempdir().unwrap();
        let none = states(dir.path()).await;
        assert_eq!(none.iter().map(|c| c.0.as_str()).collect::<Vec<_>>(), ["rust", "python", "node"]);
        assert!(none.iter().all(|(_, state, fix)| *state == Health::Warn && fix.is_some()), "{none:?}");
        assert!(toolchains(None).await.iter().all(|c| c.state == Health::Warn));

        program(dir.path(), "cargo", "");
        program(dir.path(), "python3", "");
        program(dir.path(), "rustc", &format!("#!/bin/sh\necho {}\n", dir.path().display()));
        let some = states(dir.path()).await;
        assert_eq!(some[0].2.as_deref(), Some("rustup target add wasm32-unknown-unknown"));
        assert_eq!((some[1].1, some[2].1), (Health::Ok, Health::Warn));

        let library = dir.path().join("lib/rustlib").join(TARGET).join("lib");
        std::fs::create_dir_all(&library).unwrap();
        std::fs::write(library.join("libstd.rlib"), "").unwrap();
        assert_eq!(states(dir.path()).await[0].1, Health::Ok);
    }
}
