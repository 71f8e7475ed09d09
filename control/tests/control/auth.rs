//! Who may call what: through gRPC and REST, with the roles that are always there and those that people make, and between nodes. Whoever is refused hears why.
use crate::bench::{Bench, Drive, refused};
use crate::rest;
use keelblock_api::openstorage::open_storage_identity_client::OpenStorageIdentityClient;
use keelblock_api::openstorage::open_storage_node_client::OpenStorageNodeClient;
use keelblock_api::openstorage::open_storage_role_client::OpenStorageRoleClient;
use keelblock_api::openstorage::open_storage_volume_client::OpenStorageVolumeClient;
use keelblock_api::openstorage::*;
use keelblock_api::tokens::{Claims, SigningKey, sign};
use keelblock_control::run::{Control, RunError};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// What every call goes through.
pub type Door = InterceptedService<Channel, Bearer>;

/// Brings a token.
#[derive(Clone)]
pub struct Bearer(Option<String>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value = AsciiMetadataValue::try_from(format!("Bearer {token}")).unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or(Duration::ZERO).as_secs()
}

/// The file of `--auth`, with one issuer.
pub fn auth_file(dir: &Path) -> PathBuf {
    std::fs::write(dir.join("secret"), SECRET).unwrap();
    let file = json!({"authenticators": [{"issuer": "test", "shared_secret_file": "secret"}]});
    let path = dir.join("auth.json");
    std::fs::write(&path, file.to_string()).unwrap();
    path
}

/// A token of a user.
pub fn token(user: &str, roles: &[&str], groups: &[&str]) -> String {
    signed(SECRET, now_s(), 600, user, roles, groups)
}

fn signed(
    secret: &str,
    iat: u64,
    life_s: u64,
    user: &str,
    roles: &[&str],
    groups: &[&str],
) -> String {
    let all = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    let claims = Claims {
        iss: "test".into(),
        sub: user.into(),
        iat,
        exp: iat + life_s,
        roles: all(roles),
        groups: all(groups),
        ..Default::default()
    };
    let key = SigningKey::shared_secret(secret.as_bytes(), "HS256").unwrap();
    sign(&claims, &key).unwrap()
}

/// A node with a door.
pub struct Guarded {
    pub bench: Bench,
    _dir: TempDir,
}

impl Guarded {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::new(Drive::File).await;
        bench.config().auth = Some(auth_file(dir.path()));
        bench.restart_control().await;
        Self { bench, _dir: dir }
    }

    pub fn door(&self, token: Option<&str>) -> Door {
        InterceptedService::new(self.bench.channel(), Bearer(token.map(str::to_owned)))
    }

    pub fn volumes(&self, token: &str) -> OpenStorageVolumeClient<Door> {
        OpenStorageVolumeClient::new(self.door(Some(token)))
    }

    fn roles(&self, token: &str) -> OpenStorageRoleClient<Door> {
        OpenStorageRoleClient::new(self.door(Some(token)))
    }
}

pub async fn list(volumes: &mut OpenStorageVolumeClient<Door>) -> Result<Vec<String>, Status> {
    let reply = volumes.enumerate(SdkVolumeEnumerateRequest {}).await?;
    Ok(reply.into_inner().volume_ids)
}

pub async fn create(
    volumes: &mut OpenStorageVolumeClient<Door>,
    name: &str,
) -> Result<String, Status> {
    let spec = VolumeSpec {
        size: 1 << 20,
        ..Default::default()
    };
    let request = SdkVolumeCreateRequest {
        name: name.into(),
        spec: Some(spec),
        ..Default::default()
    };
    Ok(volumes.create(request).await?.into_inner().volume_id)
}

fn role(name: &str, services: &[&str], apis: &[&str]) -> SdkRole {
    let all = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    let rule = SdkRule {
        services: all(services),
        apis: all(apis),
    };
    SdkRole {
        name: name.into(),
        rules: vec![rule],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_option_nothing_is_asked_and_roles_can_be_prepared() {
    let b = Bench::new(Drive::File).await;
    b.create("v", 1 << 20).await;
    let door = InterceptedService::new(b.channel(), Bearer(Some("nonsense".into())));
    let found = list(&mut OpenStorageVolumeClient::new(door.clone())).await;
    assert_eq!(found.unwrap().len(), 1);
    let request = SdkRoleEnumerateRequest {};
    let names = OpenStorageRoleClient::new(door).enumerate(request).await;
    let names = names.unwrap().into_inner().names;
    let system = ["system.admin", "system.guest", "system.user", "system.view"];
    assert_eq!(names, system);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_counts_or_is_refused_and_is_never_taken_for_a_guest() {
    let g = Guarded::new().await;
    let mut guest = OpenStorageVolumeClient::new(g.door(None));
    assert_eq!(list(&mut guest).await.unwrap(), [""; 0], "guests may list");
    let now = now_s();
    let other = "fedcba9876543210fedcba9876543210";
    let good = token("ann", &["system.user"], &[]);
    let (head, _) = good.rsplit_once('.').unwrap();
    for (bad, says) in [
        ("", "write `bearer TOKEN`"),
        ("x.y.z", "no JSON web token"),
        (head, "no JSON web token"),
        (&format!("{head}."), "signature"),
        (
            &signed(SECRET, now - 1000, 600, "ann", &["system.admin"], &[]),
            "expired",
        ),
        (
            &signed(SECRET, now + 1000, 600, "ann", &["system.admin"], &[]),
            "clock",
        ),
        (
            &signed(other, now, 600, "ann", &["system.admin"], &[]),
            "signature",
        ),
        (
            &signed(SECRET, now, 600, "", &["system.admin"], &[]),
            "`sub` is empty",
        ),
    ] {
        let answer = list(&mut g.volumes(bad)).await;
        refused(answer, Code::Unauthenticated, says);
    }
    assert_eq!(list(&mut g.volumes(&good)).await.unwrap(), [""; 0]);
    let none = token("ann", &[], &[]);
    let answer = list(&mut g.volumes(&none)).await;
    refused(answer, Code::PermissionDenied, "no roles");
    let unknown = token("ann", &["nothing", "a/b"], &[]);
    let answer = list(&mut g.volumes(&unknown)).await;
    refused(
        answer,
        Code::PermissionDenied,
        "none of its roles, nothing, a/b",
    );
    let request = SdkIdentityCapabilitiesRequest {};
    let answer = OpenStorageIdentityClient::new(g.door(None))
        .capabilities(request)
        .await;
    refused(answer, Code::PermissionDenied, "without a token");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_made_changed_and_count_at_once() {
    let g = Guarded::new().await;
    let admin = token("root", &["system.admin"], &["*"]);
    let mut roles = g.roles(&admin);
    let view = token("eve", &["system.view"], &[]);
    assert_eq!(list(&mut g.volumes(&view)).await.unwrap(), [""; 0]);
    let answer = create(&mut g.volumes(&view), "v").await;
    refused(
        answer,
        Code::PermissionDenied,
        "volume.create is not allowed to eve",
    );
    let make = |role| SdkRoleCreateRequest { role: Some(role) };
    let answer = g.roles(&view).create(make(role("r", &["*"], &["*"]))).await;
    refused(answer, Code::PermissionDenied, "role.create");

    let maker = token("eve", &["system.view", "maker"], &[]);
    let answer = create(&mut g.volumes(&maker), "v").await;
    refused(answer, Code::PermissionDenied, "maker");
    let made = role("maker", &["volume"], &["*", "!delete"]);
    let kept = roles.create(make(made.clone())).await.unwrap().into_inner();
    assert_eq!(kept.role.as_ref(), Some(&made));
    let answer = roles.create(make(made.clone())).await;
    refused(answer, Code::AlreadyExists, "these rules already");
    let id = create(&mut g.volumes(&maker), "v").await.unwrap();
    let delete = SdkVolumeDeleteRequest { volume_id: id };
    let answer = g.volumes(&maker).delete(delete.clone()).await;
    refused(answer, Code::PermissionDenied, "volume.delete");
    let other = role("maker", &["volume"], &["*"]);
    let answer = roles.create(make(other.clone())).await;
    refused(answer, Code::AlreadyExists, "update it");
    let update = |role| SdkRoleUpdateRequest { role: Some(role) };
    roles.update(update(other.clone())).await.unwrap();
    let inspect = SdkRoleInspectRequest {
        name: "maker".into(),
    };
    let kept = roles.inspect(inspect.clone()).await.unwrap().into_inner();
    assert_eq!(kept.role, Some(other));
    g.volumes(&maker).delete(delete).await.unwrap();

    let delete = |name: &str| SdkRoleDeleteRequest { name: name.into() };
    for _ in 0..2 {
        roles.delete(delete("maker")).await.unwrap();
    }
    refused(roles.inspect(inspect).await, Code::NotFound, "maker");
    let answer = create(&mut g.volumes(&maker), "v").await;
    refused(answer, Code::PermissionDenied, "maker");
    let answer = roles.update(update(role("maker", &["*"], &["*"]))).await;
    refused(answer, Code::NotFound, "maker");

    for name in ["system.admin", "system.view", "system.user", "system.x"] {
        let open = role(name, &["*"], &["*"]);
        let answer = roles.create(make(open.clone())).await;
        refused(answer, Code::InvalidArgument, "system.");
        let answer = roles.update(update(open)).await;
        refused(answer, Code::InvalidArgument, "system.");
        let answer = roles.delete(delete(name)).await;
        refused(answer, Code::InvalidArgument, "system.");
    }
    let answer = roles.delete(delete("system.guest")).await;
    refused(answer, Code::InvalidArgument, "can be updated");
    for bad in [
        role("", &["*"], &["*"]),
        role("r", &[], &["*"]),
        role("r", &["a*b"], &["*"]),
    ] {
        let answer = roles.create(make(bad)).await;
        refused(answer, Code::InvalidArgument, "role.");
    }
    let answer = roles.create(SdkRoleCreateRequest { role: None }).await;
    refused(answer, Code::InvalidArgument, "role");
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_asks_the_same_and_probes_need_no_token() {
    let g = Guarded::new().await;
    let admin = token("root", &["system.admin"], &["*"]);
    let bearer = |token: &str| format!("Bearer {token}");
    let ask = async |method: &str, path: &str, token: &str, body: Value| {
        rest::with_token(&g.bench, method, path, token, body).await
    };
    let closed =
        json!({"role": {"name": "system.guest", "rules": [{"services": ["!*"], "apis": ["!*"]}]}});
    let refusal = ask("PUT", "/v1/roles", "", closed.clone()).await;
    assert_eq!((refusal.0, refusal.1["code"].as_i64()), (403, Some(7)));
    let kept = ask("PUT", "/v1/roles", &bearer(&admin), closed.clone()).await;
    assert_eq!(kept, (200, closed.clone()));
    let none = ask("GET", "/v1/volumes", "", Value::Null).await;
    assert_eq!(
        (none.0, none.1["code"].as_i64()),
        (403, Some(7)),
        "{}",
        none.1
    );
    let path = "/v1/roles/inspect/system.guest";
    let kept = ask("GET", path, &bearer(&admin), Value::Null).await;
    assert_eq!(kept, (200, closed));
    for bad in ["Bearer x.y.z", "Basic eDp5", "Bearer", "\u{fc}"] {
        let (status, error) = ask("GET", "/v1/volumes", bad, Value::Null).await;
        assert_eq!((status, error["code"].as_i64()), (401, Some(16)), "{bad}");
    }
    let volumes = ask("GET", "/v1/volumes", &bearer(&admin), Value::Null).await;
    assert_eq!(volumes, (200, json!({})));
    let alerts =
        json!({"queries": [{"resource_type_query": {"resource_type": "RESOURCE_TYPE_DRIVE"}}]});
    let (status, _) = ask("POST", "/v1/alerts/filters", "", alerts).await;
    assert_eq!(status, 403, "what streams is asked, too");
    for path in [
        "/livez",
        "/readyz",
        "/healthz",
        "/metrics",
        "/swagger.json",
        "/swagger-ui/",
    ] {
        assert_eq!(ask("GET", path, "", Value::Null).await.0, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_ask_each_other_whatever_guests_may() {
    let g = Guarded::new().await;
    let kvdb = g.bench.control().kvdb.clone();
    let dir = tempfile::tempdir().unwrap();
    let mut other = Bench::prepare("node-2", &kvdb).await;
    other.config().auth = Some(auth_file(dir.path()));
    other.start_control().await.unwrap();
    other.ready().await;
    let admin = token("root", &["system.admin"], &["*"]);
    let closed = role("system.guest", &["!*"], &["!*"]);
    let update = SdkRoleUpdateRequest { role: Some(closed) };
    g.roles(&admin).update(update).await.unwrap();
    let request = SdkNodeVolumeUsageByNodeRequest {
        node_id: "node-1".into(),
    };
    let bare = OpenStorageNodeClient::new(other.channel())
        .volume_usage_by_node(request.clone())
        .await;
    refused(bare, Code::PermissionDenied, "without a token");
    let door = InterceptedService::new(other.channel(), Bearer(Some(admin)));
    let mut nodes = OpenStorageNodeClient::new(door);
    nodes.volume_usage_by_node(request).await.unwrap();
    // Whoever says that it is a node, and cannot sign as one.
    let forged = Claims {
        iss: "keelblock.node".into(),
        sub: "node-2".into(),
        iat: now_s(),
        exp: now_s() + 60,
        ..Default::default()
    };
    let key = SigningKey::shared_secret(SECRET.as_bytes(), "HS256").unwrap();
    let forged = sign(&forged, &key).unwrap();
    let answer = list(&mut g.volumes(&forged)).await;
    refused(answer, Code::Unauthenticated, "another node's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_ends_the_start_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::without_datapath().await;
    bench.stop_control().await;
    let config = bench.config();
    config.auth = Some(dir.path().join("none.json"));
    config.data = dir.path().join("data");
    let failed = Control::start(config).await.err();
    assert!(
        matches!(failed, Some(RunError::Auth(_))),
        "it does not start"
    );
    assert!(!dir.path().join("data").exists());
}
