use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::models::provider;
use super::*;
use crate::capability::Permissions;
use crate::config::Durability;
use crate::kernel::lock::Lock;
use crate::llm::models::{Answer, Surveyed};
use crate::registry::State;

fn surveyed(provider: &str, wanted: bool, answer: Answer) -> Surveyed {
    Surveyed { provider: provider.into(), url: "http://h/v1".into(), key_env: Some("THE_KEY".into()), wanted, answer }
}

fn record(name: &str, fault: Option<Fault>, file: Option<&str>) -> Record {
    Record {
        name: name.into(),
        file: file.map(PathBuf::from),
        state: if fault.is_some() { State::Refused } else { State::Loaded },
        version: None,
        requested: Permissions::default(),
        digest: None,
        tools: if fault.is_none() { vec![format!("{name}__a")] } else { vec![] },
        hooks: vec![],
        is_foreign: false,
        is_agent: false,
        counts: Arc::default(),
        fault,
    }
}

#[test]
fn a_provider_says_how_it_is_and_what_helps() {
    let check = |answer| provider(&surveyed("p", true, answer), "").unwrap();
    let good = check(Answer::Models(vec!["a".into(), "b".into()]));
    assert_eq!((good.state, good.fix), (Health::Ok, None));
    assert!(good.detail.contains("2 models") && good.detail.contains("http://h/v1"), "{}", good.detail);
    let key = check(Answer::Status(401));
    assert!(key.state == Health::Warn && key.fix.as_ref().unwrap().contains("export THE_KEY=…"), "{key:?}");
    for (answer, words) in [
        (Answer::Status(503), "503"),
        (Answer::Status(404), "404"),
        (Answer::Silent("connection refused".into()), "connection refused"),
        (Answer::Unusable("X is not set".into()), "X is not set"),
    ] {
        let check = check(answer);
        assert!(check.state == Health::Warn && check.detail.contains(words) && check.fix.is_some(), "{check:?}");
    }
}

#[test]
fn a_server_that_nobody_asked_for_is_told_only_where_it_answers() {
    assert_eq!(provider(&surveyed("ollama", false, Answer::Silent("refused".into())), ""), None);
    assert_eq!(provider(&surveyed("ollama", false, Answer::Status(404)), ""), None);
    let models = Answer::Models(vec!["qwen3:4b".into(), "llama3.2:latest".into()]);
    let ask = |wanted: &str| provider(&surveyed("ollama", false, models.clone()), wanted).unwrap();
    for there in ["", "ollama/llama3.2", "ollama/llama3.2:latest", "ollama/qwen3:4b", "openai/x"] {
        assert_eq!(ask(there).state, Health::Ok, "{there}");
    }
    let absent = ask("ollama/qwen3");
    assert_eq!((absent.state, absent.fix.as_deref()), (Health::Warn, Some("ollama pull qwen3")));
}

#[test]
fn a_refused_plugin_is_a_warning_and_a_refused_bundled_one_a_failure() {
    let fault = || Some(Fault { code: "not_wasm", message: "it is text".into(), hint: "build it".into() });
    let all = [record("a", None, Some("/p/a.wasm")), record("b", fault(), Some("/p/b.wasm"))];
    assert_eq!(plugins(&all[..1]), Check::ok("plugins", "1 loaded (1 tool, 0 agents)"));
    let one = plugins(&all);
    assert!(one.state == Health::Warn && one.detail.contains("`b`") && one.detail.contains("[not_wasm]"), "{one:?}");
    assert!(one.fix.unwrap().starts_with("build it;"));
    assert_eq!(plugins(&[record("fs", fault(), None)]).state, Health::Fail);
}

#[test]
fn what_a_commit_survives_is_said_in_words() {
    assert!(survives("sqlite:/x", Durability::Process).contains("not a power cut"));
    assert!(survives("sqlite:/x", Durability::Power).contains("and a power cut"));
    assert!(survives("memory:", Durability::Power).contains("nothing can be resumed"));
}

#[test]
fn directories_are_told_by_what_can_be_done_with_them() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(data_directory(dir.path()).state, Health::Ok);
    let absent = data_directory(&dir.path().join("a/b"));
    assert!(absent.state == Health::Ok && absent.detail.contains("not there yet"), "{absent:?}");
    fs::write(dir.path().join("file"), "").unwrap();
    for path in ["file", "file/below"] {
        let wrong = data_directory(&dir.path().join(path));
        assert!(wrong.state == Health::Fail && wrong.fix.unwrap().contains("--data"), "{path}");
    }
    let sealed = dir.path().join("sealed");
    fs::create_dir(&sealed).unwrap();
    fs::set_permissions(&sealed, fs::Permissions::from_mode(0o500)).unwrap();
    // Root may write everywhere.
    if fs::write(sealed.join("x"), "").is_err() {
        let check = data_directory(&sealed);
        assert!(check.state == Health::Fail && check.fix.unwrap().contains("chmod"));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a probe was left behind");
}

#[test]
fn the_lock_is_looked_at_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(lock(dir.path()), Check::ok("lock", "free"));
    assert!(!dir.path().join("lock").exists());
    let held = Lock::take(dir.path()).unwrap();
    let check = lock(dir.path());
    assert!(check.state == Health::Fail && check.detail.contains(&std::process::id().to_string()), "{check:?}");
    drop(held);
    assert_eq!(lock(dir.path()).state, Health::Ok);
    Lock::take(dir.path()).unwrap();
}
