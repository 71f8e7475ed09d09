//! An OpenAPI 2.0 ("Swagger") document of a REST gateway, made from its routes and the contracts, and a page that shows it.
//!
//! The caller owns the routes: which method and path leads to which RPC. Everything else, parameters, bodies, types and their
//! descriptions, is what the contract says; `schema` turns its types into JSON schemas. The page ([`PAGE`]) needs nothing but the document, so
//! it works where there is no network.

mod schema;

use std::collections::BTreeSet;

use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};
use serde_json::{Map, Value, json};

use schema::{Schemas, comment};

/// A page for browsers that shows the document it finds at `/swagger.json`, with forms to try each operation.
pub const PAGE: &str = include_str!("page.html");

/// Nested messages whose fields are offered as query parameters: `a.b.c`.
const QUERY_DEPTH_MAX: usize = 3;

/// One operation of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route<'a> {
    /// HTTP method in capitals. GET and DELETE take what the path does not say from the query string, others from the body.
    pub method: &'a str,
    /// Path with its parameters in braces, each a field of the request: `/v1/volumes/inspect/{volume_id}`.
    pub path: &'a str,
    /// The RPC behind it: `openstorage.api.OpenStorageVolume/Inspect`.
    pub rpc: &'a str,
}

/// Why routes cannot be described: a mistake in their table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenApiError {
    /// No contract has the RPC.
    #[error("route {path}: there is no RPC {rpc}")]
    NoRpc {
        /// Path of the route.
        path: String,
        /// RPC of the route.
        rpc: String,
    },
    /// The method is none of GET, POST, PUT, PATCH, DELETE.
    #[error("route {path}: {method} is no method of the gateway")]
    Method {
        /// Path of the route.
        path: String,
        /// Method of the route.
        method: String,
    },
    /// A parameter of the path is no field of the request.
    #[error("route {path}: the request has no field {parameter}")]
    Parameter {
        /// Path of the route.
        path: String,
        /// The parameter.
        parameter: String,
    },
    /// Two routes have the same method and path.
    #[error("route {method} {path} is there twice")]
    Twice {
        /// Path of the route.
        path: String,
        /// Method of the route.
        method: String,
    },
}

/// The document of a gateway.
///
/// # Errors
/// A mistake in the table of routes.
pub fn document(title: &str, version: &str, routes: &[Route<'_>]) -> Result<Value, OpenApiError> {
    let pool = DescriptorPool::decode(crate::DESCRIPTORS)
        .expect("the descriptors were made by our own build");
    let mut schemas = Schemas::default();
    let mut paths = Map::new();
    let mut tags = BTreeSet::new();
    for route in routes {
        let rpc = find(&pool, route)?;
        tags.insert(rpc.parent_service().name().to_owned());
        let operation = operation(route, &rpc, &mut schemas)?;
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        let former = methods
            .as_object_mut()
            .and_then(|m| m.insert(route.method.to_ascii_lowercase(), operation));
        if former.is_some() {
            return Err(OpenApiError::Twice {
                path: route.path.into(),
                method: route.method.into(),
            });
        }
    }
    let tags: Vec<Value> = tags
        .into_iter()
        .map(|name| json!({ "name": name }))
        .collect();
    let mut definitions = schemas.finish();
    definitions.insert(ERROR.into(), error_schema());
    Ok(json!({
        "swagger": "2.0",
        "info": { "title": title, "version": version },
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "tags": tags,
        "paths": paths,
        "definitions": definitions,
    }))
}

const ERROR: &str = "GatewayError";

fn error_schema() -> Value {
    json!({
        "type": "object",
        "description": "What went wrong; code is the gRPC status.",
        "properties": {
            "error": { "type": "string" },
            "code": { "type": "integer", "format": "int32" },
            "message": { "type": "string" },
        },
    })
}

fn find(pool: &DescriptorPool, route: &Route<'_>) -> Result<MethodDescriptor, OpenApiError> {
    let (service, method) = route.rpc.split_once('/').unwrap_or((route.rpc, ""));
    let service = pool.get_service_by_name(service);
    let found = service.and_then(|s| s.methods().find(|m| m.name() == method));
    found.ok_or_else(|| OpenApiError::NoRpc {
        path: route.path.into(),
        rpc: route.rpc.into(),
    })
}

fn operation(
    route: &Route<'_>,
    rpc: &MethodDescriptor,
    schemas: &mut Schemas,
) -> Result<Value, OpenApiError> {
    let request = rpc.input();
    let in_path = path_parameters(route.path);
    let mut parameters = Vec::new();
    for name in &in_path {
        let field = request
            .get_field_by_name(name)
            .ok_or_else(|| OpenApiError::Parameter {
                path: route.path.into(),
                parameter: (*name).into(),
            })?;
        parameters.push(parameter(&field, name, "path", schemas));
    }
    match route.method {
        "GET" | "DELETE" => query(&request, "", &in_path, schemas, &mut parameters),
        "POST" | "PUT" | "PATCH" => {
            let schema = schemas.reference(&request);
            parameters
                .push(json!({ "name": "body", "in": "body", "required": true, "schema": schema }));
        }
        _ => {
            return Err(OpenApiError::Method {
                path: route.path.into(),
                method: route.method.into(),
            });
        }
    }
    let service = rpc.parent_service();
    let mut operation = json!({
        "operationId": format!("{}_{}", service.name(), rpc.name()),
        "tags": [service.name()],
        "parameters": parameters,
        "responses": {
            "200": done(rpc, schemas),
            "default": { "description": "Not done.", "schema": { "$ref": format!("#/definitions/{ERROR}") } },
        },
    });
    if let Some(text) = comment(&rpc.parent_file(), rpc.path()) {
        operation["summary"] = text.into();
    }
    Ok(operation)
}

/// What there is then: a message, or, of a method that streams, a line for each.
fn done(rpc: &MethodDescriptor, schemas: &mut Schemas) -> Value {
    let schema = schemas.reference(&rpc.output());
    if !rpc.is_server_streaming() {
        return json!({ "description": "Done.", "schema": schema });
    }
    let error = json!({
        "type": "object",
        "properties": { "code": { "type": "integer", "format": "int32" }, "message": { "type": "string" } },
    });
    json!({
        "description": "A stream: a line of JSON for each message, `result`, or `error` if it ends with one.",
        "schema": { "type": "object", "properties": { "result": schema, "error": error } },
    })
}

/// The names in braces.
fn path_parameters(path: &str) -> Vec<&str> {
    path.split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}').map(|(name, _)| name))
        .collect()
}

fn parameter(field: &FieldDescriptor, name: &str, place: &str, schemas: &mut Schemas) -> Value {
    let mut parameter = schemas.field(field);
    parameter["name"] = name.into();
    parameter["in"] = place.into();
    parameter["required"] = (place == "path").into();
    if field.is_list() {
        parameter["collectionFormat"] = "multi".into();
    }
    parameter
}

/// Fields that can be said in a query string: single values and lists of them, also of nested messages.
fn query(
    request: &MessageDescriptor,
    prefix: &str,
    without: &[&str],
    schemas: &mut Schemas,
    into: &mut Vec<Value>,
) {
    for field in request.fields() {
        let name = format!("{prefix}{}", field.name());
        if without.contains(&name.as_str()) {
            continue;
        }
        match field.kind() {
            // One parameter per entry, name[key]: the format has no word for it.
            _ if field.is_map() => {}
            Kind::Message(inner) if !schema::is_scalar(&field.kind()) => {
                if !field.is_list() && name.matches('.').count() + 1 < QUERY_DEPTH_MAX {
                    query(&inner, &format!("{name}."), without, schemas, into);
                }
            }
            _ => into.push(parameter(&field, &name, "query", schemas)),
        }
    }
}

#[cfg(test)]
mod tests;
