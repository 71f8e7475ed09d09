//! The REST gateway: the SDK's methods as JSON over HTTP, with its paths, beside `/metrics`, `/healthz`, `/swagger.json` and
//! `/swagger-ui/`. `routes` is the table of methods, `gateway` turns JSON into the contracts' messages and back and calls the SDK's services in
//! this process (`codec`), and `openapi` describes it all.

mod codec;
mod gateway;
mod metrics;
mod openapi;
mod routes;

use crate::datapath::LinkState;
use crate::sdk::Services;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use gateway::Gateway;
use keelblock_api::json::Codec;
use std::sync::Arc;

/// The gateway of a node's services.
pub fn router(services: Services, codec: Codec) -> Result<Router, String> {
    let gateway = Arc::new(Gateway::new(services.routes(), codec)?);
    let swagger = Arc::new(openapi::document(&gateway).to_string());
    let (metrics_of, health_of) = (services.clone(), services);
    let described = Router::new()
        .route(
            "/swagger.json",
            get(move || async move { ([(CONTENT_TYPE, "application/json")], swagger.to_string()) }),
        )
        .route(
            "/swagger-ui",
            get(|| async { Redirect::permanent("/swagger-ui/") }),
        )
        .route(
            "/swagger-ui/",
            get(|| async { Html(include_str!("swagger-ui.html")) }),
        )
        .route(
            "/metrics",
            get(move || async move { metrics::page(&metrics_of).await }),
        )
        .route("/healthz", get(move || async move { health(&health_of) }));
    Ok(gateway::add_routes(described, &gateway))
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
