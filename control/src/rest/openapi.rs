//! The description of the gateway (`/swagger.json`, OpenAPI 2.0), made from the contracts.
use super::gateway::{Gateway, Method};
use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor, OneofDescriptor};
use serde_json::{Map, Value, json};

/// The document.
pub fn document(gateway: &Gateway) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    let mut definitions = Definitions::default();
    for method in &gateway.methods {
        let path = paths.entry(method.route.path).or_insert_with(|| json!({}));
        path[method.route.verb.name()] = operation(method, &mut definitions);
    }
    definitions.all.insert("Error".into(), error_schema());
    json!({
        "swagger": "2.0",
        "info": {
            "title": "Keelblock: OpenStorage SDK",
            "description": "Volumes, nodes and attachments of a Keelblock cluster.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "schemes": ["http"],
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "paths": paths,
        "definitions": definitions.all,
    })
}

fn error_schema() -> Value {
    json!({ "type": "object", "properties": {
        "error": { "type": "string" },
        "code": { "type": "integer", "format": "int32", "description": "gRPC status code" },
        "message": { "type": "string" },
    }})
}

fn operation(method: &Method, definitions: &mut Definitions) -> Value {
    let in_path: Vec<&str> = method.route.path_fields().collect();
    let mut parameters: Vec<Value> = in_path
        .iter()
        .map(|name| json!({ "name": name, "in": "path", "required": true, "type": "string" }))
        .collect();
    if method.route.verb.has_body() {
        let schema = definitions.reference(&method.input);
        parameters
            .push(json!({ "name": "body", "in": "body", "required": true, "schema": schema }));
    } else {
        let scalar = |f: &FieldDescriptor| !f.is_map() && !matches!(f.kind(), Kind::Message(_));
        for field in method
            .input
            .fields()
            .filter(|f| scalar(f) && !in_path.contains(&f.name()))
        {
            let mut parameter = kind_schema(&field.kind(), definitions);
            parameter["name"] = json!(field.name());
            parameter["in"] = json!("query");
            parameters.push(parameter);
        }
    }
    json!({
        "operationId": format!("{}{}", method.route.service, method.route.method),
        "tags": [format!("OpenStorage{}", method.route.service)],
        "parameters": parameters,
        "responses": {
            "200": { "description": "Done.", "schema": definitions.reference(&method.output) },
            "default": { "description": "An error.", "schema": { "$ref": "#/definitions/Error" } },
        },
    })
}

/// Schemas of messages, each once.
#[derive(Default)]
struct Definitions {
    all: Map<String, Value>,
}

impl Definitions {
    fn reference(&mut self, message: &MessageDescriptor) -> Value {
        if message.full_name() == "google.protobuf.Timestamp" {
            return json!({ "type": "string", "format": "date-time" });
        }
        let name = message
            .full_name()
            .trim_start_matches("openstorage.api.")
            .to_owned();
        if !self.all.contains_key(&name) {
            // Messages can contain themselves.
            self.all.insert(name.clone(), Value::Null);
            let properties: Map<String, Value> = message
                .fields()
                .map(|field| (field.name().to_owned(), self.field(&field)))
                .collect();
            self.all.insert(
                name.clone(),
                json!({ "type": "object", "properties": properties }),
            );
        }
        json!({ "$ref": format!("#/definitions/{name}") })
    }

    fn field(&mut self, field: &FieldDescriptor) -> Value {
        if field.is_map()
            && let Kind::Message(entry) = field.kind()
        {
            let value = kind_schema(&entry.map_entry_value_field().kind(), self);
            return json!({ "type": "object", "additionalProperties": value });
        }
        let mut schema = kind_schema(&field.kind(), self);
        if field.cardinality() == Cardinality::Repeated {
            schema = json!({ "type": "array", "items": schema });
        }
        if let Some(oneof) = field
            .containing_oneof()
            .filter(|o: &OneofDescriptor| o.fields().len() > 1)
        {
            schema["description"] = json!(format!("One of those of {}.", oneof.name()));
        }
        schema
    }
}

fn kind_schema(kind: &Kind, definitions: &mut Definitions) -> Value {
    match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::String => json!({ "type": "string" }),
        Kind::Bytes => json!({ "type": "string", "format": "byte" }),
        Kind::Double | Kind::Float => json!({ "type": "number" }),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 | Kind::Uint32 | Kind::Fixed32 => {
            json!({ "type": "integer", "format": "int32" })
        }
        // As strings, since JavaScript has no 64-bit integers.
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            json!({ "type": "string", "format": "int64" })
        }
        Kind::Uint64 | Kind::Fixed64 => json!({ "type": "string", "format": "uint64" }),
        Kind::Enum(values) => {
            let names: Vec<String> = values.values().map(|v| v.name().to_owned()).collect();
            json!({ "type": "string", "enum": names })
        }
        Kind::Message(message) => definitions.reference(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelblock_api::json::Codec;
    use tonic::service::Routes;

    #[test]
    fn every_route_is_described_and_every_reference_leads_somewhere() {
        let gateway = Gateway::new(Routes::default(), Codec::new()).unwrap();
        let document = document(&gateway);
        for method in &gateway.methods {
            assert!(
                document["paths"][method.route.path][method.route.verb.name()].is_object(),
                "{}",
                method.route.path
            );
        }
        let text = document.to_string();
        for reference in text.split("#/definitions/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["definitions"][name].is_object(), "{name}");
        }
        assert_eq!(
            document["definitions"]["VolumeSpec"]["properties"]["size"]["format"],
            "uint64"
        );
    }
}
