//! `cargo xtask demo`: from nothing to an agent that answers a question out of real files, first with
//! a written script as its model, then with a real one, checked against what its tools returned.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::check::{Verdict, judge};
use crate::local_model::{self, LocalModel};
use crate::step::{aok, line, note, root, run, step};

/// The directory that the agent's tools see, by its last name.
const DIR: &str = "demo/files/shop";
/// What the scripted model's script was written for.
const SCRIPTED_TASK: &str = "demo/task.txt";
/// What the real model is asked: two files to read, two figures to report. Small models fail at more.
const REAL_TASK: &str = "demo/real-task.txt";

/// How long a real model may think about the task, on a slow machine.
const MODEL_TIME: Duration = Duration::from_secs(600);

/// Where a real model comes from.
enum Model {
    /// An endpoint that the environment names.
    Endpoint { base_url: Option<String>, has_key: bool, name: String },
    /// The pinned server on this machine; it lives as long as this value.
    Local(LocalModel),
}

/// Runs both parts.
///
/// # Errors
/// When the build or the scripted part fails. That no real model can be had is no error: it is said.
pub(crate) fn demo() -> Result<()> {
    crate::build::build()?;
    scripted()?;
    let work = tempfile::tempdir().context("no temporary directory can be made")?;
    let model = match model(work.path()) {
        Ok(model) => model,
        Err(why) => {
            println!("\nNot shown: the same with a real model. {why:#}");
            println!(
                "To show it with your own: OPENAI_BASE_URL=… OPENAI_API_KEY=… AOK_MODEL=openai/NAME cargo xtask demo"
            );
            return Ok(());
        }
    };
    real(&model, work.path())
}

/// The text of a task that the repository ships.
fn task(file: &str) -> Result<String> {
    let path = root().join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read the task {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// A command of the kernel on the data directory `data`.
fn kernel(data: &Path) -> Result<Command> {
    let mut command = Command::new(aok()?);
    command.current_dir(root()).stdin(Stdio::null()).env("AOK_HOME", data).env_remove("AOK_MODEL");
    Ok(command)
}

fn scripted() -> Result<()> {
    let data = tempfile::tempdir().context("no temporary directory can be made")?;
    let task = task(SCRIPTED_TASK)?;
    step("An agent answers from real files; its model is the script demo/script.jsonl", "seconds", || {
        println!("\nTask:   {task}");
        let mut command = kernel(data.path())?;
        command.args(["run", "--task", &task, "--model", "script/demo/script.jsonl", "--dir", DIR]);
        command.stderr(Stdio::inherit());
        let output = command.output().with_context(|| format!("cannot start {}", line(&command)))?;
        if !output.status.success() {
            bail!("{} ended with {}", line(&command), output.status);
        }
        let answer = String::from_utf8_lossy(&output.stdout);
        if answer.trim().is_empty() {
            bail!("{} ended well and printed no answer", line(&command));
        }
        println!("Answer: {}\n", answer.trim_end());
        Ok(())
    })?;
    step("What the kernel kept of it: `aok audit verify` and `aok ps`", "at once", || {
        run(kernel(data.path())?.args(["audit", "verify"]))?;
        run(kernel(data.path())?.arg("ps"))
    })
}

/// The endpoint that the environment names, else the pinned server on this machine.
fn model(work: &Path) -> Result<Model> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (url, key) = (set("OPENAI_BASE_URL"), set("OPENAI_API_KEY"));
    if url.is_some() || key.is_some() {
        match set("AOK_MODEL") {
            Some(name) if name.contains('/') => {
                return Ok(Model::Endpoint { base_url: url, has_key: key.is_some(), name });
            }
            _ => note("the environment names an endpoint but no model (AOK_MODEL=openai/NAME): using the local one"),
        }
    }
    // It outlives the run that uses it by the time of one more.
    LocalModel::start(MODEL_TIME * 2, &work.join("model-server.log")).map(Model::Local)
}

impl Model {
    /// `provider/model`, as `--model` wants it.
    fn name(&self) -> String {
        match self {
            Self::Endpoint { name, .. } => name.clone(),
            Self::Local(_) => format!("local/{}", local_model::NAME),
        }
    }

    /// The `aok.toml` that leads to it. JSON's strings are TOML's basic strings, so a value cannot
    /// break out of its quotes.
    fn config(&self) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        match self {
            // The kernel knows the provider `openai` from the same variables.
            Self::Endpoint { base_url: Some(base_url), has_key, name } if !name.starts_with("openai/") => {
                let provider = name.split_once('/').map_or(name.as_str(), |(provider, _)| provider);
                let key = if *has_key { "key_env = \"OPENAI_API_KEY\"\n" } else { "" };
                let (provider, base_url) = (quoted(provider), quoted(base_url));
                format!("[llm.providers.{provider}]\nkind = \"openai\"\nbase_url = {base_url}\n{key}")
            }
            Self::Endpoint { .. } => String::new(),
            Self::Local(model) => format!(
                "[llm.providers.local]\nkind = \"openai\"\nbase_url = {}\nwindow = {}\n",
                quoted(&model.base_url()),
                local_model::WINDOW
            ),
        }
    }
}

fn real(model: &Model, work: &Path) -> Result<()> {
    let data = work.join("data");
    fs::create_dir(&data).with_context(|| format!("cannot create {}", data.display()))?;
    fs::write(data.join("aok.toml"), model.config()).context("cannot write the demo's aok.toml")?;
    let task = task(REAL_TASK)?;
    let what = format!("The same kind of task with a real model, {}", model.name());
    let events = step(&what, "half a minute on two cores; at most ten", || {
        println!("\nTask:   {task}");
        follow(model, &task, &data)
    })?;
    println!();
    report(&judge(&events, &task));
    step("What the kernel kept of it: `aok audit verify` and `aok ps`", "at once", || {
        run(kernel(&data)?.args(["audit", "verify"]))?;
        run(kernel(&data)?.arg("ps"))
    })
}

/// Runs the task and prints its tool calls and its answer as they come; all its events.
fn follow(model: &Model, task: &str, data: &Path) -> Result<Vec<Value>> {
    let mut command = kernel(data)?;
    let limit = format!("{}s", MODEL_TIME.as_secs());
    command.args(["run", "--json", "--task", task, "--dir", DIR, "--timeout", &limit]);
    command.args(["--model", &model.name()]).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}", line(&command)))?;
    let stdout = child.stdout.take().context("the kernel's output was not piped")?;
    let mut events = Vec::new();
    for text in BufReader::new(stdout).lines() {
        let text = text.context("the kernel's output cannot be read")?;
        let event: Value = serde_json::from_str(&text).with_context(|| format!("no event: {text}"))?;
        show(&event);
        events.push(event);
    }
    child.wait()?;
    Ok(events)
}

fn show(event: &Value) {
    match event["type"].as_str() {
        Some("llm_start") => note(&format!("the model reads {} tokens", event["prompt_tokens"])),
        Some("tool_start") => println!("Call:   {} {}", event["name"].as_str().unwrap_or("?"), event["arguments"]),
        Some("tool_end") if event["ok"] == true => println!("Result: {}", event["result"]),
        Some("tool_end") => println!("Error:  {}", event["error"]["message"].as_str().unwrap_or("?")),
        Some("exit") => match event["answer"].as_str() {
            Some(answer) => println!("Answer: {answer}"),
            None => println!("No answer: {}", event["message"].as_str().unwrap_or("?")),
        },
        _ => {}
    }
}

fn report(verdict: &Verdict) {
    match verdict {
        Verdict::Right { calls, figures } => println!(
            "Checked: the answer's figures ({}) are those that {calls} sandboxed tool calls returned.",
            figures.join(", ")
        ),
        Verdict::Wrong { missing, invented } => {
            println!("Checked: the model got it WRONG. The kernel did its part: the tool results above are right.");
            if !missing.is_empty() {
                println!("         The answer lacks {}, which its tools returned.", missing.join(", "));
            }
            if !invented.is_empty() {
                println!("         The answer says {}, which is no figure of what was asked.", invented.join(", "));
            }
        }
        Verdict::NothingRead => {
            println!("Checked: the model answered without reading the figures: the answer stands on nothing.");
        }
        Verdict::NoAnswer { why } => println!("Checked: there is no answer: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_cannot_break_out_of_its_quotes() {
        let model = Model::Endpoint {
            base_url: Some("http://x/\"\nkey = 1".to_owned()),
            has_key: true,
            name: "my.host/some/model".to_owned(),
        };
        let expected = "[llm.providers.\"my.host\"]\nkind = \"openai\"\nbase_url = \"http://x/\\\"\\nkey = 1\"\n\
                        key_env = \"OPENAI_API_KEY\"\n";
        assert_eq!(model.config(), expected);
    }
}
