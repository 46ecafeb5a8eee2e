//! Which providers of this machine answer: each is asked for its list of models, once and shortly. That
//! costs nothing, since no model is asked.
//!
//! A key goes to its own provider and nowhere else. Nothing of an answer but the names of models is
//! passed on, and an address is shown without the user name and password that it may hold.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::super::http;
use super::{KNOWN, Models};
use crate::config::ProviderKind;

/// How long a provider may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The largest list that is read, in bytes.
const MAX_LIST: usize = 16 << 20;

/// A provider, and what came of asking it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surveyed {
    /// Its name.
    pub provider: String,
    /// Its address, without secrets; empty where it cannot be used.
    pub url: String,
    /// The variable that holds its key, where it has one.
    pub key_env: Option<String>,
    /// Whether somebody asked for it: the configuration, a key, or an address in the environment.
    pub wanted: bool,
    /// What it said.
    pub answer: Answer,
}

/// What a provider said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The models that it has.
    Models(Vec<String>),
    /// This status and no list.
    Status(u16),
    /// Nothing: why.
    Silent(String),
    /// It cannot be asked: what is missing.
    Unusable(String),
}

impl Models {
    /// Asks every provider of the configuration and every known one whose key or address is set; Ollama
    /// is looked for in any case. All at once, for three seconds at most.
    pub async fn survey(&self) -> Vec<Surveyed> {
        let known = KNOWN.iter().filter(|k| !self.config.providers.contains_key(k.name));
        let set = |var: Option<&str>| var.is_some_and(|v| self.env.contains_key(v));
        let known = known.filter_map(|k| {
            let wanted = set(k.key_env) || set(k.url_env);
            (wanted || k.key_env.is_none()).then_some((k.name, wanted))
        });
        let all = self.config.providers.keys().map(|name| (name.as_str(), true)).chain(known);
        join_all(all.map(|(name, wanted)| self.ask(name, wanted))).await
    }

    /// Three commands that choose a model, the likeliest to work here first.
    #[must_use]
    pub fn suggestions(&self) -> [String; 3] {
        self.commands(&self.found())
    }

    async fn ask(&self, name: &str, wanted: bool) -> Surveyed {
        let key_env = match self.config.providers.get(name) {
            Some(p) => p.key_env.as_deref(),
            None => KNOWN.iter().find(|k| k.name == name).and_then(|k| k.key_env),
        };
        let mut asked = Surveyed {
            provider: name.to_owned(),
            url: String::new(),
            key_env: key_env.map(str::to_owned),
            wanted,
            answer: Answer::Unusable(String::new()),
        };
        let settings = match self.settings(name) {
            Ok((settings, _)) => settings,
            Err(why) => return Surveyed { answer: Answer::Unusable(why), ..asked },
        };
        let base = settings.base_url.trim_end_matches('/');
        let url = Url::parse(&format!("{base}/models")).ok();
        let Some(url) = url.filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host()) else {
            let why = "its base URL is none; give one like http://127.0.0.1:8080/v1".to_owned();
            return Surveyed { answer: Answer::Unusable(why), ..asked };
        };
        // Without what we put at its end.
        let shown = http::shown(&url);
        asked.url = shown.strip_suffix("/models").unwrap_or(&shown).to_owned();
        let key = key_env.and_then(|var| self.env.get(var)).map(String::as_str);
        asked.answer = match headers(settings.kind, key) {
            Some(headers) => list(url, headers).await,
            None => Answer::Unusable("its key has characters that cannot be sent".to_owned()),
        };
        asked
    }
}

/// The headers that carry a key; `None` for one that no header can hold.
fn headers(kind: ProviderKind, key: Option<&str>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    if kind == ProviderKind::Anthropic {
        headers.insert("anthropic-version", HeaderValue::from_static("2023-06-01"));
    }
    if let Some(key) = key {
        let (name, text) = match kind {
            ProviderKind::Openai => (AUTHORIZATION, format!("Bearer {key}")),
            ProviderKind::Anthropic => (HeaderName::from_static("x-api-key"), key.to_owned()),
        };
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Some(headers)
}

async fn list(url: Url, headers: HeaderMap) -> Answer {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    let asked = async {
        let mut response = http::client(&url)?.get(url).headers(headers).send().await?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await? {
            body.extend_from_slice(&piece);
            if body.len() > MAX_LIST {
                break;
            }
        }
        Ok::<_, reqwest::Error>((status, body))
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Err(_) => Answer::Silent(format!("no answer within {} s", PATIENCE.as_secs())),
        Ok(Err(e)) => Answer::Silent(cause(&e.without_url())),
        Ok(Ok((status, body))) => match serde_json::from_slice::<List>(&body) {
            Ok(list) if status.is_success() => Answer::Models(list.data.into_iter().map(|m| m.id).collect()),
            _ => Answer::Status(status.as_u16()),
        },
    }
}

/// The innermost cause: the layers above say only that sending failed.
fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::tests::models;
    use super::*;

    /// A server that gives one answer and hands back what it was asked.
    async fn server(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..n]).to_lowercase()
        });
        (port, task)
    }

    fn of<'a>(all: &'a [Surveyed], name: &str) -> &'a Surveyed {
        all.iter().find(|s| s.provider == name).unwrap()
    }

    const LIST: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"data\":[{\"id\":\"a\"},{\"id\":\"b:1\"} ]}";

    #[tokio::test]
    async fn each_wire_is_asked_for_its_list_with_its_key() {
        let (port, asked) = server(LIST).await;
        let url = format!("http://user:hidden@127.0.0.1:{port}/v1/");
        let toml = format!("[providers.near]\nkind = \"openai\"\nbase_url = \"{url}\"\nkey_env = \"NEAR\"\n");
        let all = models(&toml, &[("NEAR", "sk-secret")]).survey().await;
        let near = of(&all, "near");
        assert_eq!(near.answer, Answer::Models(vec!["a".into(), "b:1".into()]));
        assert_eq!((near.url.as_str(), near.wanted), (format!("http://127.0.0.1:{port}/v1").as_str(), true));
        assert!(!format!("{all:?}").contains("secret") && !format!("{all:?}").contains("hidden"), "{all:?}");
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("get /v1/models ") && asked.contains("authorization: bearer sk-secret"), "{asked}");

        let (port, asked) = server("HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n").await;
        let url = format!("http://127.0.0.1:{port}/v1");
        let all = models("", &[("ANTHROPIC_API_KEY", "sk-ant"), ("ANTHROPIC_BASE_URL", &url)]).survey().await;
        assert_eq!(of(&all, "anthropic").answer, Answer::Status(401));
        let asked = asked.await.unwrap();
        assert!(asked.contains("x-api-key: sk-ant") && asked.contains("anthropic-version: 2023-06-01"), "{asked}");
    }

    #[tokio::test]
    async fn who_cannot_be_asked_says_why_and_who_was_not_asked_for_is_not_there() {
        let toml = "[providers.far]\nkind = \"openai\"\nbase_url = \"nowhere\"\n\
                    [providers.keyed]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\nkey_env = \"UNSET\"\n\
                    [providers.odd]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\nkey_env = \"ODD\"\n";
        // A port that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let env = [("ODD", "a\nb"), ("OLLAMA_HOST", &format!("127.0.0.1:{port}"))];
        let all = models(toml, &env).survey().await;
        let why = |name: &str| match &of(&all, name).answer {
            Answer::Unusable(why) | Answer::Silent(why) => why.clone(),
            other => panic!("{name}: {other:?}"),
        };
        assert!(why("far").contains("base URL"));
        assert!(why("keyed").contains("UNSET"));
        assert!(why("odd").contains("cannot be sent") && !why("odd").contains("a\nb"));
        assert!(why("ollama").contains("refused"), "{}", why("ollama"));
        assert_eq!(all.len(), 4, "{all:?}");
    }

    #[tokio::test]
    async fn what_is_no_list_is_a_status() {
        for answer in ["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
        {
            let (port, _asked) = server(answer).await;
            let url = format!("http://127.0.0.1:{port}/v1");
            let all = models("", &[("OPENAI_BASE_URL", &url)]).survey().await;
            assert_eq!(of(&all, "openai").answer, Answer::Status(200));
        }
    }
}
