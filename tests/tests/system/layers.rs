//! The layers of `host/src`, checked against the paths that the source really names.
//!
//! The table is the one of `docs/architecture.md`. It reads text, not syntax: comments and test
//! modules are cut away, then every `crate::X` is an edge from the file's module to X.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules by layer, lowest first. A module may use lower layers.
const LAYERS: [&[&str]; 7] = [
    &["abi", "audit", "capability", "config", "contract", "grants", "manifest", "metrics", "process", "quota"],
    &["overlay", "storage"],
    &["context", "ipc", "tool", "llm"],
    &["syscall", "hook", "bindings"],
    &["plugin", "registry", "engine", "scheduler"],
    &["kernel"],
    &["cli", "server"],
];

/// Edges inside a layer. The words may also use each other: they are data without behaviour.
const SAME_LAYER: [(&str, &str); 7] = [
    ("syscall", "hook"),
    ("syscall", "bindings"),
    ("hook", "bindings"),
    // The pair is one unit: the macro names the error type that host functions return.
    ("bindings", "syscall"),
    ("plugin", "registry"),
    ("registry", "engine"),
    // The command line is a client of the API, also of one in its own process.
    ("cli", "server"),
];

/// Libraries that one part owns: where else the name appears, the part leaks.
const OWNED: [(&str, &[&str]); 7] = [
    ("wasmtime", &["engine", "bindings", "syscall"]),
    ("wasmtime_wasi", &["engine", "bindings", "syscall"]),
    ("wasmtime_wasi_http", &["engine"]),
    ("sqlx", &["storage"]),
    ("clap", &["cli"]),
    ("axum", &["server"]),
    ("rmcp", &["server"]),
];

#[test]
fn the_kernel_keeps_its_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    assert!(files.len() > 5, "found only {files:?}: the test looks in the wrong place");
    let mut wrong = Vec::new();
    for file in files {
        let inner = file.strip_prefix(&root).expect("it was found below root");
        let first = inner.iter().next().and_then(|part| part.to_str()).expect("module names are ASCII");
        let module = first.trim_end_matches(".rs");
        if module == "lib" || module == "main" {
            continue;
        }
        let text = code(&fs::read_to_string(&file).unwrap());
        wrong.extend(violations(module, &text).into_iter().map(|what| format!("{}: {what}", inner.display())));
    }
    assert!(wrong.is_empty(), "see docs/architecture.md:\n{}", wrong.join("\n"));
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// The source without comments and without the test module, which stands last and may use anything.
fn code(source: &str) -> String {
    let end = source.find("\n#[cfg(test)]\nmod ").unwrap_or(source.len());
    source[..end].lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

fn violations(module: &str, code: &str) -> Vec<String> {
    let Some(own) = layer(module) else {
        return vec![format!("module `{module}` has no layer; add it to the table, here and in the document")];
    };
    let mut wrong = Vec::new();
    for used in used_modules(code) {
        // What has no layer is a macro or a function at the crate's root.
        let Some(other) = layer(&used) else { continue };
        let allowed =
            used == module || other < own || other == own && (own == 0 || SAME_LAYER.contains(&(module, &used)));
        if !allowed {
            wrong.push(format!("`{module}` must not use `{used}`"));
        }
    }
    for (library, owners) in OWNED {
        let named = format!("{library}::");
        if !owners.contains(&module) && preceded_by_no_word(code, &named).next().is_some() {
            wrong.push(format!("`{library}` belongs to {}", owners.join(", ")));
        }
    }
    wrong
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// The first path segments after `crate::`, grouped imports included.
fn used_modules(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for rest in preceded_by_no_word(code, "crate::") {
        let Some(group) = rest.strip_prefix('{') else {
            used.insert(word(rest));
            continue;
        };
        let mut depth = 1;
        // Blank out what is nested, so that commas separate this group's own members.
        let mut own = String::new();
        for c in group.chars() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if depth == 0 {
                break;
            }
            own.push(if depth == 1 { c } else { ' ' });
        }
        used.extend(own.split(',').map(|member| word(member.trim_start())));
    }
    used
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// What follows each occurrence of `name` that does not end a longer word.
fn preceded_by_no_word<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    code.match_indices(name)
        .filter(|(at, _)| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        .map(|(at, _)| &code[at + name.len()..])
}

#[test]
fn forbidden_edges_are_seen_however_they_are_written() {
    let check = |module: &str, source: &str, expected: usize| {
        assert_eq!(violations(module, &code(source)).len(), expected, "{module}: {source}");
    };
    check("llm", "use crate::{abi::Reply, storage};", 0);
    check("llm", "use crate::{\n    abi::{Reply, x},\n    kernel::Kernel,\n};", 1);
    check("storage", "fn f() -> crate::llm::Error { todo() }", 1);
    check("plugin", "use crate::registry::Registry;", 0);
    check("registry", "use crate::plugin::Found;", 1);
    check("scheduler", "use crate::engine::Instance;", 1);
    check("scheduler", "use wasmtime::Store;", 1);
    check("engine", "use wasmtime::Store; use wasmtime_wasi::WasiCtx;", 0);
    check("kernel", "sqlx::query(\"\")", 1);
    check("cli", "use crate::kernel::Kernel; use crate::server::Lines;", 0);
    check("server", "use crate::cli::Out;", 1);
    check("server", "clap::Parser", 1);
    check("llm", "// use crate::kernel::Kernel;\n/// [`crate::kernel`]\n", 0);
    check(
        "llm",
        "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use crate::storage::memory;\n    use crate::kernel;\n}",
        0,
    );
    check("helpers", "", 1);
}
