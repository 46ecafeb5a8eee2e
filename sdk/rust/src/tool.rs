//! The tool role: a struct per tool, its schemas, and the dispatch behind the macro.

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

pub use crate::generated::agent::agent_os::types::types::{Effect, ToolSpec};
pub use crate::generated::plugin::exports::agent_os::plugin::tool_provider::CallContext;

/// A tool: the type's fields are the arguments of the call.
///
/// Give it `#[serde(deny_unknown_fields)]`, so that a misspelt argument is an error and not ignored.
pub trait Tool: DeserializeOwned + JsonSchema {
    /// Unique within the plugin, `[a-z0-9_]{1,64}`; agents see `plugin__name`.
    const NAME: &'static str;

    /// What a repeated call does. Decides whether the kernel may repeat a call that a crash cut off, and which
    /// calls may run at the same time.
    const EFFECT: Effect;

    /// What the model reads about the tool, where the type's doc comment is not it.
    const DESCRIPTION: Option<&'static str> = None;

    /// The result, sent as JSON. Use `serde_json::Value` where its shape is not known.
    type Output: Serialize + JsonSchema;

    /// Makes the call.
    ///
    /// # Errors
    /// A failure that the model should read and act on.
    fn call(self, context: &CallContext) -> Result<Self::Output>;
}

/// What `list-tools` says about `T`.
#[must_use]
pub fn spec<T: Tool>() -> ToolSpec {
    let mut input = schema_of::<T>();
    let documented = input.remove("description");
    // `remove` gives back whatever was there; a schema's description is always a string.
    let documented = documented.as_ref().and_then(|text| text.as_str()).unwrap_or_default();
    let output = schema_of::<T::Output>();
    ToolSpec {
        name: T::NAME.to_owned(),
        description: T::DESCRIPTION.unwrap_or(documented).to_owned(),
        input_schema: input.as_value().to_string(),
        // An empty schema (of `Value`) says nothing about the result.
        output_schema: (output.as_object().is_some_and(|it| !it.is_empty())).then(|| output.as_value().to_string()),
        effect: T::EFFECT,
    }
}

/// Reads the arguments, makes the call and writes the result.
///
/// # Errors
/// `invalid`, with the path of the offending argument, when `arguments` is not what `T` takes; else the tool's.
pub fn dispatch<T: Tool>(arguments: &str, context: &CallContext) -> Result<String> {
    let mut json = serde_json::Deserializer::from_str(arguments);
    let tool: T = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| Error::invalid(format!("{}: arguments at `{}`: {}", T::NAME, error.path(), error.inner())))?;
    json.end().map_err(|error| Error::invalid(format!("{}: text after the arguments object: {error}", T::NAME)))?;
    let output = tool.call(context)?;
    serde_json::to_string(&output).map_err(|error| Error::io(format!("{}: result is not JSON: {error}", T::NAME)))
}

/// A flat schema: models and providers follow references badly, and pay for every word.
fn schema_of<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    RecursiveTransform(|schema: &mut Schema| {
        // Rust's own words ("uint64", the struct's name) mean nothing to a model, and some providers refuse them.
        if schema.get("format").and_then(|format| format.as_str()).is_some_and(is_rust_number) {
            schema.remove("format");
        }
    })
    .transform(&mut schema);
    schema.remove("title");
    schema
}

fn is_rust_number(format: &str) -> bool {
    ["int", "uint", "float", "double"]
        .iter()
        .any(|word| format.strip_prefix(word).is_some_and(|bits| bits.bytes().all(|byte| byte.is_ascii_digit())))
}

/// Makes the crate a tool component of the given [`Tool`](crate::Tool) types.
#[macro_export]
macro_rules! export_tools {
    ($($tool:ty),+ $(,)?) => {
        #[allow(unsafe_code, reason = "the exported functions of the component")]
        const _: () = {
            struct Component;
            impl $crate::generated::plugin::exports::agent_os::plugin::tool_provider::Guest for Component {
                fn list_tools() -> Vec<$crate::ToolSpec> {
                    $crate::report_panics();
                    vec![$($crate::spec::<$tool>()),+]
                }

                fn call_tool(
                    name: String,
                    arguments: String,
                    context: $crate::CallContext,
                ) -> $crate::Result<String> {
                    $crate::report_panics();
                    $(if name == <$tool as $crate::Tool>::NAME {
                        return $crate::dispatch::<$tool>(&arguments, &context);
                    })+
                    let known = [$(<$tool as $crate::Tool>::NAME),+].join(", ");
                    Err($crate::Error::not_found(format!("no tool `{name}` in this plugin; it has: {known}")))
                }
            }
            $crate::generated::plugin::__export_tool_world!(Component with_types_in $crate::generated::plugin);
        };
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Errno;
    use serde::Deserialize;
    use serde_json::{Value, json};

    /// Moves a thing.
    #[derive(Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Move {
        /// Where to.
        to: Point,
        /// How often.
        times: Option<u32>,
    }

    #[derive(Deserialize, Serialize, JsonSchema)]
    struct Point {
        x: f64,
        y: f64,
    }

    impl Tool for Move {
        const NAME: &'static str = "move";
        const EFFECT: Effect = Effect::Idempotent;
        type Output = Point;

        fn call(self, _: &CallContext) -> Result<Point> {
            if self.times == Some(0) {
                return Err(Error::denied("not at all"));
            }
            Ok(self.to)
        }
    }

    /// Says anything.
    #[derive(Deserialize, JsonSchema)]
    struct Any {}

    impl Tool for Any {
        const NAME: &'static str = "any";
        const EFFECT: Effect = Effect::Pure;
        const DESCRIPTION: Option<&'static str> = Some("Overridden.");
        type Output = Value;

        fn call(self, _: &CallContext) -> Result<Value> {
            Ok(json!(null))
        }
    }

    fn call<T: Tool>(arguments: &str) -> Result<String> {
        dispatch::<T>(arguments, &CallContext { caller: 1, deadline_ms: 0, idempotency_key: String::new() })
    }

    #[test]
    fn the_schema_comes_from_the_argument_type() {
        let spec = spec::<Move>();
        assert_eq!((spec.name.as_str(), spec.description.as_str()), ("move", "Moves a thing."));
        let input: Value = serde_json::from_str(&spec.input_schema).unwrap();
        assert_eq!(
            input,
            json!({
                "type": "object",
                "properties": {
                    "to": {
                        "description": "Where to.",
                        "type": "object",
                        "properties": { "x": {"type": "number"}, "y": {"type": "number"} },
                        "required": ["x", "y"],
                    },
                    "times": { "description": "How often.", "type": ["integer", "null"], "minimum": 0 },
                },
                "additionalProperties": false,
                "required": ["to"],
            })
        );
        assert!(spec.output_schema.unwrap().contains(r#""x""#));
    }

    #[test]
    fn a_description_can_be_given_and_an_unknown_output_has_no_schema() {
        let spec = spec::<Any>();
        assert_eq!((spec.description.as_str(), spec.output_schema), ("Overridden.", None));
    }

    #[test]
    fn bad_arguments_name_their_place() {
        for (arguments, expected) in [
            (r#"{"to":{"x":1,"y":"z"}}"#, "move: arguments at `to.y`: invalid type: string \"z\""),
            (r#"{"to":{"x":1,"y":2},"tims":1}"#, "unknown field `tims`"),
            (r#"{"to":{"x":1,"y":2}} x"#, "text after the arguments object"),
            ("", "EOF while parsing"),
            ("[]", "arguments at `.`"),
        ] {
            let error = call::<Move>(arguments).unwrap_err();
            assert_eq!(error.code, Errno::Invalid);
            assert!(error.message.contains(expected), "{arguments}: {}", error.message);
        }
    }

    #[test]
    fn results_and_errors_pass_through() {
        assert_eq!(call::<Move>(r#"{"to":{"x":1,"y":2.5}}"#).unwrap(), r#"{"x":1.0,"y":2.5}"#);
        assert_eq!(call::<Move>(r#"{"to":{"x":1,"y":2},"times":0}"#).unwrap_err().code, Errno::Denied);
        assert_eq!(call::<Any>("{}").unwrap(), "null");
    }
}
