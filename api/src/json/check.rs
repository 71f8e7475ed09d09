//! Turns a JSON object into a message, and when that fails finds the field that is wrong: the deserializer only says what it did not
//! like, not where.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};

use super::{JsonError, deserialize};

/// The message, or what is wrong with the first field that is wrong.
pub(super) fn message(
    descriptor: &MessageDescriptor,
    object: Map<String, Value>,
) -> Result<DynamicMessage, JsonError> {
    let value = Value::Object(object);
    // A copy only for the search, which happens when somebody made a mistake.
    let copy = value.clone();
    deserialize(descriptor, value).map_err(|e| {
        let culprit = search(descriptor, &copy, "");
        // Two fields of one oneof are wrong together only.
        culprit.unwrap_or_else(|| JsonError::Value {
            field: descriptor.name().to_owned(),
            why: e.to_string(),
        })
    })
}

/// A field by its name in the contract or in JSON.
pub(super) fn field(descriptor: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    descriptor
        .get_field_by_name(name)
        .or_else(|| descriptor.get_field_by_json_name(name))
}

/// Whether a message type has a JSON form of its own, such as a timestamp's text.
pub(super) fn is_well_known(descriptor: &MessageDescriptor) -> bool {
    descriptor.parent_file().package_name() == "google.protobuf"
}

/// The wrong field in a message's JSON.
fn search(descriptor: &MessageDescriptor, value: &Value, path: &str) -> Option<JsonError> {
    let Value::Object(object) = value else {
        return None;
    };
    object.iter().find_map(|(name, value)| {
        let at = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        let Some(field) = field(descriptor, name) else {
            return Some(JsonError::UnknownField { field: at });
        };
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        let why = deserialize(descriptor, alone).err()?;
        let deeper = within(&field, value, &at);
        Some(deeper.unwrap_or_else(|| JsonError::Value {
            field: at,
            why: why.to_string(),
        }))
    })
}

/// The wrong field inside of a wrong field.
fn within(field: &FieldDescriptor, value: &Value, path: &str) -> Option<JsonError> {
    let kind = if field.is_map() {
        map_value(field)?
    } else {
        field.kind()
    };
    let Kind::Message(descriptor) = kind else {
        return None;
    };
    if is_well_known(&descriptor) {
        return None;
    }
    match value {
        Value::Array(items) if field.is_list() => items
            .iter()
            .enumerate()
            .find_map(|(i, item)| search(&descriptor, item, &format!("{path}[{i}]"))),
        Value::Object(entries) if field.is_map() => entries
            .iter()
            .find_map(|(key, item)| search(&descriptor, item, &format!("{path}[{key}]"))),
        other => search(&descriptor, other, path),
    }
}

/// What a map's values are.
pub(super) fn map_value(field: &FieldDescriptor) -> Option<Kind> {
    match field.kind() {
        Kind::Message(entry) => Some(entry.map_entry_value_field().kind()),
        _ => None,
    }
}
