//! The REST gateway: the SDK's methods as JSON over HTTP, with its paths, beside `/metrics`, `/healthz`, `/swagger.json` and
//! `/swagger-ui/`. `routes` is the table of methods, `gateway` turns JSON into the contracts' messages and back and calls the SDK's services in
//! this process (`codec`), and the routes and the contracts together are the description (`keelblock_api::openapi`).

mod codec;
mod gateway;
mod metrics;
mod routes;

pub(crate) use metrics::text as metrics_text;

use crate::datapath::LinkState;
use crate::sdk::Services;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use gateway::Gateway;
use keelblock_api::json::Codec;
use keelblock_api::openapi;
use std::sync::Arc;
use std::time::Duration;

/// How long the KVDB may take to answer whoever asks whether this node is ready.
const READY_LIMIT: Duration = Duration::from_secs(2);

/// The gateway of a node's services.
pub fn router(services: Services, codec: Codec) -> Result<Router, String> {
    let gateway = Arc::new(Gateway::new(services.routes(), codec)?);
    let swagger = Arc::new(description(&gateway)?);
    let (metrics_of, ready_of, health_of) = (services.clone(), services.clone(), services);
    let described = Router::new()
        .route(
            "/swagger.json",
            get(move || async move { ([(CONTENT_TYPE, "application/json")], swagger.to_string()) }),
        )
        .route(
            "/swagger-ui",
            get(|| async { Redirect::permanent("/swagger-ui/") }),
        )
        .route("/swagger-ui/", get(|| async { Html(openapi::PAGE) }))
        .route(
            "/metrics",
            get(move || async move { metrics::page(&metrics_of).await }),
        )
        .route("/livez", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move { ready(&ready_of).await }),
        )
        .route("/healthz", get(move || async move { health(&health_of) }));
    Ok(gateway::add_routes(described, &gateway))
}

/// The OpenAPI document of all routes.
fn description(gateway: &Gateway) -> Result<String, String> {
    let rpcs: Vec<String> = gateway
        .methods
        .iter()
        .map(|m| format!("{}/{}", m.route.service_name(), m.route.method))
        .collect();
    let routes: Vec<openapi::Route<'_>> = gateway
        .methods
        .iter()
        .zip(&rpcs)
        .map(|(method, rpc)| openapi::Route {
            method: method.route.verb.name(),
            path: method.route.path,
            rpc,
        })
        .collect();
    let document = openapi::document(
        "Keelblock: OpenStorage SDK",
        env!("CARGO_PKG_VERSION"),
        &routes,
    );
    document.map(|d| d.to_string()).map_err(|e| e.to_string())
}

/// 200 when volumes can be used, 503 and why when not.
fn health(services: &Services) -> Response {
    match services.node().link.state() {
        LinkState::Up(_) => "ok\n".into_response(),
        LinkState::Down(reason) => (
            axum::http::StatusCode::SERVICE_UNAVAILABLE,
            format!("the data path cannot be used: {reason}\n"),
        )
            .into_response(),
    }
}

/// 200 when changes can be made: the data path can be used, and the KVDB answers; 503 and why when not.
async fn ready(services: &Services) -> Response {
    let registry = &services.node().registry;
    let key = registry.keys().cluster();
    let asked = tokio::time::timeout(READY_LIMIT, registry.kv().get(&key));
    let why = match asked.await {
        Ok(Ok(_)) => return health(services),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer in {} s", READY_LIMIT.as_secs()),
    };
    (
        axum::http::StatusCode::SERVICE_UNAVAILABLE,
        format!("the key-value database cannot be used: {why}\n"),
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described() {
        let gateway = Gateway::new(tonic::service::Routes::default(), Codec::new()).unwrap();
        let document: serde_json::Value =
            serde_json::from_str(&description(&gateway).unwrap()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let operations: usize = paths
            .values()
            .map(|methods| methods.as_object().unwrap().len())
            .sum();
        assert_eq!(operations, routes::ROUTES.len());
        assert!(paths["/v1/volumes/inspect/{volume_id}"]["get"].is_object());
    }
}
