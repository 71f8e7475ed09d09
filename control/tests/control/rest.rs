//! The REST gateway, as `curl` sees it.
use crate::bench::{Bench, Drive};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// One request over a connection of its own: status and body.
fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: &str,
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let length = body.len();
    let token = match token {
        "" => String::new(),
        token => format!("authorization: {token}\r\n"),
    };
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{token}content-length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    let streamed = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let body = match streamed {
        true => whole(body),
        false => body.to_owned(),
    };
    (status, body)
}

/// What came in chunks, each behind its length.
fn whole(mut chunks: &str) -> String {
    let mut body = String::new();
    loop {
        let (length, rest) = chunks.split_once("\r\n").expect("a chunk's length");
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            return body;
        }
        body += &rest[..length];
        chunks = &rest[length + 2..];
    }
}

async fn rest(b: &Bench, method: &str, path: &str, body: Value) -> (u16, Value) {
    with_token(b, method, path, "", body).await
}

/// The same with an `authorization` header, unless that is empty.
pub async fn with_token(
    b: &Bench,
    method: &str,
    path: &str,
    token: &str,
    body: Value,
) -> (u16, Value) {
    let address = b.control().rest;
    let (method, path, token) = (method.to_owned(), path.to_owned(), token.to_owned());
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let (status, text) =
        tokio::task::spawn_blocking(move || request(address, &method, &path, &token, &body))
            .await
            .unwrap();
    (
        status,
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_live_and_die_over_rest() {
    let b = Bench::new(Drive::File).await;
    let create = json!({"name": "v", "spec": {"size": "1048576"}, "labels": {"a": "b"}});
    let (status, made) = rest(&b, "POST", "/v1/volumes", create.clone()).await;
    assert_eq!(status, 200, "{made}");
    let id = made["volume_id"].as_str().unwrap().to_owned();
    assert_eq!(
        rest(&b, "POST", "/v1/volumes", create).await,
        (200, json!({"volume_id": id}))
    );
    assert_eq!(
        rest(&b, "GET", "/v1/volumes", Value::Null).await,
        (200, json!({"volume_ids": [id]}))
    );
    let (_, shown) = rest(&b, "GET", &format!("/v1/volumes/inspect/{id}"), Value::Null).await;
    assert_eq!(shown["volume"]["spec"]["size"], "1048576");
    assert_eq!(shown["volume"]["state"], "VOLUME_STATE_DETACHED");
    assert_eq!(
        shown["volume"].get("readonly"),
        None,
        "zero fields are left out"
    );
    let filters = json!({"labels": {"a": "b"}});
    assert_eq!(
        rest(&b, "POST", "/v1/volumes/filters", filters).await.1,
        json!({"volume_ids": [id]})
    );
    let grow = json!({"spec": {"size": "2097152"}});
    assert_eq!(
        rest(&b, "PUT", "/v1/volumes/v", grow).await,
        (200, json!({}))
    );
    let (status, attached) = rest(
        &b,
        "POST",
        "/v1/mountattach/attach",
        json!({"volume_id": "v"}),
    )
    .await;
    assert_eq!((status, attached["device_path"].is_string()), (200, true));
    let (_, stats) = rest(
        &b,
        "GET",
        "/v1/volumes/stats/v?not_cumulative=true",
        Value::Null,
    )
    .await;
    assert_eq!(stats["stats"]["bytes_used"], "524288");
    assert_eq!(
        rest(&b, "GET", "/v1/volumes/usage/v", Value::Null).await.0,
        200
    );
    assert_eq!(
        rest(&b, "DELETE", "/v1/volumes/v", Value::Null).await.0,
        400
    );
    assert_eq!(
        rest(
            &b,
            "POST",
            "/v1/mountattach/detach",
            json!({"volume_id": "v"})
        )
        .await,
        (200, json!({}))
    );
    assert_eq!(
        rest(&b, "DELETE", &format!("/v1/volumes/{id}"), Value::Null).await,
        (200, json!({}))
    );
    assert_eq!(
        rest(&b, "GET", "/v1/volumes", Value::Null).await,
        (200, json!({}))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_sdks_form() {
    let b = Bench::new(Drive::File).await;
    b.create("v", 1 << 20).await;
    for (method, path, body, status, code) in [
        (
            "POST",
            "/v1/volumes",
            json!({"spec": {"size": "4096"}}),
            400,
            3,
        ),
        (
            "POST",
            "/v1/volumes",
            json!({"name": "v", "spec": {"size": "4096"}}),
            409,
            6,
        ),
        (
            "POST",
            "/v1/volumes",
            json!({"name": "w", "spec": {"size": "4096", "encrypted": true}}),
            400,
            9,
        ),
        (
            "POST",
            "/v1/volumes",
            json!({"name": "w", "spec": {"sise": "4096"}}),
            400,
            3,
        ),
        ("POST", "/v1/volumes", json!([]), 400, 3),
        ("GET", "/v1/volumes/inspect/none", Value::Null, 404, 5),
        (
            "GET",
            "/v1/volumes/stats/v?cumulative=1",
            Value::Null,
            400,
            3,
        ),
        ("GET", "/v1/nodes/inspect/none", Value::Null, 404, 5),
        ("POST", "/v1/volume/catalog", json!({}), 501, 12),
        ("GET", "/v1/nothing", Value::Null, 404, 5),
        ("PATCH", "/v1/volumes", Value::Null, 405, 12),
    ] {
        let (found, error) = rest(&b, method, path, body).await;
        assert_eq!(
            (found, error["code"].as_i64()),
            (status, Some(code)),
            "{method} {path}: {error}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(
            !message.is_empty() && error["error"] == error["message"],
            "{error}"
        );
    }
    assert_eq!(
        rest(&b, "DELETE", "/v1/volumes/none", Value::Null).await,
        (200, json!({}))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_pools_and_alerts_over_rest() {
    let b = Bench::new(Drive::File).await;
    let id = b.create("v", 1 << 20).await;
    let make = json!({"volume_id": "v", "name": "s", "labels": {"a": "b"}});
    let (status, made) = rest(&b, "POST", "/v1/volumes/snapshots", make).await;
    assert_eq!(status, 200, "{made}");
    let snapshot = made["snapshot_id"].as_str().unwrap().to_owned();
    let (_, listed) = rest(&b, "GET", "/v1/volumes/snapshots?volume_id=v", Value::Null).await;
    assert_eq!(listed, json!({"volume_snapshot_ids": [snapshot]}));
    let filter = json!({"labels": {"a": "c"}});
    let (_, none) = rest(&b, "POST", "/v1/volumes/snapshots/filters/v", filter).await;
    assert_eq!(none, json!({}));
    let path = format!("/v1/volumes/inspect/{snapshot}");
    let (_, shown) = rest(&b, "GET", &path, Value::Null).await;
    assert_eq!(shown["volume"]["readonly"], true);
    assert_eq!(shown["volume"]["source"]["parent"], id.as_str());
    let clone = json!({"name": "c", "parent_id": snapshot});
    assert_eq!(rest(&b, "POST", "/v1/volumes/clone", clone).await.0, 200);
    let restore = json!({"volume_id": "v", "snapshot_id": "s"});
    let path = "/v1/volumes/snapshots/restore";
    assert_eq!(rest(&b, "POST", path, restore).await, (200, json!({})));
    let path = "/v1/storagepools/resize/no-pool";
    let (status, error) = rest(&b, "PUT", path, json!({"size": "1"})).await;
    assert_eq!((status, error["code"].as_i64()), (404, Some(5)), "{error}");
    let query =
        json!({"queries": [{"resource_type_query": {"resource_type": "RESOURCE_TYPE_DRIVE"}}]});
    let found = rest(&b, "POST", "/v1/alerts/filters", query.clone()).await;
    // A stream of one message that has none.
    assert_eq!(found, (200, json!({"result": {}})));
    let none = json!({"queries": []});
    let (status, error) = rest(&b, "POST", "/v1/alerts/filters", none).await;
    assert_eq!((status, error["code"].as_i64()), (400, Some(3)), "{error}");
    assert_eq!(
        rest(&b, "POST", "/v1/alerts", query).await,
        (200, json!({}))
    );
    let (status, scan) = rest(&b, "GET", "/v1/keelblock/scans", Value::Null).await;
    assert_eq!((status, scan["state"].as_str()), (200, Some("none")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_the_port_is_served() {
    let mut b = Bench::new(Drive::File).await;
    let id = b.create("v", 1 << 20).await;
    b.attach("v").await;
    b.fake.count_io(&id);
    for path in ["/healthz", "/readyz", "/livez"] {
        assert_eq!(rest(&b, "GET", path, Value::Null).await.0, 200, "{path}");
    }
    let (_, version) = rest(&b, "GET", "/v1/identities/version", Value::Null).await;
    assert_eq!(version["sdk_version"]["minor"], 186);
    let (_, cluster) = rest(&b, "GET", "/v1/clusters/inspectcurrent", Value::Null).await;
    assert_eq!(cluster["cluster"]["id"], "test");
    let (_, nodes) = rest(&b, "GET", "/v1/nodes/filters", Value::Null).await;
    assert_eq!(nodes["nodes"][0]["status"], "STATUS_OK");
    let (_, node) = rest(&b, "GET", "/v1/keelblock/node", Value::Null).await;
    assert_eq!(node["datapath_up"], true);
    let (_, info) = rest(&b, "GET", "/v1/keelblock/volumes/v/connection", Value::Null).await;
    assert_eq!(info["nsid"], 1);
    let (_, metrics) = rest(&b, "GET", "/metrics", Value::Null).await;
    let metrics = metrics.as_str().unwrap().to_owned();
    let reads = format!(
        "keelblock_volume_reads_total{{node=\"node-1\",volume_id=\"{id}\",volume=\"v\"}} 1"
    );
    assert!(metrics.lines().any(|line| line == reads), "{metrics}");
    assert!(metrics.contains("keelblock_pool_total_bytes"));
    let (_, swagger) = rest(&b, "GET", "/swagger.json", Value::Null).await;
    assert!(swagger["paths"]["/v1/volumes"]["post"].is_object());
    let (status, page) = rest(&b, "GET", "/swagger-ui/", Value::Null).await;
    let page = page.as_str().unwrap().to_owned();
    assert!(
        status == 200 && page.contains("swagger.json") && !page.contains("https://"),
        "nothing is loaded from elsewhere"
    );
    b.fake.kill();
    b.down().await;
    for (path, code) in [("/healthz", 503), ("/readyz", 503), ("/livez", 200)] {
        assert_eq!(rest(&b, "GET", path, Value::Null).await.0, code, "{path}");
    }
    let (status, error) = rest(
        &b,
        "POST",
        "/v1/volumes",
        json!({"name": "w", "spec": {"size": "4096"}}),
    )
    .await;
    assert_eq!((status, error["code"].as_i64()), (503, Some(14)));
}
