//! The fake model server as the official Python clients see it: what the kernel is tested against is what they
//! understand. `cargo xtask test --all` installs them; elsewhere the test says that it is skipped.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::support::ModelServer;

#[test]
fn the_official_clients_understand_the_fake_servers_native_calls() {
    let Some(packages) = std::env::var_os("AOK_PYTHON_SDKS") else {
        assert!(std::env::var_os("AOK_TEST_ALL").is_none(), "AOK_PYTHON_SDKS does not say where the clients are");
        eprintln!("skipped: `cargo xtask test --all` installs the official clients");
        return;
    };
    let mut script = tempfile::NamedTempFile::new().unwrap();
    let call = json!({"id": "c1", "name": "calc__eval", "arguments": {"expression": "6*7"}});
    let first = json!({
        "text": "I compute it.", "tool_calls": [call], "expect": "6*7", "usage": {"input": 50, "cached": 40, "output": 9}
    });
    let second = json!({
        "text": "It is {{c1.value}}, they say.", "expect": "42", "usage": {"input": 70, "cached": 0, "output": 7}
    });
    write!(script, "{first}\n{second}\n").unwrap();
    let server = ModelServer::start_with(script.path(), &["--native"]);
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/sdk.py");
    let mut python = Command::new("python3");
    // Alone with these packages, without a proxy that a machine may have.
    python.arg("-B").arg(program).arg(&server.url).env("PYTHONPATH", packages).env("NO_PROXY", "127.0.0.1");
    let output = python.output().expect("python3 is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (client, finish) in [("openai", ["tool_calls", "stop"]), ("anthropic", ["tool_use", "end_turn"])] {
        let expected = json!({
            "said": "I compute it.", "calls": [["c1", "calc__eval", {"expression": "6*7"}]], "streamed": true,
            "finish": finish, "usage": [50, 40, 9], "answer": "It is 42, they say.", "pieces": true,
            "answer_usage": [70, 7], "whole": "It is 42, they say.", "refusal": [400, true],
        });
        assert_eq!(seen[client], expected, "{client}");
    }
}
