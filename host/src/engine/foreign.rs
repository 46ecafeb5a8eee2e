//! Calls of components that were not written for the contract: any exported function, by its types.

use std::collections::BTreeMap;

use serde_json::Value;
use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::{Component, ComponentExportIndex, Instance, Type, Val};
use wasmtime::{Engine, Store};

use super::value::{arguments, to_json};
use crate::abi::{Errno, Error};
use crate::contract::{Fault, ForeignTool, Toolbox};

/// The functions of a component that can be called, by their tools' names within the plugin.
pub(super) struct Functions(BTreeMap<String, Function>);

/// An exported function.
struct Function {
    index: ComponentExportIndex,
    parameters: Vec<(String, Type)>,
    result: Option<Type>,
}

impl Functions {
    /// Finds the functions of `toolbox` in the component that it was made of.
    pub(super) fn new(engine: &Engine, component: &Component, toolbox: Toolbox) -> Result<Self, Fault> {
        let find = |tool: ForeignTool| {
            let (name, found) = (tool.spec.name.clone(), find(engine, component, &tool));
            let (index, ty) = found.ok_or_else(|| Fault {
                code: "invalid_component",
                message: format!("its function `{}` is not where it says", tool.function),
                hint: "report it as a bug".into(),
            })?;
            let parameters = ty.params().map(|(name, ty)| (name.to_owned(), ty)).collect();
            Ok((name, Function { index, parameters, result: ty.results().next() }))
        };
        toolbox.tools.into_iter().map(find).collect::<Result<_, _>>().map(Self)
    }

    /// A call of `tool` with its arguments in place.
    ///
    /// # Errors
    /// No such tool; arguments that are not of its types, with a JSON pointer.
    pub(super) fn call(&self, tool: &str, json: &str) -> Result<Call<'_>, Error> {
        let function = self.0.get(tool);
        let function = function.ok_or_else(|| Error::new(Errno::NotFound, format!("there is no function `{tool}`")))?;
        let wrong = |why: String| Error::new(Errno::Invalid, format!("the arguments of `{tool}` are wrong at {why}"));
        let json: Value = serde_json::from_str(json).map_err(|e| wrong(e.to_string()))?;
        let parameters = arguments(json, &function.parameters).map_err(|e| wrong(e.to_string()))?;
        Ok(Call { function, parameters })
    }
}

fn find(engine: &Engine, component: &Component, tool: &ForeignTool) -> Option<(ComponentExportIndex, ComponentFunc)> {
    let ty = component.component_type();
    let (parent, item) = match &tool.interface {
        None => (None, ty.get_export(engine, &tool.function)?.ty),
        Some(interface) => {
            let ComponentItem::ComponentInstance(instance) = ty.get_export(engine, interface)?.ty else { return None };
            let item = instance.get_export(engine, &tool.function)?.ty;
            (Some(component.get_export_index(None, interface)?), item)
        }
    };
    let ComponentItem::ComponentFunc(function) = item else { return None };
    Some((component.get_export_index(parent.as_ref(), &tool.function)?, function))
}

/// A call that can be made.
pub(super) struct Call<'a> {
    function: &'a Function,
    parameters: Vec<Val>,
}

impl Call<'_> {
    /// Makes the call. An `err` that the function returns is a tool's error, with it as `data`.
    pub(super) async fn run<T: Send>(
        self,
        store: &mut Store<T>,
        instance: &Instance,
        tool: &str,
    ) -> wasmtime::Result<Result<String, Error>> {
        let Self { function, parameters } = self;
        let callee = instance.get_func(&mut *store, function.index);
        let callee = callee.ok_or_else(|| wasmtime::Error::msg("the instance lacks the function"))?;
        let mut results = vec![Val::Bool(false); usize::from(function.result.is_some())];
        callee.call_async(&mut *store, &parameters, &mut results).await?;
        let Some((val, ty)) = results.first().zip(function.result.as_ref()) else { return Ok(Ok("null".to_owned())) };
        let untold = || Error::new(Errno::Unsupported, format!("the result of `{tool}` cannot be told in JSON"));
        let json = |val: &Val, ty: &Type| to_json(val, ty).ok_or_else(untold);
        let side = |val: &Option<Box<Val>>, ty: Option<Type>| match val.as_deref().zip(ty) {
            None => Ok(Value::Null),
            Some((val, ty)) => json(val, &ty),
        };
        Ok(match (val, ty) {
            (Val::Result(Ok(val)), Type::Result(result)) => side(val, result.ok()).map(|json| json.to_string()),
            (Val::Result(Err(val)), Type::Result(result)) => side(val, result.err()).and_then(|data| {
                let said = if data.is_null() { String::new() } else { format!(": {data}") };
                Err(Error {
                    data: Some(Box::new(data)),
                    ..Error::new(Errno::Io, format!("`{tool}` returned an error{said}"))
                })
            }),
            (val, ty) => json(val, ty).map(|json| json.to_string()),
        })
    }
}
