//! Values of the component model as JSON and back (CONTRACT §6, foreign components). What does not fit
//! is refused with a JSON pointer (RFC 6901) to it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use wasmtime::component::{Type, Val};

/// A JSON value that is not of its type.
#[derive(Debug)]
pub(super) struct Mismatch {
    /// The way to it, innermost first.
    path: Vec<String>,
    what: String,
}

impl Mismatch {
    fn new(what: impl Into<String>) -> Self {
        Self { path: Vec::new(), what: what.into() }
    }

    fn expected(what: &str, found: &Value) -> Self {
        Self::new(format!("expected {what}, found {}", kind(found)))
    }

    fn under(mut self, segment: impl Into<String>) -> Self {
        self.path.push(segment.into());
        self
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.iter().rev().map(|s| format!("/{}", s.replace('~', "~0").replace('/', "~1")));
        let path: String = path.collect();
        write!(f, "{}: {}", if path.is_empty() { "/" } else { &path }, self.what)
    }
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "a boolean".into(),
        Value::Number(n) => n.to_string(),
        Value::String(_) => "a string".into(),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(_) => "an object".into(),
    }
}

/// A function's arguments from a JSON object.
pub(super) fn arguments(json: Value, parameters: &[(String, Type)]) -> Result<Vec<Val>, Mismatch> {
    let Value::Object(object) = json else { return Err(Mismatch::expected("an object", &json)) };
    members(object, parameters.iter().map(|(name, ty)| (name.as_str(), ty.clone())), |_, val| val)
}

/// The values of an object's members, of which those that are optional may be absent.
fn members<'a, T>(
    mut object: Map<String, Value>,
    fields: impl Iterator<Item = (&'a str, Type)>,
    make: impl Fn(&str, Val) -> T,
) -> Result<Vec<T>, Mismatch> {
    let mut made = Vec::new();
    for (name, ty) in fields {
        let val = match object.remove(name) {
            Some(json) => to_val(json, &ty).map_err(|e| e.under(name))?,
            None if matches!(ty, Type::Option(_)) => Val::Option(None),
            None => return Err(Mismatch::new("it is missing").under(name)),
        };
        made.push(make(name, val));
    }
    match object.keys().next() {
        None => Ok(made),
        Some(unknown) => Err(Mismatch::new("there is no such field").under(unknown)),
    }
}

/// A value of the component model from JSON.
pub(super) fn to_val(json: Value, ty: &Type) -> Result<Val, Mismatch> {
    match ty {
        Type::String => match json {
            Value::String(text) => Ok(Val::String(text)),
            other => Err(Mismatch::expected("a string", &other)),
        },
        Type::List(list) => match (list.ty(), json) {
            (Type::U8, Value::String(text)) => {
                let bytes = BASE64.decode(&text).map_err(|e| Mismatch::new(format!("expected base64: {e}")))?;
                Ok(Val::List(bytes.into_iter().map(Val::U8).collect()))
            }
            (Type::U8, other) => Err(Mismatch::expected("a string of base64", &other)),
            (ty, Value::Array(items)) => {
                let each = items.into_iter().enumerate();
                let vals = each.map(|(i, item)| to_val(item, &ty).map_err(|e| e.under(i.to_string())));
                vals.collect::<Result<_, _>>().map(Val::List)
            }
            (_, other) => Err(Mismatch::expected("an array", &other)),
        },
        Type::Record(record) => match json {
            Value::Object(object) => {
                let fields = record.fields().map(|f| (f.name, f.ty));
                members(object, fields, |name, val| (name.to_owned(), val)).map(Val::Record)
            }
            other => Err(Mismatch::expected("an object", &other)),
        },
        Type::Tuple(tuple) => {
            let types = tuple.types();
            match json {
                Value::Array(items) if items.len() == types.len() => {
                    let each = items.into_iter().zip(types).enumerate();
                    let vals = each.map(|(i, (item, ty))| to_val(item, &ty).map_err(|e| e.under(i.to_string())));
                    vals.collect::<Result<_, _>>().map(Val::Tuple)
                }
                other => Err(Mismatch::expected(&format!("an array of {}", types.len()), &other)),
            }
        }
        Type::Variant(variant) => {
            let cases: Vec<_> = variant.cases().map(|c| (c.name, c.ty)).collect();
            let (tag, val) = tagged(json, &cases)?;
            Ok(Val::Variant(tag, val))
        }
        Type::Result(result) => match tagged(json, &[("ok", result.ok()), ("err", result.err())])? {
            (tag, val) if tag == "ok" => Ok(Val::Result(Ok(val))),
            (_, val) => Ok(Val::Result(Err(val))),
        },
        Type::Enum(e) => one_of(&json, || e.names()).map(Val::Enum),
        Type::Flags(flags) => {
            let Value::Array(items) = &json else { return Err(Mismatch::expected("an array of names", &json)) };
            let mut set: Vec<String> = Vec::new();
            for (i, item) in items.iter().enumerate() {
                let name = one_of(item, || flags.names()).map_err(|e| e.under(i.to_string()))?;
                if set.contains(&name) {
                    return Err(Mismatch::new(format!("`{name}` is there twice")).under(i.to_string()));
                }
                set.push(name);
            }
            Ok(Val::Flags(set))
        }
        Type::Option(option) => {
            let inner = option.ty();
            let json = match json {
                Value::Null => return Ok(Val::Option(None)),
                Value::Object(mut object) if matches!(inner, Type::Option(_)) && object.len() == 1 => {
                    object.remove("some").ok_or_else(|| Mismatch::new("expected null or an object with `some`"))?
                }
                other if matches!(inner, Type::Option(_)) => {
                    return Err(Mismatch::expected("null or an object with `some`", &other));
                }
                other => other,
            };
            to_val(json, &inner).map(|val| Val::Option(Some(Box::new(val))))
        }
        ty => scalar(&json, ty),
    }
}

/// A value that holds no other.
fn scalar(json: &Value, ty: &Type) -> Result<Val, Mismatch> {
    /// An integer that its type holds.
    macro_rules! integer {
        ($variant:ident, $int:ty) => {{
            let (least, most) = (i128::from(<$int>::MIN), i128::from(<$int>::MAX));
            let number = whole(json, <$int>::BITS == 64).and_then(|n| <$int>::try_from(n).ok());
            let expected = || Mismatch::expected(&format!("an integer from {least} to {most}"), json);
            Ok(Val::$variant(number.ok_or_else(expected)?))
        }};
    }
    match ty {
        Type::Bool => json.as_bool().map(Val::Bool).ok_or_else(|| Mismatch::expected("a boolean", json)),
        Type::S8 => integer!(S8, i8),
        Type::U8 => integer!(U8, u8),
        Type::S16 => integer!(S16, i16),
        Type::U16 => integer!(U16, u16),
        Type::S32 => integer!(S32, i32),
        Type::U32 => integer!(U32, u32),
        Type::S64 => integer!(S64, i64),
        Type::U64 => integer!(U64, u64),
        Type::Float32 => {
            let wide = float(json)?;
            #[allow(clippy::cast_possible_truncation, reason = "what a float32 cannot hold is refused below")]
            let narrow = wide as f32;
            if wide.is_finite() && !narrow.is_finite() {
                return Err(Mismatch::expected("a number that a float32 can hold", json));
            }
            Ok(Val::Float32(narrow))
        }
        Type::Float64 => float(json).map(Val::Float64),
        Type::Char => {
            let mut chars = json.as_str().unwrap_or_default().chars();
            match (chars.next(), chars.next()) {
                (Some(c), None) => Ok(Val::Char(c)),
                _ => Err(Mismatch::expected("a string of one character", json)),
            }
        }
        _ => Err(Mismatch::new("its type cannot be told in JSON")),
    }
}

/// A whole number; of 64 bits also as a text.
fn whole(json: &Value, text_too: bool) -> Option<i128> {
    match json {
        Value::Number(n) => n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from)).or_else(|| {
            let n = n.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e20)?;
            #[allow(clippy::cast_possible_truncation, reason = "it is whole and far below the ends of an i128")]
            let whole = n as i128;
            Some(whole)
        }),
        Value::String(text) if text_too => text.parse().ok(),
        _ => None,
    }
}

fn float(json: &Value) -> Result<f64, Mismatch> {
    match json {
        Value::Number(n) => n.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
    .ok_or_else(|| Mismatch::expected("a number, `NaN`, `Infinity` or `-Infinity`", json))
}

/// One of some names.
fn one_of<'a, N: Iterator<Item = &'a str>>(json: &Value, names: impl Fn() -> N) -> Result<String, Mismatch> {
    let name = json.as_str().unwrap_or_default();
    if names().any(|known| known == name) {
        return Ok(name.to_owned());
    }
    let known = names().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    Err(Mismatch::expected(&format!("one of {known}"), json))
}

/// `{"tag", "val"}`: a case, and what it carries.
fn tagged(json: Value, cases: &[(&str, Option<Type>)]) -> Result<(String, Option<Box<Val>>), Mismatch> {
    let Value::Object(mut object) = json else { return Err(Mismatch::expected("an object with `tag`", &json)) };
    let tag = object.remove("tag").unwrap_or_default();
    let tag = one_of(&tag, || cases.iter().map(|(name, _)| *name)).map_err(|e| e.under("tag"))?;
    let carried = cases.iter().find(|(name, _)| *name == tag).and_then(|(_, ty)| ty.clone());
    let val = members(object, carried.map(|ty| ("val", ty)).into_iter(), |_, val| Box::new(val))?;
    Ok((tag, val.into_iter().next()))
}

/// JSON of a value, which is of the type. `None` for what JSON has no word for.
pub(super) fn to_json(val: &Val, ty: &Type) -> Option<Value> {
    let items = |vals: &[Val], types: &mut dyn Iterator<Item = Type>| {
        vals.iter().zip(types).map(|(val, ty)| to_json(val, &ty)).collect::<Option<Vec<_>>>().map(Value::Array)
    };
    Some(match (val, ty) {
        (Val::Bool(b), _) => json!(b),
        (Val::S8(n), _) => json!(n),
        (Val::U8(n), _) => json!(n),
        (Val::S16(n), _) => json!(n),
        (Val::U16(n), _) => json!(n),
        (Val::S32(n), _) => json!(n),
        (Val::U32(n), _) => json!(n),
        (Val::S64(n), _) => json!(n),
        (Val::U64(n), _) => json!(n),
        (Val::Float32(x), _) => number(f64::from(*x)),
        (Val::Float64(x), _) => number(*x),
        (Val::Char(c), _) => json!(c),
        (Val::String(text), _) => json!(text),
        (Val::List(vals), Type::List(list)) => match list.ty() {
            Type::U8 => {
                let bytes = vals.iter().map(|val| if let Val::U8(byte) = val { Some(*byte) } else { None });
                json!(BASE64.encode(bytes.collect::<Option<Vec<u8>>>()?))
            }
            ty => items(vals, &mut std::iter::repeat(ty))?,
        },
        (Val::Tuple(vals), Type::Tuple(tuple)) => items(vals, &mut tuple.types())?,
        (Val::Record(fields), Type::Record(record)) => {
            let each = fields.iter().zip(record.fields());
            Value::Object(
                each.map(|((name, val), f)| Some((name.clone(), to_json(val, &f.ty)?))).collect::<Option<_>>()?,
            )
        }
        (Val::Variant(tag, val), Type::Variant(variant)) => {
            case(tag, val.as_deref(), variant.cases().find(|c| c.name == tag).and_then(|c| c.ty))?
        }
        (Val::Result(Ok(val)), Type::Result(result)) => case("ok", val.as_deref(), result.ok())?,
        (Val::Result(Err(val)), Type::Result(result)) => case("err", val.as_deref(), result.err())?,
        (Val::Enum(name), _) => json!(name),
        (Val::Flags(names), _) => json!(names),
        (Val::Option(None), _) => Value::Null,
        (Val::Option(Some(val)), Type::Option(option)) => {
            let inner = option.ty();
            let some = to_json(val, &inner)?;
            if matches!(inner, Type::Option(_)) { json!({ "some": some }) } else { some }
        }
        _ => return None,
    })
}

fn case(tag: &str, val: Option<&Val>, ty: Option<Type>) -> Option<Value> {
    let Some((val, ty)) = val.zip(ty) else { return Some(json!({ "tag": tag })) };
    Some(json!({ "tag": tag, "val": to_json(val, &ty)? }))
}

fn number(x: f64) -> Value {
    if x.is_nan() {
        json!("NaN")
    } else if x.is_infinite() {
        json!(if x > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        json!(x)
    }
}
