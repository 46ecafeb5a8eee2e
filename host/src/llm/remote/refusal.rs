//! What a provider's refusal says. Each has its own words, and only they tell one reason from another.

use std::time::Duration;

use serde_json::Value;

use super::super::Error;

/// A reason for a refusal that has another spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quirk {
    NoTemperature,
    CompletionTokens,
    NoSchema,
    NoTools,
}

impl Quirk {
    pub(super) fn of(error: &Error) -> Option<Self> {
        let Error::Status { status: 400 | 404 | 422 | 501, message, .. } = error else { return None };
        let says = |part: &str| message.contains(part);
        if says("max_completion_tokens") {
            Some(Self::CompletionTokens)
        } else if says("temperature") {
            Some(Self::NoTemperature)
        } else if says("response_format") || says("json_schema") || says("output_config") {
            Some(Self::NoSchema)
        } else if says("support tools") || says("support tool") || says("tool choice") || says("tool_choice") {
            Some(Self::NoTools)
        } else {
            None
        }
    }
}

/// Whether a refusal is about the size of the prompt. Each provider has its own words.
pub(super) fn is_too_long(body: &str) -> bool {
    [
        "context_length_exceeded",
        "exceed_context_size",
        "maximum context length",
        "context window",
        "prompt is too long",
        "available context size",
        "input length and `max_tokens` exceed",
    ]
    .iter()
    .any(|words| body.contains(words))
}

/// The window that a refusal states, in tokens.
pub(super) fn stated_limit(body: &str, text: &str) -> Option<u32> {
    let value = serde_json::from_str::<Value>(body).unwrap_or_default();
    if let Some(n) = value.pointer("/error/n_ctx").or_else(|| value.get("n_ctx")).and_then(Value::as_u64) {
        return u32::try_from(n).ok();
    }
    let number = |text: &str| {
        let digits: String = text.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    };
    let after = |words: &str| text.split_once(words).and_then(|(_, rest)| number(rest));
    // OpenAI and vLLM: "maximum context length is 8192 tokens"; Anthropic: "210000 tokens > 200000 maximum".
    after("maximum context length is").or_else(|| after("tokens >")).or_else(|| after("context size ("))
}

/// What `retry-after-ms` or `retry-after` asks for. A date is not understood and says nothing.
pub(super) fn retry_after(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number("retry-after"))?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// The message in a provider's error body, or the body.
pub(super) fn error_text(body: &str) -> String {
    let value = serde_json::from_str::<Value>(body).unwrap_or_default();
    let message = value.pointer("/error/message").or_else(|| value.get("message")).or_else(|| value.get("error"));
    message.and_then(Value::as_str).map_or_else(|| body.to_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_size_is_told_from_others_and_its_window_is_read() {
        for (body, limit) in [
            (
                r#"{"error":{"message":"This model's maximum context length is 8192 tokens. However, you requested 9000 tokens","code":"context_length_exceeded"}}"#,
                Some(8192),
            ),
            (
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > 200000 maximum"}}"#,
                Some(200_000),
            ),
            (
                r#"{"error":{"code":400,"message":"the request exceeds the available context size, try increasing it","type":"exceed_context_size_error","n_prompt_tokens":9000,"n_ctx":4096}}"#,
                Some(4096),
            ),
            (r#"{"error":{"message":"input is larger than the context window"}}"#, None),
        ] {
            assert!(is_too_long(body), "{body}");
            assert_eq!(stated_limit(body, &error_text(body)), limit, "{body}");
        }
        assert!(!is_too_long(r#"{"error":{"message":"temperature must be 1"}}"#));
    }

    #[test]
    fn the_time_to_wait_is_read_in_both_spellings() {
        let headers = |pairs: &[(&'static str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).parse().unwrap(), v.parse().unwrap())).collect()
        };
        let wait = |pairs: &[(&'static str, &str)]| retry_after(&headers(pairs));
        assert_eq!(wait(&[("retry-after", "3")]), Some(Duration::from_secs(3)));
        assert_eq!(wait(&[("retry-after", "9"), ("retry-after-ms", "250")]), Some(Duration::from_millis(250)));
        for odd in ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "NaN", "1e400", ""] {
            assert_eq!(wait(&[("retry-after", odd)]), None, "{odd}");
        }
    }
}
