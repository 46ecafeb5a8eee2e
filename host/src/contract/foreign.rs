//! The functions of a component that was not written for this contract, as tools: their names, and
//! JSON Schemas (draft 2020-12) of what they take and give, from their WIT types alone.

use std::collections::BTreeMap;

use guest_build::DOCS_SECTION;
use serde_json::{Map, Value, json};
use wasmparser::{Parser, Payload};
use wit_parser::{Function, FunctionKind, Type, TypeDefKind, UnresolvedPackageGroup, WorldItem};

use super::{Fault, Shape, behind, drift};
use crate::abi::{Effect, ToolSpec};

/// Levels of a type that are read. wasmtime refuses more than 100.
const MAX_DEPTH: usize = 100;

/// The largest schema, in types: one that repeats itself can be far larger than its component.
const MAX_TYPES: usize = 5_000;

/// What a foreign component exports.
#[derive(Debug, Default)]
pub struct Toolbox {
    /// Its functions that can be called.
    pub tools: Vec<ForeignTool>,
    /// The others, each with the reason.
    pub left_out: Vec<String>,
}

/// An exported function as a tool.
#[derive(Debug)]
pub struct ForeignTool {
    /// As a model sees it; the name is that within the plugin.
    pub spec: ToolSpec,
    /// The export that has the function, unless it is an export itself.
    pub interface: Option<String>,
    /// The function's name there.
    pub function: String,
}

/// What a WIT text says of the functions that a component with its worlds exports, by their tools'
/// names.
#[derive(Clone, Debug, Default)]
pub struct Comments(BTreeMap<String, String>);

impl Comments {
    /// Reads a WIT text. Packages that it uses need not be there.
    ///
    /// # Errors
    /// `invalid_wit`, with the place.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        Self::read("its .wit", text)
    }

    /// Those that a component brings along, in the section that `aok plugin build` adds.
    pub(super) fn within(component: &[u8]) -> Result<Self, Fault> {
        // Sections of what is within the component have other owners.
        let mut depth = 0_u32;
        for payload in Parser::new(0).parse_all(component).map_while(Result::ok) {
            match payload {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::CustomSection(section) if depth == 0 && section.name() == DOCS_SECTION => {
                    return Self::read("its section aok-docs", &String::from_utf8_lossy(section.data()));
                }
                _ => {}
            }
        }
        Ok(Self::default())
    }

    fn read(what: &str, text: &str) -> Result<Self, Fault> {
        let group = UnresolvedPackageGroup::parse(what, text).map_err(|(sources, e)| Fault {
            code: "invalid_wit",
            message: format!("{}: {}", sources.render_location(e.kind().span()), e.kind()),
            hint: "correct it or take it away: only its comments are used".into(),
        })?;
        let mut comments = BTreeMap::new();
        let mut add = |name: String, function: &Function| {
            if let Some(text) = &function.docs.contents {
                comments.entry(name).or_insert_with(|| text.trim().to_owned());
            }
        };
        for package in std::iter::once(&group.main).chain(&group.nested) {
            for (_, interface) in package.interfaces.iter() {
                let Some(name) = &interface.name else { continue };
                let whole = package.name.interface_id(name);
                for function in interface.functions.values() {
                    add(format!("{name}_{}", function.name), function);
                    add(whole_name(&whole, &function.name), function);
                }
            }
            for export in package.worlds.iter().flat_map(|(_, world)| world.exports.values()) {
                if let WorldItem::Function(function) = export {
                    add(function.name.clone(), function);
                }
            }
        }
        Ok(Self(comments))
    }

    /// What it says of the function that is the tool `name`.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl Shape {
    /// Whether it exports a function, alone or in an interface.
    pub(super) fn has_functions(&self) -> bool {
        self.exports().iter().any(|item| !item.functions.is_empty())
    }

    /// The exported functions as tools. A tool has the function's name; in an interface,
    /// `interface_function`, with the interface's whole name where two have the same.
    #[must_use]
    pub fn toolbox(&self) -> Toolbox {
        let mut functions = Vec::new();
        for (key, item) in &self.resolve.worlds[self.world].exports {
            match item {
                WorldItem::Function(function) => functions.push((None, function)),
                WorldItem::Interface { id, .. } => {
                    let name = self.resolve.name_world_key(key);
                    let all = self.resolve.interfaces[*id].functions.values();
                    functions.extend(all.map(|function| (Some(name.clone()), function)));
                }
                WorldItem::Type { .. } => {}
            }
        }
        let mut bearers: BTreeMap<&str, &str> = BTreeMap::new();
        let mut shared = Vec::new();
        for name in functions.iter().filter_map(|(interface, _)| interface.as_deref()) {
            if bearers.insert(short(name), name).is_some_and(|other| other != name) {
                shared.push(short(name).to_owned());
            }
        }
        let mut toolbox = Toolbox::default();
        for (interface, function) in &functions {
            let tool = match interface.as_deref() {
                None => function.name.clone(),
                Some(name) if shared.iter().any(|s| s == short(name)) => whole_name(name, &function.name),
                Some(name) => format!("{}_{}", short(name), function.name),
            };
            match self.foreign_tool(tool, interface.clone(), function) {
                Ok(tool) => toolbox.tools.push(tool),
                Err(why) => {
                    let of = interface.as_ref().map(|name| format!(" of `{name}`")).unwrap_or_default();
                    toolbox.left_out.push(format!("the function `{}`{of} is no tool: {why}", function.name));
                }
            }
        }
        toolbox
    }

    fn foreign_tool(
        &self,
        name: String,
        interface: Option<String>,
        function: &Function,
    ) -> Result<ForeignTool, String> {
        match function.kind {
            FunctionKind::Freestanding | FunctionKind::AsyncFreestanding => {}
            _ => return Err(RESOURCE.into()),
        }
        let mut schemas = Schemas { shape: self, types: 0 };
        let mut input = Members::default();
        for parameter in &function.params {
            let schema =
                schemas.of(parameter.ty, 0).map_err(|why| format!("its parameter `{}`: {why}", parameter.name))?;
            input.add(&parameter.name, schema, !self.is_option(parameter.ty));
        }
        let answer = function.result.and_then(|ty| self.success(ty));
        let output = answer.map_or_else(|| Ok(json!({ "type": "null" })), |ty| schemas.of(ty, 0));
        if let (_, Some(ty)) = function.result.map(|ty| self.outcome(ty)).unwrap_or_default() {
            schemas.of(ty, 0).map_err(|why| format!("its error: {why}"))?;
        }
        let documented = self.comments.as_ref().ok().and_then(|comments| comments.of(&name)).map(str::to_owned);
        let signature = || {
            format!(
                "`{}`{}",
                drift::signature(&self.resolve, function),
                interface.as_ref().map(|name| format!(" of `{name}`")).unwrap_or_default()
            )
        };
        let spec = ToolSpec {
            description: documented.unwrap_or_else(signature),
            name,
            input_schema: input.object(),
            output_schema: Some(output.map_err(|why| format!("its result: {why}"))?),
            // Nothing says that it is less.
            effect: Effect::Destructive,
        };
        Ok(ForeignTool { spec, interface, function: function.name.clone() })
    }

    /// What a function gives when it succeeds; `None` for nothing.
    fn success(&self, ty: Type) -> Option<Type> {
        match self.outcome(ty) {
            (None, None) if !self.is_result(ty) => Some(ty),
            (ok, _) => ok,
        }
    }

    /// The two sides of a `result`.
    fn outcome(&self, ty: Type) -> (Option<Type>, Option<Type>) {
        match self.kind(ty) {
            Some(TypeDefKind::Result(r)) => (r.ok, r.err),
            _ => (None, None),
        }
    }

    fn is_result(&self, ty: Type) -> bool {
        matches!(self.kind(ty), Some(TypeDefKind::Result(_)))
    }

    fn is_option(&self, ty: Type) -> bool {
        matches!(self.kind(ty), Some(TypeDefKind::Option(_)))
    }

    fn kind(&self, ty: Type) -> Option<&TypeDefKind> {
        match behind(&self.resolve, ty) {
            Type::Id(id) => Some(&self.resolve.types[id].kind),
            _ => None,
        }
    }
}

const RESOURCE: &str = "it has to do with a resource, which lives no longer than one call";

/// An interface's name without its package and version.
fn short(interface: &str) -> &str {
    let name = interface.rsplit('/').next().unwrap_or(interface);
    name.split('@').next().unwrap_or(name)
}

/// A tool's name that tells its interface from all others.
fn whole_name(interface: &str, function: &str) -> String {
    format!("{}_{function}", interface.replace([':', '/', '@', '.'], "_"))
}

/// The members of an object's schema.
#[derive(Default)]
struct Members {
    properties: Map<String, Value>,
    required: Vec<String>,
}

impl Members {
    fn add(&mut self, name: &str, schema: Value, required: bool) {
        self.properties.insert(name.to_owned(), schema);
        if required {
            self.required.push(name.to_owned());
        }
    }

    fn object(self) -> Value {
        json!({
            "type": "object",
            "properties": self.properties,
            "required": self.required,
            "additionalProperties": false,
        })
    }
}

/// Makes schemas and counts what they hold.
struct Schemas<'a> {
    shape: &'a Shape,
    types: usize,
}

impl Schemas<'_> {
    fn of(&mut self, ty: Type, depth: usize) -> Result<Value, String> {
        self.types += 1;
        if depth > MAX_DEPTH || self.types > MAX_TYPES {
            return Err("its type is too large for a schema".into());
        }
        let integer = |least: i64, most: u64| json!({ "type": "integer", "minimum": least, "maximum": most });
        // A number beyond 2^53 is a text in many a client.
        let wide = |least: i64, most: u64, pattern: &str| json!({ "type": ["integer", "string"], "minimum": least, "maximum": most, "pattern": pattern });
        let id = match behind(&self.shape.resolve, ty) {
            Type::Bool => return Ok(json!({ "type": "boolean" })),
            Type::U8 => return Ok(integer(0, u8::MAX.into())),
            Type::U16 => return Ok(integer(0, u16::MAX.into())),
            Type::U32 => return Ok(integer(0, u32::MAX.into())),
            Type::U64 => return Ok(wide(0, u64::MAX, "^[0-9]+$")),
            Type::S8 => return Ok(integer(i8::MIN.into(), 127)),
            Type::S16 => return Ok(integer(i16::MIN.into(), 32_767)),
            Type::S32 => return Ok(integer(i32::MIN.into(), 2_147_483_647)),
            Type::S64 => return Ok(wide(i64::MIN, i64::MAX.unsigned_abs(), "^-?[0-9]+$")),
            Type::F32 | Type::F64 => {
                return Ok(json!({ "type": ["number", "string"], "pattern": "^(NaN|-?Infinity)$" }));
            }
            Type::Char => return Ok(json!({ "type": "string", "minLength": 1, "maxLength": 1 })),
            Type::String => return Ok(json!({ "type": "string" })),
            Type::ErrorContext => return Err("an error context cannot be told in JSON".into()),
            Type::Id(id) => id,
        };
        self.defined(&self.shape.resolve.types[id].kind, depth + 1)
    }

    fn defined(&mut self, kind: &TypeDefKind, depth: usize) -> Result<Value, String> {
        match kind {
            TypeDefKind::Record(record) => {
                let mut members = Members::default();
                for field in &record.fields {
                    let schema = self.of(field.ty, depth)?;
                    members.add(&field.name, schema, !self.shape.is_option(field.ty));
                }
                Ok(members.object())
            }
            TypeDefKind::Variant(variant) => {
                let cases = variant.cases.iter().map(|case| self.case(&case.name, case.ty, depth));
                Ok(json!({ "oneOf": cases.collect::<Result<Vec<_>, _>>()? }))
            }
            TypeDefKind::Result(result) => {
                let cases = [self.case("ok", result.ok, depth)?, self.case("err", result.err, depth)?];
                Ok(json!({ "oneOf": cases }))
            }
            TypeDefKind::Enum(e) => {
                let names: Vec<_> = e.cases.iter().map(|case| &case.name).collect();
                Ok(json!({ "type": "string", "enum": names }))
            }
            TypeDefKind::Flags(flags) => {
                let names: Vec<_> = flags.flags.iter().map(|flag| &flag.name).collect();
                Ok(json!({ "type": "array", "items": { "enum": names }, "uniqueItems": true }))
            }
            TypeDefKind::Option(inner) => {
                let mut some = self.of(*inner, depth)?;
                if self.shape.is_option(*inner) {
                    // Null says that there is none; there must be another word for one that is none.
                    let mut members = Members::default();
                    members.add("some", some, true);
                    some = members.object();
                }
                Ok(json!({ "anyOf": [some, { "type": "null" }] }))
            }
            TypeDefKind::List(inner) if behind(&self.shape.resolve, *inner) == Type::U8 => {
                Ok(json!({ "type": "string", "contentEncoding": "base64" }))
            }
            TypeDefKind::List(inner) => Ok(json!({ "type": "array", "items": self.of(*inner, depth)? })),
            TypeDefKind::Tuple(tuple) => {
                let items = tuple.types.iter().map(|ty| self.of(*ty, depth)).collect::<Result<Vec<_>, _>>()?;
                let count = items.len();
                Ok(json!({
                    "type": "array", "prefixItems": items, "items": false, "minItems": count, "maxItems": count,
                }))
            }
            TypeDefKind::Handle(_) | TypeDefKind::Resource => Err(RESOURCE.into()),
            TypeDefKind::Future(_) | TypeDefKind::Stream(_) => Err("a stream or future cannot be told in JSON".into()),
            other => Err(format!("a {} is not supported", other.as_str())),
        }
    }

    fn case(&mut self, name: &str, ty: Option<Type>, depth: usize) -> Result<Value, String> {
        let mut members = Members::default();
        members.add("tag", json!({ "const": name }), true);
        if let Some(ty) = ty {
            members.add("val", self.of(ty, depth)?, !self.shape.is_option(ty));
        }
        Ok(members.object())
    }
}
