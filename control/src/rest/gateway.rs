//! From HTTP to the SDK's services, in this process, and back. Errors are `{"error","code","message"}` with gRPC's code, and the HTTP
//! status that goes with it.
use super::codec::DynamicCodec;
use super::routes::{ROUTES, Route, Verb};
use crate::sdk::ANSWER_BYTES_MAX;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use keelblock_api::json::Codec;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::json;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Routes;
use tonic::{Code, Request, Status};

/// Largest body.
const BODY_BYTES_MAX: usize = 1 << 20;
/// As the gRPC server has it.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A route with its messages.
#[derive(Debug, Clone)]
pub struct Method {
    /// Where it is.
    pub route: Route,
    /// Its request.
    pub input: MessageDescriptor,
    /// Its answer.
    pub output: MessageDescriptor,
    path: PathAndQuery,
    /// It answers with many messages.
    streams: bool,
}

/// All methods, and the services behind them.
pub struct Gateway {
    /// In the order of the table.
    pub methods: Vec<Method>,
    services: Routes,
    codec: Codec,
}

impl Gateway {
    /// Looks every method up in the contracts.
    pub fn new(services: Routes, codec: Codec) -> Result<Self, String> {
        let find = |route| Method::new(route, codec.descriptors());
        let methods = ROUTES.into_iter().map(find).collect::<Result<_, _>>()?;
        Ok(Self {
            methods,
            services,
            codec,
        })
    }

    async fn call(
        &self,
        method: &Method,
        headers: &HeaderMap,
        fields: &[(String, String)],
        body: &[u8],
    ) -> Result<Response, Status> {
        let message = self.codec.request_dynamic(&method.input, body, fields);
        let message = message.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut request = Request::new(message);
        for token in headers.get_all(header::AUTHORIZATION) {
            // Also what cannot be read: it is for the door to refuse.
            if let Ok(token) = AsciiMetadataValue::try_from(token.as_bytes()) {
                request.metadata_mut().append("authorization", token);
            }
        }
        let codec = DynamicCodec {
            answer: method.output.clone(),
        };
        let mut client =
            Grpc::new(self.services.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        client
            .ready()
            .await
            .map_err(|_| Status::unavailable("the services are not ready"))?;
        let late =
            |_| Status::deadline_exceeded(format!("no answer in {} s", CALL_TIMEOUT.as_secs()));
        if method.streams {
            let call = client.server_streaming(request, method.path.clone(), codec);
            let answers = tokio::time::timeout(CALL_TIMEOUT, call)
                .await
                .map_err(late)??
                .into_inner();
            let codec = self.codec.clone();
            let lines = answers.map(move |answer| line(&codec, answer));
            let body = Body::from_stream(lines);
            return Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response());
        }
        let call = client.unary(request, method.path.clone(), codec);
        let answer: DynamicMessage = tokio::time::timeout(CALL_TIMEOUT, call)
            .await
            .map_err(late)??
            .into_inner();
        let text = self
            .codec
            .encode_dynamic(&answer)
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
    }
}

/// A message of a stream, or that it has ended with an error, as a line of JSON by itself.
fn line(codec: &Codec, answer: Result<DynamicMessage, Status>) -> Result<Vec<u8>, Infallible> {
    let text = answer.and_then(|answer| {
        let text = codec.encode_dynamic(&answer);
        text.map_err(|error| Status::internal(error.to_string()))
    });
    Ok(match text {
        Ok(text) => [b"{\"result\":".as_slice(), &text, b"}\n"].concat(),
        Err(status) => {
            let (code, message) = (status.code() as i32, status.message());
            let error = json!({ "error": { "code": code, "message": message } });
            format!("{error}\n").into_bytes()
        }
    })
}

impl Method {
    fn new(route: Route, descriptors: &DescriptorPool) -> Result<Self, String> {
        let service = route.service_name();
        let found = descriptors
            .get_service_by_name(&service)
            .ok_or_else(|| format!("no service {service}"))?;
        let method = found.methods().find(|m| m.name() == route.method);
        let method =
            method.ok_or_else(|| format!("service {service} has no method {}", route.method))?;
        if let Some(field) = route
            .path_fields()
            .find(|f| method.input().get_field_by_name(f).is_none())
        {
            return Err(format!("{} has no field {field}", method.input().name()));
        }
        let path = format!("/{service}/{}", route.method)
            .parse()
            .map_err(|_| format!("{service} is no path"))?;
        Ok(Self {
            route,
            input: method.input(),
            output: method.output(),
            path,
            streams: method.is_server_streaming(),
        })
    }
}

/// Adds the table's routes, and answers for what is in none.
pub fn add_routes(router: Router, gateway: &Arc<Gateway>) -> Router {
    let mut by_path: BTreeMap<&str, MethodRouter> = BTreeMap::new();
    for (index, method) in gateway.methods.iter().enumerate() {
        let gateway = gateway.clone();
        let handler = move |Path(in_path): Path<Vec<(String, String)>>,
                            Query(query): Query<Vec<(String, String)>>,
                            headers: HeaderMap,
                            body: Bytes| async move {
            let method = &gateway.methods[index];
            let fields = [query, in_path].concat();
            gateway
                .call(method, &headers, &fields, &body)
                .await
                .unwrap_or_else(|status| error(&status))
        };
        let routed = by_path.remove(method.route.path).unwrap_or_default();
        let added = match method.route.verb {
            Verb::Get => routed.merge(get(handler)),
            Verb::Post => routed.merge(post(handler)),
            Verb::Put => routed.merge(put(handler)),
            Verb::Delete => routed.merge(delete(handler)),
        };
        by_path.insert(method.route.path, added);
    }
    let with_all = by_path.into_iter().fold(router, |router, (path, methods)| {
        router.route(path, methods)
    });
    with_all
        .fallback(|| async {
            error(&Status::not_found(
                "there is no such path; /swagger-ui/ shows those that there are",
            ))
        })
        .method_not_allowed_fallback(|| async {
            let status = Status::unimplemented(
                "the path has no such method; /swagger-ui/ shows those that there are",
            );
            (StatusCode::METHOD_NOT_ALLOWED, error(&status)).into_response()
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

/// An error as the SDK's gateway writes it.
fn error(status: &Status) -> Response {
    let (message, code) = (status.message(), status.code() as i32);
    let body = json!({ "error": message, "code": code, "message": message });
    (
        http_status(status.code()),
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

/// The HTTP status that goes with a gRPC code, as gRPC gateways have it.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
