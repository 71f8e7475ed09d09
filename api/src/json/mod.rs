//! Messages as JSON, the way the REST gateway of the OpenStorage SDK writes them: snake_case names, 64-bit integers as strings,
//! enumerations by name, zero fields left out. What is read may also use the forms that proto3's JSON mapping allows (camelCase names,
//! numbers), and a field that the message does not have is an error that names it.
//!
//! [`Codec::encode`] and [`Codec::decode`] turn a body into a message and back; [`Codec::request`] also takes what a route and a query
//! string say (`parameters`). Which field is wrong is found out in `check`.

mod check;
mod parameters;

use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, ReflectMessage,
    SerializeOptions,
};
use serde_json::Value;

/// Why JSON is not the message that was expected.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// It is no JSON.
    #[error("the body is not valid JSON: {0}")]
    Syntax(#[source] serde_json::Error),
    /// A message is an object.
    #[error("the body must be a JSON object")]
    NoObject,
    /// The message has no such field.
    #[error("unknown field \"{field}\"")]
    UnknownField {
        /// Path of the field, as in `spec.size`.
        field: String,
    },
    /// A field's value is not what the field takes.
    #[error("field \"{field}\": {why}")]
    Value {
        /// Path of the field.
        field: String,
        /// What is wrong with the value.
        why: String,
    },
    /// No contract of this crate has the message; a mistake of ours.
    #[error("there is no message {0} in the contracts")]
    NoMessage(String),
}

/// Translates messages of this crate's contracts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Codec {
    pool: DescriptorPool,
}

impl Default for Codec {
    fn default() -> Self {
        Codec::new()
    }
}

impl Codec {
    /// A codec for all contracts.
    pub fn new() -> Self {
        let pool = DescriptorPool::decode(crate::DESCRIPTORS);
        Codec {
            pool: pool.expect("the descriptors were made by our own build"),
        }
    }

    /// The message as a JSON object.
    ///
    /// # Errors
    /// [`JsonError::NoMessage`] for a message that is not of this crate.
    pub fn encode<M: Message + Name>(&self, message: &M) -> Result<Vec<u8>, JsonError> {
        let descriptor = self.descriptor::<M>()?;
        let own_fault =
            |e: &dyn std::fmt::Display| JsonError::NoMessage(format!("{} ({e})", M::full_name()));
        let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
            .map_err(|e| own_fault(&e))?;
        self.encode_dynamic(&dynamic)
    }

    /// [`Codec::encode`] of a message that is only known by its descriptor.
    ///
    /// # Errors
    /// [`JsonError::NoMessage`] for a message that JSON cannot say, which none of this crate is.
    pub fn encode_dynamic(&self, message: &DynamicMessage) -> Result<Vec<u8>, JsonError> {
        let mut json = Vec::new();
        let options = SerializeOptions::new()
            .stringify_64_bit_integers(true)
            .use_enum_numbers(false)
            .use_proto_field_name(true)
            .skip_default_fields(true);
        message
            .serialize_with_options(&mut serde_json::Serializer::new(&mut json), &options)
            .map_err(|e| {
                JsonError::NoMessage(format!("{} ({e})", message.descriptor().full_name()))
            })?;
        Ok(json)
    }

    /// The message that a JSON object says. An empty body is an empty message.
    ///
    /// # Errors
    /// What is wrong, with the field's name. [`JsonError::NoMessage`] for a message that is not of this crate.
    pub fn decode<M: Message + Name + Default>(&self, body: &[u8]) -> Result<M, JsonError> {
        self.request(body, &[])
    }

    /// The message of a request: what its body says, and `parameters`, the pairs of its route and query string, which are set last.
    ///
    /// A parameter's name is a field's path (`options.deep`), and for a map's entry also the key (`labels[app]`, `labels.app`).
    /// A repeated field takes the parameter as often as it comes.
    ///
    /// # Errors
    /// As [`Codec::decode`].
    pub fn request<M: Message + Name + Default>(
        &self,
        body: &[u8],
        parameters: &[(String, String)],
    ) -> Result<M, JsonError> {
        self.request_dynamic(&self.descriptor::<M>()?, body, parameters)?
            .transcode_to()
            .map_err(|e| JsonError::NoMessage(format!("{} ({e})", M::full_name())))
    }

    /// [`Codec::request`] of a message that is only known by its descriptor.
    ///
    /// # Errors
    /// As [`Codec::decode`].
    pub fn request_dynamic(
        &self,
        descriptor: &MessageDescriptor,
        body: &[u8],
        parameters: &[(String, String)],
    ) -> Result<DynamicMessage, JsonError> {
        let mut object = parse(body)?;
        for (name, value) in parameters {
            parameters::set(&mut object, descriptor, name, value)?;
        }
        check::message(descriptor, object)
    }

    /// The descriptors of all contracts.
    pub fn descriptors(&self) -> &DescriptorPool {
        &self.pool
    }

    fn descriptor<M: Name>(&self) -> Result<MessageDescriptor, JsonError> {
        let name = M::full_name();
        self.pool
            .get_message_by_name(&name)
            .ok_or(JsonError::NoMessage(name))
    }
}

fn parse(body: &[u8]) -> Result<serde_json::Map<String, Value>, JsonError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(serde_json::Map::new());
    }
    // Nesting is bounded by serde_json (128 levels).
    match serde_json::from_slice(body).map_err(JsonError::Syntax)? {
        Value::Object(object) => Ok(object),
        _ => Err(JsonError::NoObject),
    }
}

/// A message from a JSON value, by the rules of proto3.
fn deserialize(
    descriptor: &MessageDescriptor,
    value: Value,
) -> Result<DynamicMessage, serde_json::Error> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(descriptor.clone(), value, &options)
}

#[cfg(test)]
mod tests;
