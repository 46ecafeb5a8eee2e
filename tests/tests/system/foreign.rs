//! Components that nobody wrote for this kernel: their functions are tools, with schemas from their types.

use std::fmt::Write as _;
use std::fs;

use agent_os_kernel::capability::Rights;
use agent_os_kernel::kernel::Kernel;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Map, Value, json};

use super::support::World;

/// A type of WIT.
#[derive(Clone, Debug)]
enum Ty {
    Bool,
    /// Its name and its ends.
    Int(&'static str, i128, i128),
    F32,
    F64,
    Char,
    Text,
    Bytes,
    List(Box<Self>),
    Tuple(Vec<Self>),
    Option(Box<Self>),
    Result(Option<Box<Self>>, Option<Box<Self>>),
    Record(Vec<(String, Self)>),
    Variant(Vec<(String, Option<Self>)>),
    Enum(usize),
    Flags(usize),
}

const INTEGERS: [(&str, i128, i128); 8] = [
    ("u8", 0, u8::MAX as i128),
    ("s8", i8::MIN as i128, i8::MAX as i128),
    ("u16", 0, u16::MAX as i128),
    ("s16", i16::MIN as i128, i16::MAX as i128),
    ("u32", 0, u32::MAX as i128),
    ("s32", i32::MIN as i128, i32::MAX as i128),
    ("u64", 0, u64::MAX as i128),
    ("s64", i64::MIN as i128, i64::MAX as i128),
];

impl Ty {
    fn any(rng: &mut StdRng, depth: u32) -> Self {
        let inner = |rng: &mut StdRng| Self::any(rng, depth + 1);
        let some = |rng: &mut StdRng| rng.random_bool(0.6).then(|| Box::new(inner(rng)));
        let scalars = 7;
        match rng.random_range(0..if depth < 4 { scalars + 9 } else { scalars }) {
            0 => Self::Bool,
            1 | 2 => {
                let (name, least, most) = INTEGERS[rng.random_range(0..INTEGERS.len())];
                Self::Int(name, least, most)
            }
            3 => Self::F32,
            4 => Self::F64,
            5 => Self::Char,
            6 => Self::Text,
            7 => Self::Bytes,
            8 => Self::Enum(rng.random_range(1..40)),
            9 => Self::Flags(rng.random_range(1..=32)),
            10 => match inner(rng) {
                Self::Int("u8", ..) => Self::Bytes,
                other => Self::List(Box::new(other)),
            },
            11 => Self::Tuple((0..rng.random_range(1..4)).map(|_| inner(rng)).collect()),
            12 => Self::Option(Box::new(inner(rng))),
            13 => Self::Result(some(rng), some(rng)),
            14 => Self::Record((0..rng.random_range(1..5)).map(|i| (format!("field-{i}"), inner(rng))).collect()),
            _ => Self::Variant(
                (0..rng.random_range(1..5)).map(|i| (format!("case-{i}"), some(rng).map(|ty| *ty))).collect(),
            ),
        }
    }

    /// Its text, with what must be declared before it.
    fn wit(&self, declared: &mut String, named: &mut usize) -> String {
        let mut declare = |kind: &str, members: String, declared: &mut String| {
            *named += 1;
            writeln!(declared, "  {kind} t{named} {{ {members} }}").unwrap();
            format!("t{named}")
        };
        match self {
            Self::Bool => "bool".into(),
            Self::Int(name, ..) => (*name).into(),
            Self::F32 => "f32".into(),
            Self::F64 => "f64".into(),
            Self::Char => "char".into(),
            Self::Text => "string".into(),
            Self::Bytes => "list<u8>".into(),
            Self::Enum(count) => declare("enum", names("name", *count).join(", "), declared),
            Self::Flags(count) => declare("flags", names("flag", *count).join(", "), declared),
            Self::List(ty) => format!("list<{}>", ty.wit(declared, named)),
            Self::Option(ty) => format!("option<{}>", ty.wit(declared, named)),
            Self::Tuple(types) => {
                let types: Vec<_> = types.iter().map(|ty| ty.wit(declared, named)).collect();
                format!("tuple<{}>", types.join(", "))
            }
            Self::Result(ok, err) => {
                let mut side = |ty: &Self| ty.wit(declared, named);
                match (ok, err) {
                    (None, None) => "result".into(),
                    (Some(ok), None) => format!("result<{}>", side(ok)),
                    (None, Some(err)) => format!("result<_, {}>", side(err)),
                    (Some(ok), Some(err)) => format!("result<{}, {}>", side(ok), side(err)),
                }
            }
            Self::Record(fields) => {
                let fields: Vec<_> =
                    fields.iter().map(|(name, ty)| format!("{name}: {}", ty.wit(declared, named))).collect();
                *named += 1;
                writeln!(declared, "  record t{named} {{ {} }}", fields.join(", ")).unwrap();
                format!("t{named}")
            }
            Self::Variant(cases) => {
                let case = |(name, ty): &(String, Option<Self>)| match ty {
                    None => name.clone(),
                    Some(ty) => format!("{name}({})", ty.wit(declared, named)),
                };
                let cases: Vec<_> = cases.iter().map(case).collect();
                *named += 1;
                writeln!(declared, "  variant t{named} {{ {} }}", cases.join(", ")).unwrap();
                format!("t{named}")
            }
        }
    }

    /// A value of it, as the kernel writes it.
    fn value(&self, rng: &mut StdRng) -> Value {
        let tagged = |tag: &str, ty: Option<&Self>, rng: &mut StdRng| match ty {
            None => json!({ "tag": tag }),
            Some(ty) => json!({ "tag": tag, "val": ty.value(rng) }),
        };
        match self {
            Self::Bool => json!(rng.random_bool(0.5)),
            Self::Int(_, least, most) => {
                let n = match rng.random_range(0..4) {
                    0 => *least,
                    1 => *most,
                    _ => rng.random_range(*least..=*most),
                };
                u64::try_from(n).map_or_else(|_| json!(i64::try_from(n).unwrap()), |n| json!(n))
            }
            Self::F32 => special(rng).unwrap_or_else(|| json!(f64::from(rng.random::<f32>() * 1e6 - 5e5))),
            Self::F64 => special(rng).unwrap_or_else(|| json!(rng.random::<f64>() * 1e300 - 5e299)),
            Self::Char => json!(character(rng).to_string()),
            Self::Text => json!((0..rng.random_range(0..8)).map(|_| character(rng)).collect::<String>()),
            Self::Bytes => {
                let bytes: Vec<u8> = (0..rng.random_range(0..9)).map(|_| rng.random()).collect();
                json!(base64(&bytes))
            }
            Self::List(ty) => (0..rng.random_range(0..4)).map(|_| ty.value(rng)).collect(),
            Self::Tuple(types) => types.iter().map(|ty| ty.value(rng)).collect(),
            Self::Option(_) if rng.random_bool(0.3) => Value::Null,
            Self::Option(ty) if matches!(**ty, Self::Option(_)) => json!({ "some": ty.value(rng) }),
            Self::Option(ty) => ty.value(rng),
            Self::Result(ok, _) if rng.random_bool(0.5) => tagged("ok", ok.as_deref(), rng),
            Self::Result(_, err) => tagged("err", err.as_deref(), rng),
            Self::Record(fields) => {
                Value::Object(fields.iter().map(|(name, ty)| (name.clone(), ty.value(rng))).collect::<Map<_, _>>())
            }
            Self::Variant(cases) => {
                let (name, ty) = &cases[rng.random_range(0..cases.len())];
                tagged(name, ty.as_ref(), rng)
            }
            Self::Enum(count) => json!(names("name", *count)[rng.random_range(0..*count)]),
            Self::Flags(count) => {
                names("flag", *count).into_iter().filter(|_| rng.random_bool(0.4)).map(Value::from).collect()
            }
        }
    }

    /// Puts something that is of no type at all into the value; the JSON pointer to it.
    fn spoil(&self, value: &mut Value, rng: &mut StdRng) -> String {
        let deeper = rng.random_bool(0.85);
        let inner: Option<(String, &Self, &mut Value)> = match (self, &mut *value) {
            _ if !deeper => None,
            (Self::Option(_), Value::Null) => None,
            (Self::Option(ty), _) if !matches!(**ty, Self::Option(_)) => return ty.spoil(value, rng),
            (Self::Option(ty), Value::Object(o)) => o.get_mut("some").map(|v| ("some".into(), &**ty, v)),
            (Self::List(ty), Value::Array(items)) if !items.is_empty() => {
                let at = rng.random_range(0..items.len());
                Some((at.to_string(), ty, &mut items[at]))
            }
            (Self::Tuple(types), Value::Array(items)) => {
                let at = rng.random_range(0..items.len());
                Some((at.to_string(), &types[at], &mut items[at]))
            }
            (Self::Record(fields), Value::Object(o)) => {
                let (name, ty) = &fields[rng.random_range(0..fields.len())];
                o.get_mut(name).map(|v| (name.clone(), ty, v))
            }
            (Self::Variant(cases), Value::Object(o)) => {
                let tag = o["tag"].clone();
                let ty = cases.iter().find(|(name, _)| tag == **name).and_then(|(_, ty)| ty.as_ref());
                ty.zip(o.get_mut("val")).map(|(ty, v)| ("val".into(), ty, v))
            }
            (Self::Result(ok, err), Value::Object(o)) => {
                let ty = if o["tag"] == "ok" { ok } else { err };
                ty.as_deref().zip(o.get_mut("val")).map(|(ty, v)| ("val".into(), ty, v))
            }
            _ => None,
        };
        match inner {
            Some((segment, ty, inner)) => format!("/{segment}{}", ty.spoil(inner, rng)),
            None => {
                *value = json!({ "nobody": ["knows this"] });
                String::new()
            }
        }
    }
}

fn names(word: &str, count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{word}-{i}")).collect()
}

fn special(rng: &mut StdRng) -> Option<Value> {
    let specials = [json!("NaN"), json!("Infinity"), json!("-Infinity"), json!(0.0), json!(1.0)];
    specials.get(rng.random_range(0..12)).cloned()
}

fn character(rng: &mut StdRng) -> char {
    match rng.random_range(0..3) {
        0 => rng.random_range(' '..='~'),
        1 => *['\0', '"', '\\', '\n', 'ä', '€', '🦀', '\u{10ffff}'].get(rng.random_range(0..8)).unwrap(),
        _ => rng.random(),
    }
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for i in 0..4 {
            let letter = char::from(LETTERS[(bits >> (18 - 6 * i)) as usize & 63]);
            text.push(if i <= group.len() { letter } else { '=' });
        }
    }
    text
}

/// A component with a function `list<T> -> list<T>` for each of some types. A list is a pointer and a
/// length whatever is in it, so one body gives back any of them, and its elements pass through the
/// guest's memory both ways.
fn echoes(types: &[Ty]) -> Vec<u8> {
    let (mut declared, mut named) = (String::new(), 0);
    let mut functions = String::new();
    let mut exports = String::new();
    for (i, ty) in types.iter().enumerate() {
        let ty = ty.wit(&mut declared, &mut named);
        writeln!(functions, "  echo{i}: func(v: list<{ty}>) -> list<{ty}>;").unwrap();
        writeln!(exports, "(export \"test:any/api#echo{i}\" (func $echo))").unwrap();
    }
    let wit = format!("package test:any;\ninterface api {{\n{declared}{functions}}}\nworld w {{ export api; }}");
    let wat = format!(
        r#"(module
            (memory (export "memory") 64)
            (global $top (mut i32) (i32.const 64))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (global.set $top (i32.and
                    (i32.add (global.get $top) (i32.sub (local.get 2) (i32.const 1)))
                    (i32.sub (i32.const 0) (local.get 2))))
                (global.get $top)
                (global.set $top (i32.add (global.get $top) (local.get 3))))
            (func $echo (param i32 i32) (result i32)
                (i32.store (i32.const 8) (local.get 0))
                (i32.store (i32.const 12) (local.get 1))
                (i32.const 8))
            {exports})"#
    );
    guest_build::of_text(&wat, &[("any.wit", &wit)], "w").unwrap_or_else(|e| panic!("{e:#}\n{wit}"))
}

async fn call(kernel: &Kernel, tool: &str, arguments: &Value) -> Result<Value, String> {
    let report = kernel.call_tool(tool, &arguments.to_string(), Rights::default()).await.map_err(|e| e.to_string())?;
    report.outcome.map(|text| serde_json::from_str(&text).expect("a result is JSON")).map_err(|e| e.message)
}

async fn kernel(world: &World) -> Kernel {
    Kernel::builder(world.data()).start().await.expect("a kernel starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_of_wit_goes_in_and_comes_back_and_what_is_none_is_refused_with_its_place() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::new();
    let kernel = kernel(&world).await;
    for round in 0..8 {
        let types: Vec<_> = (0..24).map(|_| Ty::any(&mut rng, 0)).collect();
        let file = world.data().join(format!("any{round}.wasm"));
        fs::write(&file, echoes(&types)).unwrap();
        let plugin = kernel.register_plugin(&file).await.unwrap_or_else(|e| panic!("{e}: {types:?}"));
        assert_eq!((plugin.contract.as_deref(), plugin.tools.len()), (Some("foreign"), types.len()));
        for (i, ty) in types.iter().enumerate() {
            let tool = format!("any{round}__api_echo{i}");
            let output = kernel.tools().into_iter().find(|t| t.name == tool).and_then(|t| t.output_schema).unwrap();
            let output = jsonschema::draft202012::new(&output).unwrap();
            // The list itself may be base64.
            let echo = match ty {
                Ty::Int("u8", ..) => Ty::Bytes,
                ty => Ty::List(Box::new(ty.clone())),
            };
            for _ in 0..4 {
                let mut value = echo.value(&mut rng);
                let back = call(&kernel, &tool, &json!({ "v": value })).await;
                assert_eq!(back.as_ref(), Ok(&value), "{ty:?}");
                assert!(output.is_valid(&value), "{ty:?}: {value}");
                let place = echo.spoil(&mut value, &mut rng);
                let refused = call(&kernel, &tool, &json!({ "v": value })).await.expect_err("it is spoiled");
                assert!(refused.contains(&format!(" /v{place}:")), "{place} {refused}\n{ty:?}: {value}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_schema_cannot_say_is_refused_with_its_place_too() {
    let world = World::new();
    let kernel = kernel(&world).await;
    let types = [Ty::List(Box::new(Ty::Bytes)), Ty::F32, Ty::Int("u64", 0, u64::MAX.into())];
    let file = world.data().join("some.wasm");
    fs::write(&file, echoes(&types)).unwrap();
    kernel.register_plugin(&file).await.unwrap();
    for (i, value, says) in [
        (0, json!([["", "AA=="], ["A*=="]]), "/v/1/0: expected base64"),
        (1, json!([0.5, 1e300]), "/v/1: expected a number that a float32 can hold"),
        (2, json!([1, "99999999999999999999"]), "/v/1: expected an integer from 0 to 18446744073709551615"),
    ] {
        let refused = call(&kernel, &format!("some__api_echo{i}"), &json!({ "v": value })).await.expect_err("refused");
        assert!(refused.contains(says), "{refused}");
    }
    let texts = call(&kernel, "some__api_echo2", &json!({ "v": ["18446744073709551615", 3.0] })).await;
    assert_eq!(texts, Ok(json!([u64::MAX, 3])));
}

const SHOP: &str = r"
    package demo:shop@1.2.0;
    interface cart {
        record item { name: string, price: option<u64> }
        resource basket { constructor(); total: func() -> u64; }
        /// Lost on the way to a component.
        nothing: func();
        half: func(n: s32) -> result<s32, string>;
        check: func(it: item) -> result<_, item>;
        empty: func(b: basket);
        forever: func();
    }
    world w { export cart; export add: func(a: u32, b: u32) -> u32; }
";

/// Functions of plain values, in an interface and alone, and of what no tool can have.
fn shop() -> Vec<u8> {
    let wat = r#"(module
        (import "[export]demo:shop/cart@1.2.0" "[resource-new]basket" (func $new (param i32) (result i32)))
        (memory (export "memory") 1)
        (global $top (mut i32) (i32.const 1024))
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
            (global.set $top (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
            (global.get $top)
            (global.set $top (i32.add (global.get $top) (local.get 3))))
        (data (i32.const 64) "it is odd")
        (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
        (func (export "demo:shop/cart@1.2.0#nothing"))
        (func (export "demo:shop/cart@1.2.0#forever") (loop (br 0)))
        (func (export "demo:shop/cart@1.2.0#half") (param i32) (result i32)
            (if (i32.and (local.get 0) (i32.const 1))
                (then
                    (i32.store (i32.const 0) (i32.const 1))
                    (i32.store (i32.const 4) (i32.const 64))
                    (i32.store (i32.const 8) (i32.const 9)))
                (else
                    (i32.store (i32.const 0) (i32.const 0))
                    (i32.store (i32.const 4) (i32.shr_s (local.get 0) (i32.const 1)))))
            (i32.const 0))
        (func (export "demo:shop/cart@1.2.0#check") (param i32 i32 i32 i64) (result i32)
            (i32.store (i32.const 0) (i32.const 1))
            (i32.store (i32.const 8) (local.get 0))
            (i32.store (i32.const 12) (local.get 1))
            (i32.store (i32.const 16) (local.get 2))
            (i64.store (i32.const 24) (local.get 3))
            (i32.const 0))
        (func (export "demo:shop/cart@1.2.0#empty") (param i32))
        (func (export "demo:shop/cart@1.2.0#[constructor]basket") (result i32) (call $new (i32.const 1)))
        (func (export "demo:shop/cart@1.2.0#[method]basket.total") (param i32) (result i64) (i64.const 0)))"#;
    guest_build::of_text(wat, &[("shop.wit", SHOP)], "w").unwrap_or_else(|e| panic!("{e:#}"))
}

#[test]
fn a_strangers_component_is_dropped_in_and_its_functions_are_tools() {
    let world = World::new();
    let file = world.plugins().join("shop.wasm");
    fs::write(&file, shop()).unwrap();
    let manifest = "[limits]\nfuel = 1_000_000\n[tools.add]\neffect = \"pure\"\ndescription = \"Adds.\"\n";
    fs::write(world.plugins().join("shop.toml"), manifest).unwrap();

    let plugin = world.run(&["plugin", "ls", "--json"]).exits(0).lines();
    let plugin = plugin.iter().find(|p| p["name"] == "shop").unwrap();
    assert_eq!((&plugin["contract"], &plugin["kind"]), (&json!("foreign"), &json!(["tool"])), "{plugin}");
    let tools = ["add", "cart_nothing", "cart_half", "cart_check", "cart_forever"].map(|tool| format!("shop__{tool}"));
    assert_eq!(plugin["tools"], json!(tools));

    let tool = |name: &str| world.run(&["tool", "show", name, "--json"]).exits(0).lines().remove(0);
    let add = tool("shop__add");
    assert_eq!((&add["effect"], &add["description"]), (&json!("pure"), &json!("Adds.")), "{add}");
    assert_eq!(tool("cart_nothing")["description"], "`nothing: func()` of `demo:shop/cart@1.2.0`");
    let number = json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX });
    assert_eq!(add["output_schema"], number);
    assert_eq!(add["input_schema"]["properties"], json!({ "a": number, "b": number }));
    let check = tool("shop__cart_check");
    assert_eq!(check["effect"], "destructive");
    assert!(check["description"].as_str().unwrap().contains("demo:shop/cart@1.2.0"), "{check}");
    assert_eq!(check["input_schema"]["properties"]["it"]["required"], json!(["name"]), "{check}");

    let call = |tool: &str, arguments: &str| world.run(&["tool", "call", tool, arguments, "--json"]);
    let result = |tool: &str, arguments: &str| call(tool, arguments).exits(0).lines().remove(0)["result"].clone();
    assert_eq!(result("add", r#"{"a":2,"b":40.0}"#), json!(42));
    assert_eq!(result("cart_nothing", "{}"), Value::Null);
    assert_eq!(result("shop__cart_half", r#"{"n":-8}"#), json!(-4));
    let error =
        |tool: &str, arguments: &str, exit| call(tool, arguments).exits(exit).lines().remove(0)["error"].clone();
    let odd = error("cart_half", r#"{"n":7}"#, 1);
    assert_eq!(odd["data"], "it is odd", "{odd}");
    assert!(odd["message"].as_str().unwrap().contains("it is odd"), "{odd}");
    let item = json!({ "name": "Ö", "price": u64::MAX });
    let texts = r#"{"it":{"name":"Ö","price":"18446744073709551615"}}"#;
    assert_eq!(error("cart_check", texts, 1)["data"], item);
    assert_eq!(error("cart_check", r#"{"it":{"name":""}}"#, 1)["data"], json!({ "name": "", "price": null }));
    let late = error("cart_forever", "{}", 4);
    assert_eq!((&late["code"], &late["limit"]), (&json!("quota"), &json!("fuel")), "{late}");
    let wrong = world.run(&["tool", "call", "add", r#"{"a":1,"b":-1}"#]).exits(2);
    assert!(wrong.stderr.contains("wrong at /b"), "{}", wrong.stderr);

    let wit = world.plugins().join("shop.wit");
    fs::write(&wit, SHOP.replace("world w {", "world w { import far:away/thing@3.0.0;")).unwrap();
    assert_eq!(tool("cart_nothing")["description"], "Lost on the way to a component.");
    assert_eq!(tool("add")["description"], "Adds.", "the manifest comes first");
    fs::write(&wit, "package demo:shop; interface {").unwrap();
    let refused = world.run(&["plugin", "doctor", file.to_str().unwrap(), "--json"]).exits(2).lines().remove(0);
    assert_eq!(refused["diagnosis"]["code"], "invalid_wit", "{refused}");
    assert!(refused["diagnosis"]["message"].as_str().unwrap().contains(":1:"), "{refused}");
}

#[test]
fn what_of_a_strangers_component_is_no_tool_is_told() {
    let world = World::new();
    let file = world.plugins().join("shop.wasm");
    fs::write(&file, shop()).unwrap();
    let report = world.run(&["plugin", "doctor", file.to_str().unwrap(), "--json"]).exits(0).lines().remove(0);
    assert_eq!((&report["ok"], &report["contract"]), (&json!(true), &json!("foreign")), "{report}");
    let left_out: Vec<_> = report["left_out"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    for function in ["`empty` of `demo:shop/cart@1.2.0`", "[constructor]basket", "[method]basket.total"] {
        assert!(left_out.iter().any(|s| s.contains(function) && s.contains("resource")), "{function}: {left_out:?}");
    }
    assert_eq!(left_out.len(), 3);
    let text = world.run(&["plugin", "doctor", file.to_str().unwrap()]).exits(0).stdout;
    assert!(text.contains("not written for the contract") && text.contains("is no tool"), "{text}");

    let wit = "package a:b; interface i { resource r; take: func(r: r); } world w { export i; }";
    let only = world.plugins().join("only.wasm");
    fs::write(&only, guest_build::hollow(&[("a.wit", wit)], "w").unwrap()).unwrap();
    let refused = world.run(&["plugin", "doctor", only.to_str().unwrap(), "--json"]).exits(2).lines().remove(0);
    assert_eq!(refused["diagnosis"]["code"], "no_role", "{refused}");
    assert!(refused["diagnosis"]["message"].as_str().unwrap().contains("`take` of `a:b/i`"), "{refused}");
}

/// Functions of component-model async, one of them endless.
const CONCURRENT: &str = r#"(component
    (core module $m
        (import "" "return" (func $return (param i32)))
        (func (export "next") (param i32) (result i32)
            (call $return (i32.add (local.get 0) (i32.const 1))) (i32.const 0))
        (func (export "spin") (param i32) (result i32) (loop $again (br $again)) unreachable)
        (func (export "event") (param i32 i32 i32) (result i32) unreachable))
    (core func $return (canon task.return (result u32)))
    (core instance $i (instantiate $m (with "" (instance (export "return" (func $return))))))
    (func (export "next") async (param "n" u32) (result u32)
        (canon lift (core func $i "next") async (callback (core func $i "event"))))
    (func (export "spin") async (param "n" u32) (result u32)
        (canon lift (core func $i "spin") async (callback (core func $i "event")))))"#;

#[test]
fn a_component_of_component_model_async_is_a_toolbox_under_the_same_limits() {
    let world = World::new();
    fs::write(world.plugins().join("later.wasm"), wat::parse_str(CONCURRENT).unwrap()).unwrap();
    // The second run takes it from the code cache.
    for _ in 0..2 {
        let answer = world.run(&["tool", "call", "later__next", r#"{"n": 41}"#]).exits(0);
        assert_eq!(answer.stdout.trim(), "42");
    }
    // Little enough that no machine takes the wall limit's time for it.
    world.configure("[limits]\nfuel = 50000000");
    let stopped = world.run(&["tool", "call", "later__spin", r#"{"n": 1}"#]).exits(4);
    assert!(stopped.stderr.contains("fuel"), "{}", stopped.stderr);
}

/// A component that imports WASI 0.3: a function that answers at once, and one that is waited for.
const WASI03: &str = r#"(component
    (import "wasi:random/random@0.3.0" (instance $random (export "get-random-u64" (func (result u64)))))
    (import "wasi:clocks/monotonic-clock@0.3.0"
        (instance $clock (export "wait-for" (func async (param "how-long" u64)))))
    (core func $roll (canon lower (func $random "get-random-u64")))
    (core func $wait (canon lower (func $clock "wait-for")))
    (core module $m
        (import "" "roll" (func $roll (result i64)))
        (import "" "wait" (func $wait (param i64)))
        (func (export "roll") (result i64) (i64.shr_u (call $roll) (i64.const 12)))
        (func (export "nap") (param i64) (result i64) (call $wait (local.get 0)) (local.get 0)))
    (core instance $i (instantiate $m (with "" (instance
        (export "roll" (func $roll)) (export "wait" (func $wait))))))
    (func (export "roll") (result u64) (canon lift (core func $i "roll")))
    (func (export "nap") async (param "ns" u64) (result u64) (canon lift (core func $i "nap"))))"#;

#[test]
fn wasi_03_is_for_tools_of_an_operator_who_allows_it() {
    let world = World::new();
    let file = world.plugins().join("new.wasm");
    fs::write(&file, wat::parse_str(WASI03).unwrap()).unwrap();
    let doctor = || world.run(&["plugin", "doctor", file.to_str().unwrap(), "--json"]);
    let plugin = || {
        let all = world.run(&["plugin", "ls", "--json"]).exits(0).lines();
        all.into_iter().find(|p| p["name"] == "new").unwrap()
    };
    let call = |tool: &str, arguments: &str| world.run(&["tool", "call", tool, arguments]);
    assert_eq!(doctor().exits(2).lines()[0]["diagnosis"]["code"], "wasi03_off");
    call("new__roll", "{}").exits(2);
    assert_eq!((&plugin()["diagnosis"]["code"], &plugin()["tools"]), (&json!("wasi03_off"), &json!([])));

    world.configure("[plugins]\nwasi03 = true");
    assert_eq!(doctor().exits(0).lines()[0]["needs"]["wasi03"], true);
    let (one, two) = (call("new__roll", "{}").exits(0).stdout, call("new__roll", "{}").exits(0).stdout);
    assert!(one.trim().parse::<u64>().is_ok() && one != two, "{one} {two}");
    assert_eq!(call("new__nap", r#"{"ns": 1000000}"#).exits(0).stdout.trim(), "1000000");
    let audit = world.run(&["audit", "tail", "--json"]).exits(0).lines();
    let loaded = audit.iter().find(|r| r["event"] == "plugin-load" && r["decision"] == "allow").unwrap();
    assert_eq!(loaded["by"], "wasi03", "{loaded}");

    world.configure("[plugins]\nwasi03 = true\n[limits]\nwall_ms = 300");
    let late = call("new__nap", r#"{"ns": 3600000000000}"#).exits(4);
    assert!(late.stderr.contains("wall"), "{}", late.stderr);

    // What is remembered of it does not outlast the permission.
    world.configure("");
    call("new__roll", "{}").exits(2);
    assert_eq!(plugin()["diagnosis"]["code"], "wasi03_off");
}

/// A component that knows what its functions are for.
fn documented(docs: &str) -> Vec<u8> {
    let wit = format!("package demo:units;\n\nworld units {{\n  {docs}\n  export double: func(n: u32) -> u32;\n}}\n");
    let wat = r#"(module (func (export "double") (param i32) (result i32) (i32.shl (local.get 0) (i32.const 1)))
        (memory (export "memory") 1))"#;
    let component = guest_build::of_text(wat, &[("units.wit", &wit)], "units").unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("units.wit"), &wit).unwrap();
    guest_build::document(component, dir.path()).unwrap()
}

#[test]
fn a_component_brings_the_comments_of_its_functions_along() {
    let world = World::new();
    let file = world.plugins().join("units.wasm");
    let description = || {
        let tool = world.run(&["tool", "show", "units__double", "--json"]).exits(0).lines().remove(0);
        tool["description"].as_str().unwrap().to_owned()
    };
    fs::write(&file, documented("/// Doubles a number.\n  /// It wraps at 2^32.")).unwrap();
    assert_eq!(world.run(&["tool", "call", "units__double", r#"{"n": 21}"#]).exits(0).stdout.trim(), "42");
    assert_eq!(description(), "Doubles a number.\nIt wraps at 2^32.");
    // A text beside the file is nearer than the one inside.
    fs::write(
        world.plugins().join("units.wit"),
        "package a:b; world w { /// Twice.\n export double: func(n: u32) -> u32; }",
    )
    .unwrap();
    assert_eq!(description(), "Twice.");
    fs::remove_file(world.plugins().join("units.wit")).unwrap();
    fs::write(&file, documented("")).unwrap();
    assert!(description().contains("func(n: u32) -> u32"));

    // A section that is no WIT is told, wherever it came from.
    let mut bytes = documented("");
    let text = bytes.windows(5).rposition(|w| w == b"world").unwrap();
    bytes[text..text + 5].copy_from_slice(b"wor!d");
    fs::write(&file, bytes).unwrap();
    let refused = world.run(&["plugin", "doctor", file.to_str().unwrap(), "--json"]).exits(2).lines().remove(0);
    assert_eq!(refused["diagnosis"]["code"], "invalid_wit", "{refused}");
    assert!(refused["diagnosis"]["message"].as_str().unwrap().contains("aok-docs"), "{refused}");
}
