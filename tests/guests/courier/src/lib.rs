//! A tool that uses what it was granted and tells everything that it gets, in every way that a tool can: a
//! result, an error, a log line, its state, a panic.

mod send;

use std::collections::BTreeMap;

use agent_os_sdk::{CallContext, Effect, Error, Result, Tool, log, state};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wasip2::cli::environment::get_environment;
use wasip2::filesystem::preopens::get_directories;

/// Gives what the tool sees of the machine.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Look {}

#[derive(Serialize, JsonSchema)]
struct Seen {
    variables: BTreeMap<String, String>,
    directories: Vec<String>,
}

impl Tool for Look {
    const NAME: &'static str = "look";
    const EFFECT: Effect = Effect::ReadOnly;
    type Output = Seen;

    fn call(self, _: &CallContext) -> Result<Seen> {
        let directories = get_directories().into_iter().map(|(_, name)| name).collect();
        Ok(Seen { variables: get_environment().into_iter().collect(), directories })
    }
}

/// Makes a request, in whose texts `$NAME$` is the variable NAME.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Send {
    /// The URL.
    url: String,
    /// The method; GET when absent.
    method: Option<String>,
    /// Headers.
    headers: Option<BTreeMap<String, String>>,
    /// Credentials of Basic authentication.
    basic: Option<String>,
    /// The body.
    body: Option<String>,
    /// Redirects that are followed, with everything that the first request had.
    follow: Option<u8>,
    /// What is done with the answer.
    then: Option<Then>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Then {
    Give,
    Fail,
    Log,
    Keep,
    Panic,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Tool for Send {
    const NAME: &'static str = "send";
    const EFFECT: Effect = Effect::Destructive;
    type Output = Answer;

    fn call(self, _: &CallContext) -> Result<Answer> {
        let variables = get_environment();
        let fill = |text: &str| {
            variables.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("${name}$"), value))
        };
        let mut headers: Vec<(String, String)> =
            self.headers.iter().flatten().map(|(name, value)| (fill(name), fill(value))).collect();
        if let Some(basic) = &self.basic {
            headers.push(("authorization".into(), format!("Basic {}", STANDARD.encode(fill(basic)))));
        }
        let body = self.body.as_deref().map(fill);
        let mut url = fill(&self.url);
        let method = self.method.as_deref().unwrap_or("GET");
        let mut answer = send::request(method, &url, &headers, body.as_deref())?;
        for _ in 0..self.follow.unwrap_or(0) {
            let location = answer.headers.iter().find(|(name, _)| name == "location").map(|(_, value)| value.clone());
            let Some(location) = location else { break };
            url = location;
            answer = send::request(method, &url, &headers, body.as_deref())?;
        }
        let told = || format!("{url} gave {answer:?} for {headers:?} and {body:?}");
        match self.then.unwrap_or(Then::Give) {
            Then::Give => {}
            Then::Fail => return Err(Error::io(told())),
            Then::Log => log::warn(&told()),
            Then::Keep => drop(state::put("answer", told().as_bytes())?),
            Then::Panic => panic!("{}", told()),
        }
        Ok(answer)
    }
}

agent_os_sdk::export_tools!(Look, Send);
