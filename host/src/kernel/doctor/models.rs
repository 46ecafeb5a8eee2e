//! Models: which one a run takes, which keys there are, and which providers answer.

use super::super::info::Check;
use super::{count, text};
use crate::config::LlmConfig;
use crate::llm::Models;
use crate::llm::models::{Answer, Found, Surveyed};

pub(super) async fn model_checks(models: &Models, config: &LlmConfig, model: Option<&str>) -> Vec<Check> {
    let found = models.found();
    let mut checks = vec![chosen(models, &found, model)];
    checks.extend(config.fallback.iter().filter_map(|name| {
        let e = models.resolve(Some(name)).err()?;
        Some(Check::warn("fallback model", text(&e), "correct `fallback` of [llm] in aok.toml"))
    }));
    checks.push(variables(&found));
    let wanted = models.resolve(model).map(|r| r.name).unwrap_or_default();
    checks.extend(models.survey().await.iter().filter_map(|s| provider(s, &wanted)));
    checks.push(local(&found));
    checks
}

/// The model that a run without `--model` takes.
fn chosen(models: &Models, found: &Found, model: Option<&str>) -> Check {
    let from =
        if model.is_some() || found.variables.iter().any(|v| v == MODEL) { "from AOK_MODEL" } else { "from aok.toml" };
    match models.resolve(model) {
        Ok(model) => Check::ok("default model", format!("{} ({from})", model.name)),
        Err(crate::llm::Error::NoModel { .. }) => {
            let [first, second, third] = models.suggestions();
            Check::warn(
                "default model",
                "none is chosen: each run needs --model",
                format!("try `{first}`, `{second}` or `{third}`; AOK_MODEL or `default` of [llm] in aok.toml keeps it"),
            )
        }
        Err(e) => Check::warn(
            "default model",
            format!("{} ({from})", text(&e)),
            "correct AOK_MODEL or `default` of [llm] in aok.toml, or name another with --model",
        ),
    }
}

const MODEL: &str = "AOK_MODEL";

/// Keys and addresses by the names of their variables. Their values are no part of `found`.
fn variables(found: &Found) -> Check {
    let set: Vec<&str> = found.variables.iter().map(String::as_str).filter(|v| *v != MODEL).collect();
    let what = if set.is_empty() { "no key or address is set".to_owned() } else { format!("{} set", set.join(", ")) };
    Check::ok("environment", what)
}

/// Whether a provider answers; `None` for one that nobody asked for and that is not there.
pub(super) fn provider(s: &Surveyed, wanted: &str) -> Option<Check> {
    let check = format!("provider {}", s.provider);
    let url = &s.url;
    let key = s.key_env.as_deref().unwrap_or("its key");
    Some(match &s.answer {
        Answer::Models(models) => {
            let missing = wanted.strip_prefix("ollama/").filter(|_| s.provider == "ollama");
            let has = |name: &str| models.iter().any(|m| m == name || m.strip_suffix(":latest") == Some(name));
            if let Some(missing) = missing.filter(|name| !has(name)) {
                let what = format!("{url} answers and has no model `{missing}`");
                return Some(Check::warn(check, what, format!("ollama pull {missing}")));
            }
            // That list is for everybody, with a wrong key too.
            let unproved = if s.provider == "openrouter" { "; whether the key is right only a run shows" } else { "" };
            Check::ok(check, format!("{url} answers, {}{unproved}", count(models.len(), "model")))
        }
        Answer::Silent(_) if !s.wanted => return None,
        Answer::Silent(why) => {
            let fix = "start it, or correct its address".to_owned();
            Check::warn(check, format!("{url} cannot be reached: {why}"), fix)
        }
        Answer::Status(status @ (401 | 403)) => {
            Check::warn(check, format!("{url} refuses {key} ({status})"), format!("export {key}=… with a valid key"))
        }
        Answer::Status(_) if !s.wanted => return None,
        Answer::Status(status @ (429 | 500..=599)) => {
            let what = format!("{url} answers {status} for the moment");
            Check::warn(check, what, "try again in a minute")
        }
        Answer::Status(status) => Check::warn(
            check,
            format!("{url} answers {status} and no list of models"),
            "check its base URL, which mostly ends in /v1; a provider without such a list may work all the same",
        ),
        Answer::Unusable(why) => {
            Check::warn(check, why.clone(), format!("set what is missing, or correct [llm.providers.{}]", s.provider))
        }
    })
}

fn local(found: &Found) -> Check {
    const CHECK: &str = "local models";
    let dir = found.models_dir.as_ref().map_or_else(|| "models/".to_owned(), |d| d.display().to_string());
    let server = found.server.as_ref().map(|s| s.display());
    match (server, found.weights.first()) {
        (Some(server), Some(first)) => {
            let all = found.weights.join(", ");
            Check::ok(CHECK, format!("{server}; {all} in {dir}: --model local/{first}"))
        }
        (Some(server), None) => Check::ok(CHECK, format!("{server}; no weights: copy a .gguf file into {dir}")),
        (None, None) => Check::ok(CHECK, format!("no llama-server in PATH and no weights in {dir}: not needed")),
        (None, Some(first)) => Check::warn(
            CHECK,
            format!("{first} in {dir}, and no llama-server in PATH to run it"),
            "install llama.cpp, or name its server in aok.toml: [llm.local] server = \"/path/to/llama-server\"",
        ),
    }
}
