//! `cargo xtask bench`: runs the benches, shows their figures, and fails when a target is missed or
//! was not measured. The benches print one JSON object per figure; nothing here measures.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::step::{aok, cargo, line, root, run, step};

/// The figures that have a target, by bench. A bench that does not print one of its own has failed:
/// a figure that nobody measures must not look like one that holds.
const TARGETS: [(&str, &[&str]); 11] = [
    ("call", &["tool_call_ratio"]),
    ("gateway", &["gateway_overhead_ratio"]),
    ("hook", &["wasm_hook_ratio", "no_hook_allocs"]),
    ("load", &["plugins100_ready_ms", "call_last_over_first"]),
    ("mcp", &["mcp_echo_p50_ratio"]),
    (
        "sched",
        &[
            "jain_64",
            "weights_err_pct",
            "wake_p99_ms",
            "dispatch_per_s",
            "dispatch_over_fifo",
            "flood_min_share_pct",
            "inversion_slices",
            "llm_mean_over_fifo",
            "llm_p99_over_fifo",
            "idle_rss_ratio",
            "spawn_per_s",
            "swapin_p99_ms",
            "kill_p99_ms",
        ],
    ),
    ("slice", &["slice_switch_ratio", "slice_switch_ns"]),
    ("soak", &["soak_runs_failed", "soak_rss_growth"]),
    ("start", &["tool_ls_ms"]),
    ("swap", &["swap_calls_failed", "swap_other_p99_ratio"]),
    ("undo", &["undo_bytes_ratio"]),
];

/// Runs the bench `name`, or every one for `all`. Whether all figures hold.
///
/// # Errors
/// When there is no such bench, or one cannot be built or run.
pub(crate) fn bench(name: &str, json: bool) -> Result<bool> {
    let known = benches(&root().join("tests/benches"))?;
    let chosen: Vec<&str> = if name == "all" {
        known.iter().map(String::as_str).collect()
    } else if known.iter().any(|bench| bench == name) {
        vec![name]
    } else {
        bail!("there is no bench `{name}`; there are: all {}", known.join(" "));
    };
    step("Building the kernel and its benches", "about 15 minutes from nothing, seconds after that", || {
        run(cargo().args(["build", "--release", "--workspace"]))?;
        run(cargo().args(["bench", "--workspace", "--no-run"]).args(chosen.iter().flat_map(|name| ["--bench", name])))
    })?;
    let mut figures = Vec::new();
    for name in chosen {
        let of_bench = step(&format!("bench {name}"), "about a minute", || measure(name))?;
        figures.extend(of_bench);
    }
    if json {
        for figure in &figures {
            println!("{figure}");
        }
    } else {
        print!("{}", table(&figures));
    }
    Ok(figures.iter().all(holds))
}

fn benches(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("there are no benches in {}", dir.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Runs one bench and returns its figures, with a failed one for each target that it did not print.
fn measure(name: &str) -> Result<Vec<Value>> {
    let mut command: Command = cargo();
    // All members, so that features and with them the compiled dependencies are those of the build.
    command.args(["bench", "--quiet", "--workspace", "--bench", name]).env("AOK_BIN", aok()?).stderr(Stdio::inherit());
    if name == "mcp" {
        command.env("AOK_PYTHON_SDKS", crate::python::clients()?);
    }
    let output = command.output().with_context(|| format!("cannot start {}", line(&command)))?;
    if !output.status.success() {
        bail!("{} ended with {}", line(&command), output.status);
    }
    Ok(with_missing(name, figures(name, &String::from_utf8_lossy(&output.stdout))))
}

/// The figures of a bench's output. Lines that are none are talk, and go to stderr.
fn figures(name: &str, stdout: &str) -> Vec<Value> {
    let mut found = Vec::new();
    for line in stdout.lines().filter(|line| !line.trim().is_empty()) {
        match serde_json::from_str::<Value>(line) {
            Ok(figure) if figure["bench"] == name && figure["figure"].is_string() => found.push(figure),
            _ => eprintln!("    {line}"),
        }
    }
    found
}

fn with_missing(name: &str, mut figures: Vec<Value>) -> Vec<Value> {
    let due = TARGETS.iter().filter(|(bench, _)| *bench == name).flat_map(|(_, due)| due.iter());
    for figure in due {
        if !figures.iter().any(|printed| printed["figure"] == *figure && !printed["target"].is_null()) {
            figures.push(serde_json::json!({
                "bench": name, "figure": figure, "value": null, "unit": null, "baseline": null,
                "ratio": null, "limit": null, "target": "not measured", "ok": false,
            }));
        }
    }
    figures
}

/// A figure holds when it says so, or when it has no target.
fn holds(figure: &Value) -> bool {
    match &figure["ok"] {
        Value::Bool(ok) => *ok,
        _ => figure["target"].is_null(),
    }
}

fn table(figures: &[Value]) -> String {
    let head = ["bench", "figure", "value", "unit", "baseline", "ratio", "limit", "target", "ok"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(figures.iter().map(|figure| head.map(|column| cell(&figure[column]))));
    let widths: Vec<usize> =
        (0..head.len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "NO".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => format!("{:.3}", number.as_f64().unwrap_or(f64::NAN)),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_target_that_is_missed_or_not_measured_fails() {
        assert!(holds(&json!({"ok": true, "target": 5})));
        assert!(holds(&json!({"ok": null, "target": null})));
        assert!(!holds(&json!({"ok": false, "target": 5})));
        assert!(!holds(&json!({"ok": null, "target": 5})));
    }

    #[test]
    fn a_figure_that_was_not_printed_is_added_as_failed() {
        let printed = "warming up\n{\"bench\":\"slice\",\"figure\":\"slice_switch_ns\",\"target\":1000,\"ok\":true}\n";
        let all = with_missing("slice", figures("slice", printed));
        assert_eq!(all.len(), 2);
        assert_eq!((&all[1]["figure"], &all[1]["ok"]), (&json!("slice_switch_ratio"), &json!(false)));
    }

    #[test]
    fn the_table_keeps_its_columns() {
        let text = table(&[json!({"bench": "b", "figure": "long_name", "value": 1.5, "ok": false})]);
        let columns: Vec<_> = text.lines().map(|line| line.split_whitespace().count()).collect();
        assert_eq!(columns, [9, 9], "{text}");
        assert!(text.contains("1.500") && text.contains("NO"), "{text}");
    }
}
