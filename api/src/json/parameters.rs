//! Parameters of a route or query string, set into the JSON of a request.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};

use super::JsonError;
use super::check::{field, is_well_known, map_value};

/// Sets one parameter. Later ones replace earlier ones, but for repeated fields, which collect them.
pub(super) fn set(
    object: &mut Map<String, Value>,
    descriptor: &MessageDescriptor,
    name: &str,
    value: &str,
) -> Result<(), JsonError> {
    set_at(object, descriptor, name, name, value)
}

/// Sets what is left of a path (`rest`) of the parameter `name`.
fn set_at(
    object: &mut Map<String, Value>,
    descriptor: &MessageDescriptor,
    name: &str,
    rest: &str,
    value: &str,
) -> Result<(), JsonError> {
    let unknown = || JsonError::UnknownField {
        field: name.to_owned(),
    };
    let (first, rest) = rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()));
    let field = field(descriptor, first).ok_or_else(unknown)?;
    // The body may have used the field's other name.
    let key = [field.name(), field.json_name()]
        .into_iter()
        .find(|key| object.contains_key(*key));
    let key = key.unwrap_or(field.name()).to_owned();
    if field.is_map() {
        let entry = rest
            .strip_prefix('.')
            .or_else(|| rest.strip_prefix('[')?.strip_suffix(']'))
            .ok_or_else(unknown)?;
        let kind = map_value(&field).ok_or_else(unknown)?;
        let value = scalar(&kind, value, name)?;
        inner(object, key, name)?.insert(entry.to_owned(), value);
        return Ok(());
    }
    if let Some(rest) = rest.strip_prefix('.') {
        let Kind::Message(descriptor) = field.kind() else {
            return Err(unknown());
        };
        if field.is_list() || is_well_known(&descriptor) {
            return Err(unknown());
        }
        return set_at(inner(object, key, name)?, &descriptor, name, rest, value);
    }
    if !rest.is_empty() {
        return Err(unknown());
    }
    put(object, key, &field, name, value)
}

fn put(
    object: &mut Map<String, Value>,
    key: String,
    field: &FieldDescriptor,
    name: &str,
    value: &str,
) -> Result<(), JsonError> {
    let value = scalar(&field.kind(), value, name)?;
    if !field.is_list() {
        object.insert(key, value);
        return Ok(());
    }
    match object
        .entry(key)
        .or_insert_with(|| Value::Array(Vec::new()))
    {
        Value::Array(items) => items.push(value),
        _ => {
            return Err(JsonError::Value {
                field: name.to_owned(),
                why: "the body has no list here".into(),
            });
        }
    }
    Ok(())
}

/// The object below a key, made if there is none.
fn inner<'a>(
    object: &'a mut Map<String, Value>,
    key: String,
    name: &str,
) -> Result<&'a mut Map<String, Value>, JsonError> {
    match object
        .entry(key)
        .or_insert_with(|| Value::Object(Map::new()))
    {
        Value::Object(inner) => Ok(inner),
        _ => Err(JsonError::Value {
            field: name.to_owned(),
            why: "the body has no object here".into(),
        }),
    }
}

/// A text as a value of a kind. Numbers and names may be texts in JSON too; what they are is checked with the whole message.
fn scalar(kind: &Kind, text: &str, name: &str) -> Result<Value, JsonError> {
    match kind {
        Kind::Bool => text.parse().map(Value::Bool).map_err(|_| JsonError::Value {
            field: name.to_owned(),
            why: format!("\"{text}\" is neither true nor false"),
        }),
        // By number, where it is one.
        Kind::Enum(_) => Ok(text
            .parse::<i32>()
            .map_or_else(|_| Value::from(text), Value::from)),
        Kind::Message(descriptor) if !is_well_known(descriptor) => Err(JsonError::Value {
            field: name.to_owned(),
            why: "a parameter sets a single value, not a message".into(),
        }),
        _ => Ok(Value::from(text)),
    }
}
