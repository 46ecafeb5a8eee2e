//! `aok plugin grant|revoke|trust`: what the operator grants to plugins of directories.

use std::path::{Path, PathBuf};

use crate::capability::{BadGrant, Permissions, SecretPermission};
use crate::cli::error::{Error, usage};
use crate::cli::format::one_line;
use crate::cli::out::Out;
use crate::cli::session::{Session, Signals};
use crate::grants::{Key, Revocation};
use crate::kernel::info::GrantReport;
use crate::server::wire::Request;

#[derive(Debug, clap::Args)]
pub(super) struct Grant {
    /// The plugin's name
    name: String,
    /// read=PATH, write=PATH, http="[METHODS ]HOST[/PATH]", env=VARIABLE, secret=VARIABLE@HOST[,HOST] or kernel=INTERFACE
    #[arg(value_name = "KEY=VALUE", required = true)]
    grants: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Revoke {
    /// The plugin's name
    name: String,
    /// As it was granted, or KEY for all of a kind (read, write, http, env, secret, kernel, trust); everything when absent
    #[arg(value_name = "KEY[=VALUE]")]
    grants: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Trust {
    /// The plugin's name
    name: String,
}

pub(super) async fn grant(args: Grant, session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut permissions = Permissions::default();
    for text in &args.grants {
        let Some((key, value)) = split(text)? else {
            return Err(usage(
                format!("`{text}` says not what is granted"),
                "write KEY=VALUE, http=example.com for example",
            ));
        };
        permissions.add(&entry(key, value)?);
    }
    change(Request::PluginGrant { name: args.name, permissions }, session, out).await
}

pub(super) async fn revoke(args: Revoke, session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut what = Revocation::default();
    for text in &args.grants {
        match split(text)? {
            Some((Key::Secret, value)) if !value.contains('@') => {
                what.entries.secrets.push(SecretPermission { name: value.to_owned(), hosts: Vec::new() });
            }
            Some((key, value)) => what.entries.add(&entry(key, value)?),
            None => what.keys.push(key(text)?),
        }
    }
    change(Request::PluginRevoke { name: args.name, what }, session, out).await
}

pub(super) async fn trust(args: Trust, session: &Session, out: &mut Out) -> Result<(), Error> {
    change(Request::PluginTrust { name: args.name }, session, out).await
}

/// `KEY=VALUE`; `None` where it is a key alone.
fn split(text: &str) -> Result<Option<(Key, &str)>, Error> {
    text.split_once('=').map(|(name, value)| Ok((key(name)?, value))).transpose()
}

fn key(name: &str) -> Result<Key, Error> {
    // The name that manifests have for it.
    let name = if name == "secrets" { "secret" } else { name };
    let found = Key::ALL.into_iter().find(|key| key.name() == name);
    found.ok_or_else(|| {
        let names: Vec<_> = Key::ALL.iter().map(|key| key.name()).collect();
        usage(format!("`{name}` is no kind of grant"), format!("there are: {}", names.join(", ")))
    })
}

fn entry(key: Key, value: &str) -> Result<Permissions, Error> {
    let mut p = Permissions::default();
    let bad = |e: BadGrant| usage(format!("`{}={value}`: {e}", key.name()), "docs/plugins.md has what can be granted");
    match key {
        Key::Read => p.read.push(directory(value)?),
        Key::Write => p.write.push(directory(value)?),
        Key::Http => p.http.push(value.parse().map_err(bad)?),
        Key::Env => p.env.push(value.to_owned()),
        Key::Secret => p.secrets.push(value.parse().map_err(bad)?),
        Key::Kernel => p.kernel.push(value.to_owned()),
        Key::Trust => return Err(usage("trust is not granted by a value", "use `aok plugin trust NAME`")),
    }
    Ok(p)
}

/// The path from where the user is. The kernel makes it canonical; one that is gone can still be revoked.
fn directory(text: &str) -> Result<PathBuf, Error> {
    if text.is_empty() || text == "*" {
        return Err(usage(format!("`{text}` names no directory"), "grants have no default: name the directory"));
    }
    let path = Path::new(text);
    let absolute = path.canonicalize().or_else(|_| std::path::absolute(path));
    absolute.map_err(|e| usage(format!("{text} is no path: {e}"), "give another path"))
}

async fn change(request: Request, session: &Session, out: &mut Out) -> Result<(), Error> {
    let mut signals = Signals::listen()?;
    let started = session.act(request).await?;
    let end = match started.answer {
        Ok(lines) => tell(out.items(lines).await, out),
        Err(e) => Err(e.into()),
    };
    if let Some(owner) = started.owner {
        owner.finish(None, &mut signals, out).await;
    }
    end
}

fn tell(reports: Result<Vec<GrantReport>, Error>, out: &mut Out) -> Result<(), Error> {
    // As JSON the report itself was written, notes included.
    for report in reports? {
        for note in &report.notes {
            out.notice(note, "`aok plugin ls` shows what a plugin asks for and what it is granted");
        }
        let words = match report.granted.words() {
            none if none.is_empty() => "nothing".to_owned(),
            words => words.join("  "),
        };
        let trust = if report.trusted { "; trusted" } else { "" };
        out.line(&one_line(&format!("{}: granted {words}{trust}", report.name)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_read_as_they_are_written() {
        for (text, word) in [
            ("read=/", "read=/"),
            ("http=example.com", "http=example.com"),
            ("http=get,POST api.example.com/v1/*", "http=GET,POST api.example.com/v1/*"),
            ("env=LANG", "env=LANG"),
            ("secret=KEY@api.example.com,b.example.com:80", "secret=KEY@api.example.com,b.example.com:80"),
            ("secrets=KEY@h", "secret=KEY@h"),
        ] {
            let (key, value) = split(text).unwrap().unwrap();
            assert_eq!(entry(key, value).unwrap().words(), [word], "{text}");
        }
        for text in
            ["read=*", "read=", "http=*", "http=", "http=https://h", "secret=KEY", "secret=@h", "trust=yes", "raed=x"]
        {
            let error = split(text).and_then(|kv| kv.map(|(key, value)| entry(key, value)).transpose()).unwrap_err();
            assert_eq!(error.exit(), 2, "{text}");
        }
    }
}
