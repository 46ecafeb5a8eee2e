//! `calc__eval`: arithmetic for models, which are bad at it.

mod expression;

use agent_os_sdk::{CallContext, Effect, Error, Result, Tool};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// Evaluates an arithmetic expression exactly as written, for example `(17 + 4) * 3 / 2` or `round(sqrt(2) * 100)`.
/// Operators: + - * / % (remainder) ^ (power, right to left); parentheses; constants pi, tau, e; functions abs,
/// sign, sqrt, cbrt, exp, ln, log (base 10, or `log(x, base)`), log2, log10, sin, cos, tan, asin, acos, atan
/// (radians), atan2, floor, ceil, round, trunc, min, max, sum, avg, pow, hypot, mod.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Eval {
    /// The expression, without `=` and without units or thousands separators.
    expression: String,
}

#[derive(Serialize, JsonSchema)]
struct Value {
    /// The result. Whole numbers are exact up to 2^53; others are rounded to 15 significant digits.
    #[serde(serialize_with = "as_decimal")]
    value: f64,
}

impl Tool for Eval {
    const NAME: &'static str = "eval";
    const EFFECT: Effect = Effect::Pure;
    type Output = Value;

    fn call(self, _: &CallContext) -> Result<Value> {
        match expression::evaluate(&self.expression) {
            Ok(value) => Ok(Value { value }),
            Err(error) => Err(Error::invalid(error.to_string())),
        }
    }
}

agent_os_sdk::export_tools!(Eval);

/// Writes what a person would: `64` and not `64.0`, `0.3` and not `0.30000000000000004`.
fn as_decimal<S: Serializer>(value: &f64, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        #[allow(clippy::cast_possible_truncation, reason = "a whole number within 2^53 fits")]
        return serializer.serialize_i64(*value as i64);
    }
    let rounded = format!("{value:.14e}").parse().unwrap_or(*value);
    serializer.serialize_f64(rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(expression: &str) -> String {
        let context = CallContext { caller: 1, deadline_ms: 0, idempotency_key: String::new() };
        let arguments = format!(r#"{{"expression":"{expression}"}}"#);
        agent_os_sdk::dispatch::<Eval>(&arguments, &context).unwrap()
    }

    #[test]
    fn results_read_like_a_persons() {
        assert_eq!(written("2 ^ 6"), r#"{"value":64}"#);
        assert_eq!(written("0.1 + 0.2"), r#"{"value":0.3}"#);
        assert_eq!(written("2 ^ 53 - 1"), r#"{"value":9007199254740991}"#);
        assert_eq!(written("-0 * 1"), r#"{"value":0}"#);
        assert_eq!(written("2 / 3"), r#"{"value":0.666666666666667}"#);
        assert_eq!(written("10 ^ 300"), r#"{"value":1e+300}"#);
    }
}
