//! Types of the contracts as JSON schemas, in the forms that `crate::json` reads and writes.

use std::collections::BTreeMap;

use prost_reflect::{FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

/// Package whose names are shown without it.
const PACKAGE: &str = "openstorage.api.";

/// The definitions that were referred to so far, and those that must still be written.
#[derive(Default)]
pub(super) struct Schemas {
    done: BTreeMap<String, Value>,
    open: Vec<MessageDescriptor>,
}

impl Schemas {
    /// A reference to a message's definition.
    pub fn reference(&mut self, message: &MessageDescriptor) -> Value {
        let name = short_name(message.full_name());
        if !self.done.contains_key(&name) {
            self.done.insert(name.clone(), Value::Null);
            self.open.push(message.clone());
        }
        json!({ "$ref": format!("#/definitions/{name}") })
    }

    /// The schema of a field, with its description.
    pub fn field(&mut self, field: &FieldDescriptor) -> Value {
        let mut schema = if field.is_map() {
            let Kind::Message(entry) = field.kind() else {
                unreachable!("a map's kind is its entry")
            };
            json!({ "type": "object", "additionalProperties": self.kind(&entry.map_entry_value_field().kind()) })
        } else if field.is_list() {
            json!({ "type": "array", "items": self.kind(&field.kind()) })
        } else {
            self.kind(&field.kind())
        };
        if let Some(text) = comment(&field.parent_message().parent_file(), field.path()) {
            schema["description"] = text.into();
        }
        schema
    }

    /// All definitions, also of what the referred messages refer to.
    pub fn finish(mut self) -> Map<String, Value> {
        while let Some(message) = self.open.pop() {
            let properties: Map<String, Value> = message
                .fields()
                .map(|field| (field.name().to_owned(), self.field(&field)))
                .collect();
            let mut schema = json!({ "type": "object", "properties": properties });
            if let Some(text) = comment(&message.parent_file(), message.path()) {
                schema["description"] = text.into();
            }
            self.done.insert(short_name(message.full_name()), schema);
        }
        self.done.into_iter().collect()
    }

    fn kind(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                json!({ "type": "integer", "format": "int32" })
            }
            Kind::Uint32 | Kind::Fixed32 => json!({ "type": "integer", "format": "int64" }),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                json!({ "type": "string", "format": "int64" })
            }
            Kind::Uint64 | Kind::Fixed64 => json!({ "type": "string", "format": "uint64" }),
            Kind::Float => json!({ "type": "number", "format": "float" }),
            Kind::Double => json!({ "type": "number", "format": "double" }),
            Kind::String => json!({ "type": "string" }),
            Kind::Bytes => json!({ "type": "string", "format": "byte" }),
            Kind::Enum(names) => {
                let names: Vec<String> = names.values().map(|v| v.name().to_owned()).collect();
                json!({ "type": "string", "enum": names })
            }
            Kind::Message(message) if is_timestamp(message) => {
                json!({ "type": "string", "format": "date-time" })
            }
            Kind::Message(message) => self.reference(message),
        }
    }
}

/// Whether a kind is a single value in JSON.
pub(super) fn is_scalar(kind: &Kind) -> bool {
    !matches!(kind, Kind::Message(message) if !is_timestamp(message))
}

fn is_timestamp(message: &MessageDescriptor) -> bool {
    message.full_name() == "google.protobuf.Timestamp"
}

fn short_name(full: &str) -> String {
    full.strip_prefix(PACKAGE).unwrap_or(full).to_owned()
}

/// What the contract says about the thing at a path (`SourceCodeInfo`), its lines joined.
pub(super) fn comment(file: &FileDescriptor, path: &[i32]) -> Option<String> {
    let locations = &file
        .file_descriptor_proto()
        .source_code_info
        .as_ref()?
        .location;
    let location = locations.iter().find(|location| location.path == path)?;
    let lines: Vec<&str> = location
        .leading_comments()
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    (!lines.is_empty()).then(|| lines.join(" "))
}
