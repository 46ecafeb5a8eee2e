//! The differences between a component's interfaces and the contract's, in words.
//!
//! Types are compared by structure, as the component model does; a type with a name is compared once,
//! under its name, wherever it is used.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use wit_parser::{Function, Handle, InterfaceId, Resolve, Type, TypeDefKind, TypeId, TypeOwner};

use super::behind;

/// A comparison under way: what a component has, what the contract has, and what was found.
pub(super) struct Comparison<'a> {
    theirs: &'a Resolve,
    ours: &'a Resolve,
    compared: BTreeSet<(usize, usize)>,
    found: Vec<String>,
}

/// Where a type stands, for a sentence.
type Place<'a> = &'a str;

impl<'a> Comparison<'a> {
    pub(super) fn new(theirs: &'a Resolve, ours: &'a Resolve) -> Self {
        Self { theirs, ours, compared: BTreeSet::new(), found: Vec::new() }
    }

    pub(super) fn say(&mut self, sentence: String) {
        if !self.found.contains(&sentence) {
            self.found.push(sentence);
        }
    }

    pub(super) fn sentences(self) -> Vec<String> {
        self.found
    }

    /// Compares an interface that the component calls: it may use a part of it.
    pub(super) fn import(&mut self, theirs: InterfaceId, ours: InterfaceId, name: &str) {
        let (mine, contract) = (&self.theirs.interfaces[theirs], &self.ours.interfaces[ours]);
        for (function, f) in &mine.functions {
            match contract.functions.get(function) {
                Some(o) => self.function(f, o, name),
                None => {
                    let known = list(contract.functions.keys());
                    self.say(format!("it calls the function `{function}` of `{name}`, which has only {known}"));
                }
            }
        }
        self.types(theirs, ours, name);
    }

    /// Compares an interface that the kernel calls: all of it must be there.
    pub(super) fn export(&mut self, theirs: InterfaceId, ours: InterfaceId, name: &str) {
        let (mine, contract) = (&self.theirs.interfaces[theirs], &self.ours.interfaces[ours]);
        for (function, o) in &contract.functions {
            match mine.functions.get(function) {
                Some(f) => self.function(f, o, name),
                None => self.say(format!("`{name}` lacks the function `{}`", signature(self.ours, o))),
            }
        }
        self.types(theirs, ours, name);
    }

    /// Compares the types that have a name in an interface: also those that no function uses.
    fn types(&mut self, theirs: InterfaceId, ours: InterfaceId, name: &str) {
        let (mine, contract) = (&self.theirs.interfaces[theirs], &self.ours.interfaces[ours]);
        for (type_name, t) in &mine.types {
            if let Some(o) = contract.types.get(type_name) {
                let place = format!("the type `{type_name}` of `{name}`");
                self.ty(Type::Id(*t), Type::Id(*o), &place);
            }
        }
    }

    fn function(&mut self, theirs: &Function, ours: &Function, interface: &str) {
        let what = format!("function `{}` of `{interface}`", ours.name);
        if theirs.kind.is_async() != ours.kind.is_async() {
            self.say(format!("{what} is async, the contract's is not"));
        }
        let names = |f: &Function| f.params.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        let (mine, contract) = (names(theirs), names(ours));
        for p in ours.params.iter().filter(|p| !mine.contains(&p.name)) {
            self.say(format!("{what} has no parameter `{}: {}`", p.name, text(self.ours, p.ty)));
        }
        for p in theirs.params.iter().filter(|p| !contract.contains(&p.name)) {
            let has = text(self.theirs, p.ty);
            self.say(format!("{what} has a parameter `{}: {has}`, which the contract does not have", p.name));
        }
        self.order(&what, "parameters", &mine, &contract);
        for o in &ours.params {
            if let Some(t) = theirs.params.iter().find(|p| p.name == o.name) {
                self.ty(t.ty, o.ty, &format!("parameter `{}` of {what}", o.name));
            }
        }
        match (theirs.result, ours.result) {
            (None, None) => {}
            (Some(t), Some(o)) => self.ty(t, o, &format!("the result of {what}")),
            (Some(t), None) => {
                self.say(format!("{what} returns {}, the contract's returns nothing", text(self.theirs, t)));
            }
            (None, Some(o)) => {
                self.say(format!("{what} returns nothing, the contract's returns {}", text(self.ours, o)));
            }
        }
    }

    /// Says when the same names stand in another order.
    fn order(&mut self, what: &str, kind: &str, theirs: &[String], ours: &[String]) {
        let sorted = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
        if theirs != ours && sorted(theirs) == sorted(ours) {
            let (has, is) = (list(theirs), list(ours));
            self.say(format!("{what} has its {kind} in the order {has}, the contract's is {is}"));
        }
    }

    fn ty(&mut self, theirs: Type, ours: Type, place: Place<'_>) {
        match (behind(self.theirs, theirs), behind(self.ours, ours)) {
            (Type::Id(t), Type::Id(o)) => self.defined(t, o, place),
            (t, o) if t == o => {}
            (t, o) => self.differ(t, o, place),
        }
    }

    fn differ(&mut self, theirs: Type, ours: Type, place: Place<'_>) {
        let (has, is) = (text(self.theirs, theirs), text(self.ours, ours));
        self.say(format!("{place} is {has}, the contract's is {is}"));
    }

    fn defined(&mut self, theirs: TypeId, ours: TypeId, place: Place<'_>) {
        if !self.compared.insert((theirs.index(), ours.index())) {
            return;
        }
        let name = named(self.ours, ours);
        let place = name.as_deref().unwrap_or(place);
        let (t, o) = (&self.theirs.types[theirs].kind, &self.ours.types[ours].kind);
        match (t, o) {
            (TypeDefKind::Record(t), TypeDefKind::Record(o)) => {
                let fields =
                    |fields: &[wit_parser::Field]| fields.iter().map(|f| (f.name.clone(), Some(f.ty))).collect();
                self.members(place, "field", fields(&t.fields), fields(&o.fields));
            }
            (TypeDefKind::Variant(t), TypeDefKind::Variant(o)) => {
                let cases = |cases: &[wit_parser::Case]| cases.iter().map(|c| (c.name.clone(), c.ty)).collect();
                self.members(place, "case", cases(&t.cases), cases(&o.cases));
            }
            (TypeDefKind::Enum(t), TypeDefKind::Enum(o)) => {
                let cases = |e: &wit_parser::Enum| e.cases.iter().map(|c| (c.name.clone(), None)).collect();
                self.members(place, "case", cases(t), cases(o));
            }
            (TypeDefKind::Flags(t), TypeDefKind::Flags(o)) => {
                let flags = |f: &wit_parser::Flags| f.flags.iter().map(|f| (f.name.clone(), None)).collect();
                self.members(place, "flag", flags(t), flags(o));
            }
            (TypeDefKind::Option(t), TypeDefKind::Option(o)) => {
                self.ty(*t, *o, &format!("what is optional in {place}"));
            }
            (TypeDefKind::List(t), TypeDefKind::List(o)) => self.ty(*t, *o, &format!("an element of {place}")),
            (TypeDefKind::Tuple(t), TypeDefKind::Tuple(o)) if t.types.len() == o.types.len() => {
                for (i, (t, o)) in t.types.iter().zip(&o.types).enumerate() {
                    self.ty(*t, *o, &format!("element {i} of {place}"));
                }
            }
            (TypeDefKind::Result(t), TypeDefKind::Result(o))
                if t.ok.is_some() == o.ok.is_some() && t.err.is_some() == o.err.is_some() =>
            {
                for (t, o, which) in [(t.ok, o.ok, "success"), (t.err, o.err, "error")] {
                    if let (Some(t), Some(o)) = (t, o) {
                        self.ty(t, o, &format!("the {which} of {place}"));
                    }
                }
            }
            _ => self.differ(Type::Id(theirs), Type::Id(ours), place),
        }
    }

    /// Compares the fields of records and the cases of variants, enums and flags.
    fn members(
        &mut self,
        place: Place<'_>,
        kind: &str,
        theirs: Vec<(String, Option<Type>)>,
        ours: Vec<(String, Option<Type>)>,
    ) {
        let names = |all: &[(String, Option<Type>)]| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let (mine, contract) = (names(&theirs), names(&ours));
        for (name, ty) in &ours {
            let Some((_, t)) = theirs.iter().find(|(n, _)| n == name) else {
                let of = ty.map(|ty| format!(": {}", text(self.ours, ty))).unwrap_or_default();
                self.say(format!("{place} lacks the {kind} `{name}{of}`"));
                continue;
            };
            let member = format!("{kind} `{name}` of {place}");
            match (t, ty) {
                (Some(t), Some(o)) => self.ty(*t, *o, &member),
                (None, None) => {}
                (Some(t), None) => {
                    self.say(format!("{member} carries {}, the contract's nothing", text(self.theirs, *t)));
                }
                (None, Some(o)) => {
                    self.say(format!("{member} carries nothing, the contract's {}", text(self.ours, *o)));
                }
            }
        }
        for (name, _) in theirs.iter().filter(|(name, _)| !contract.contains(name)) {
            self.say(format!("{place} has a {kind} `{name}`, which the contract does not have"));
        }
        self.order(place, &format!("{kind}s"), &mine, &contract);
    }
}

/// A type that has a name in an interface, for a sentence.
fn named(resolve: &Resolve, id: TypeId) -> Option<String> {
    let def = &resolve.types[id];
    let TypeOwner::Interface(interface) = def.owner else { return None };
    Some(format!("{} `{}` of `{}`", def.kind.as_str(), def.name.as_ref()?, resolve.id_of(interface)?))
}

/// A function as WIT has it.
pub(super) fn signature(resolve: &Resolve, function: &Function) -> String {
    let params: Vec<_> = function.params.iter().map(|p| format!("{}: {}", p.name, text(resolve, p.ty))).collect();
    let keyword = if function.kind.is_async() { "async func" } else { "func" };
    let mut signature = format!("{}: {keyword}({})", function.name, params.join(", "));
    if let Some(result) = function.result {
        // Writing to a string does not fail.
        let _ = write!(signature, " -> {}", text(resolve, result));
    }
    signature
}

/// A type as WIT has it: a name where it has one, its structure where not.
fn text(resolve: &Resolve, ty: Type) -> String {
    let id = match behind(resolve, ty) {
        Type::Id(id) => id,
        Type::ErrorContext => return "error-context".to_owned(),
        primitive => return format!("{primitive:?}").to_lowercase(),
    };
    let def = &resolve.types[id];
    let optional = |ty: &Option<Type>| ty.map_or("_".to_owned(), |ty| text(resolve, ty));
    match &def.kind {
        TypeDefKind::Option(t) => format!("option<{}>", text(resolve, *t)),
        TypeDefKind::List(t) => format!("list<{}>", text(resolve, *t)),
        TypeDefKind::FixedLengthList(t, n) => format!("list<{}, {n}>", text(resolve, *t)),
        TypeDefKind::Map(k, v) => format!("map<{}, {}>", text(resolve, *k), text(resolve, *v)),
        TypeDefKind::Result(r) => format!("result<{}, {}>", optional(&r.ok), optional(&r.err)),
        TypeDefKind::Tuple(t) => {
            let types: Vec<_> = t.types.iter().map(|t| text(resolve, *t)).collect();
            format!("tuple<{}>", types.join(", "))
        }
        TypeDefKind::Handle(Handle::Own(id)) => format!("own<{}>", resource(resolve, *id)),
        TypeDefKind::Handle(Handle::Borrow(id)) => format!("borrow<{}>", resource(resolve, *id)),
        TypeDefKind::Future(t) => format!("future<{}>", optional(t)),
        TypeDefKind::Stream(t) => format!("stream<{}>", optional(t)),
        kind => match &def.name {
            Some(name) => format!("{} {name}", kind.as_str()),
            None => kind.as_str().to_owned(),
        },
    }
}

/// The name of a resource.
fn resource(resolve: &Resolve, id: TypeId) -> String {
    resolve.types[id].name.clone().unwrap_or_else(|| "resource".to_owned())
}

fn list(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let names: Vec<_> = names.into_iter().map(|n| format!("`{}`", n.as_ref())).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
