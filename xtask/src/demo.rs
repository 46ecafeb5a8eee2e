//! `cargo xtask demo`: from nothing to an agent that answers a question out of real files, first with
//! a written script as its model, then with a real one, checked against what its tools returned.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::check::{Support, Verdict, judge, support};
use crate::local_model;
use crate::step::{aok, line, note, root, run, step};

/// The directory that the agent's tools see, by its last name.
const DIR: &str = "demo/files/shop";
/// What the scripted model's script was written for.
const SCRIPTED_TASK: &str = "demo/task.txt";
/// What the real model is asked: two files to read, two figures to report. Small models fail at more.
const REAL_TASK: &str = "demo/real-task.txt";

/// How long a real model may think about the task, on a slow machine.
const MODEL_TIME: Duration = Duration::from_secs(600);

/// What a person may choose.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A folder of your own to ask about, read-only, instead of the repository's example
    #[arg(long)]
    dir: Option<PathBuf>,
    /// What to ask, instead of what the demo asks
    #[arg(long)]
    task: Option<String>,
    /// The model, `provider/model`, instead of the one that is found
    #[arg(long)]
    model: Option<String>,
}

/// Where a real model comes from.
struct Model {
    /// `provider/model`, as `--model` wants it.
    name: String,
    /// What of `aok.toml` leads to it.
    config: String,
}

/// Providers whose key may be in the environment, with a small model of each. `AOK_MODEL` and `--model` name others.
const HOSTED: [(&str, &str); 3] = [
    ("ANTHROPIC_API_KEY", "anthropic/claude-haiku-4-5"),
    ("OPENAI_API_KEY", "openai/gpt-4.1-mini"),
    ("OPENROUTER_API_KEY", "openrouter/openai/gpt-4.1-mini"),
];

/// Runs both parts.
///
/// # Errors
/// When the build or the scripted part fails, or a folder that was named is none. That no real model can be had is no
/// error: it is said.
pub(crate) fn demo(options: &Options) -> Result<()> {
    if let Some(dir) = options.dir.as_ref().filter(|dir| !dir.is_dir()) {
        bail!("{} is no folder; name one that exists with --dir", dir.display());
    }
    crate::build::build()?;
    if options.dir.is_none() && options.task.is_none() {
        scripted()?;
    }
    let work = tempfile::tempdir().context("no temporary directory can be made")?;
    let model = match model(options) {
        Ok(model) => model,
        Err(why) => {
            println!("\nNot shown: the same with a real model. {why:#}");
            println!(
                "To show it with your own: ANTHROPIC_API_KEY=… cargo xtask demo, or \
                 OPENAI_BASE_URL=… cargo xtask demo --model openai/NAME"
            );
            return Ok(());
        }
    };
    real(&model, options, work.path())
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

/// The model that was named, else one whose key is in the environment, else the pinned one on this machine.
fn model(options: &Options) -> Result<Model> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let hosted = || HOSTED.iter().find(|(key, _)| set(key).is_some()).map(|(_, model)| (*model).to_owned());
    if let Some(name) = options.model.clone().or_else(|| set("AOK_MODEL")).or_else(hosted) {
        return Ok(Model { name, config: String::new() });
    }
    let files = local_model::files()?;
    Ok(Model {
        name: format!("local/{}", files.weights.display()),
        // JSON's strings are TOML's basic strings, so a path cannot break out of its quotes. That this model calls no
        // tools by itself is known: it need not be asked.
        config: format!(
            "[llm.local]\nserver = {}\nwindow = {}\nnative_tools = false\n",
            Value::from(files.server.display().to_string()),
            local_model::WINDOW
        ),
    })
}

fn real(model: &Model, options: &Options, work: &Path) -> Result<()> {
    let data = work.join("data");
    fs::create_dir(&data).with_context(|| format!("cannot create {}", data.display()))?;
    fs::write(data.join("aok.toml"), &model.config).context("cannot write the demo's aok.toml")?;
    let example = root().join(DIR);
    let dir = options.dir.as_deref().unwrap_or(&example);
    let name = dir.canonicalize().ok().and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned()));
    let name = name.context("the folder has no name of its own; name one that is not a root")?;
    let task = match (&options.task, &options.dir) {
        (Some(task), _) => task.clone(),
        (None, None) => task(REAL_TASK)?,
        (None, Some(_)) => {
            format!(
                "Which files are in {name}, and how many bytes has each? Then read the smallest and say what it is about."
            )
        }
    };
    let what = format!("A task with a real model, {}", model.name);
    let events = step(&what, "half a minute on two cores with the local model; at most ten", || {
        println!("\nTask:   {task}");
        follow(model, &task, dir, &data)
    })?;
    println!();
    if options.dir.is_none() && options.task.is_none() {
        report(&judge(&events, &task));
    } else {
        report_support(&support(&events, &task));
    }
    step("What the kernel kept of it: `aok audit verify` and `aok ps`", "at once", || {
        run(kernel(&data)?.args(["audit", "verify"]))?;
        run(kernel(&data)?.arg("ps"))
    })
}

/// Runs the task and prints its tool calls and its answer as they come; all its events.
fn follow(model: &Model, task: &str, dir: &Path, data: &Path) -> Result<Vec<Value>> {
    let mut command = kernel(data)?;
    let limit = format!("{}s", MODEL_TIME.as_secs());
    command.args(["run", "--json", "--task", task, "--timeout", &limit, "--model", &model.name, "--dir"]).arg(dir);
    command.stdout(Stdio::piped());
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

fn report_support(support: &Support) {
    let few = |calls: &usize| match calls {
        0 => " It called no tool: it stands on nothing.".to_owned(),
        1 => " It made one tool call only.".to_owned(),
        _ => String::new(),
    };
    match support {
        Support::Found { calls, figures } => println!(
            "Checked: each figure of the answer ({}) stands in what {calls} sandboxed tool calls returned.{}",
            figures.join(", "),
            few(calls)
        ),
        Support::Missing { calls, invented } => println!(
            "Checked: the answer says {}, which none of {calls} tool calls returned: the model made it up, or reckoned it.{}",
            invented.join(", "),
            few(calls)
        ),
        Support::NoFigures { calls } => println!(
            "Checked: the answer states no figure that could be held against the {calls} tool results above.{}",
            few(calls)
        ),
        Support::NoAnswer { why } => println!("Checked: there is no answer: {why}"),
    }
}
