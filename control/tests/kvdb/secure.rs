//! etcd with TLS, client certificates and users: who is who he says gets in, and everybody else is told why not.
use crate::backend::{EtcdProcess, free_port, has_etcd, post};
use crate::relay::Relay;
use crate::watch::{PATIENCE, next};
use keelblock_control::kvdb::client::{Options, WatchEvent};
use keelblock_control::kvdb::{Client, KvError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A file of the test's directory.
fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("a file");
    path
}

fn openssl(dir: &Path, args: &[&str]) -> bool {
    let mut command = Command::new("openssl");
    command.args(args).current_dir(dir);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}

/// `NAME.pem` and `NAME.key`, signed by itself or by another; false if there is no openssl.
fn certificate(dir: &Path, name: &str, by: Option<&str>) -> bool {
    let (pem, key) = (format!("{name}.pem"), format!("{name}.key"));
    let subject = format!("/CN={name}");
    let new = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj";
    let mut args: Vec<&str> = new.split(' ').collect();
    args.extend([subject.as_str(), "-keyout", &key]);
    match by {
        None => {
            args.extend(["-x509", "-days", "2", "-out", &pem]);
            openssl(dir, &args)
        }
        Some(by) => {
            let (ca, ca_key) = (format!("{by}.pem"), format!("{by}.key"));
            args.extend(["-out", "request"]);
            write(dir, "names", "subjectAltName=IP:127.0.0.1,DNS:localhost\n");
            let sign = "x509 -req -in request -days 2 -CAcreateserial -extfile names -CA";
            let mut sign: Vec<&str> = sign.split(' ').collect();
            sign.extend([ca.as_str(), "-CAkey", &ca_key, "-out", &pem]);
            openssl(dir, &args) && openssl(dir, &sign)
        }
    }
}

/// An etcd with a user `keel` who may use everything.
struct Secured {
    etcd: Option<EtcdProcess>,
    client: u16,
    peer: u16,
    tls: bool,
    dir: TempDir,
}

impl Secured {
    /// `None`, and said, if something that it needs is not here.
    async fn start(tls: bool) -> Option<Self> {
        if !has_etcd() {
            eprintln!("not run: there is no etcd here");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path();
        let made = certificate(path, "ca", None)
            && certificate(path, "other", None)
            && certificate(path, "server", Some("ca"))
            && certificate(path, "keel", Some("ca"));
        if tls && !made {
            eprintln!("not run: there is no openssl here");
            return None;
        }
        write(path, "password", "a password\n");
        let mut secured = Self {
            etcd: None,
            client: free_port(),
            peer: free_port(),
            tls: false,
            dir,
        };
        // Users are made without TLS; the same data are served with it then.
        secured.begin();
        let address = secured.address();
        let plain = Client::new(&address).unwrap();
        crate::backend::until_it_answers(&plain).await;
        for (path, body) in [
            ("user/add", r#"{"name":"root","password":"root"}"#),
            ("user/grant", r#"{"user":"root","role":"root"}"#),
            ("user/add", r#"{"name":"keel","password":"a password"}"#),
            ("role/add", r#"{"name":"keel"}"#),
            // Everything: from the byte 0 on.
            (
                "role/grant",
                r#"{"name":"keel","perm":{"permType":"READWRITE","key":"AA==","range_end":"AA=="}}"#,
            ),
            ("user/grant", r#"{"user":"keel","role":"keel"}"#),
            ("enable", "{}"),
        ] {
            let answer = post(&address, &format!("/v3/auth/{path}"), body).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        }
        secured.tls = tls;
        secured.etcd = None;
        secured.begin();
        crate::backend::until_it_answers(&secured.user()).await;
        Some(secured)
    }

    fn begin(&mut self) {
        let at = |name: &str| self.dir.path().join(name).to_str().unwrap().to_owned();
        let more = match self.tls {
            false => Vec::new(),
            true => vec![
                format!("--cert-file={}", at("server.pem")),
                format!("--key-file={}", at("server.key")),
                format!("--trusted-ca-file={}", at("ca.pem")),
                "--client-cert-auth".into(),
            ],
        };
        let scheme = if self.tls { "https" } else { "http" };
        let etcd = EtcdProcess::start(
            Path::new(&at("data")),
            scheme,
            (self.client, self.peer),
            &more,
        );
        self.etcd = Some(etcd.expect("etcd starts"));
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    /// All that is needed.
    fn options(&self) -> Options {
        let at = |name: &str| self.dir.path().join(name);
        Options {
            endpoints: self.address(),
            ca: self.tls.then(|| at("ca.pem")),
            identity: self.tls.then(|| (at("keel.pem"), at("keel.key"))),
            login: Some(("keel".into(), at("password"))),
        }
    }

    fn user(&self) -> Client {
        Client::with(&self.options()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_a_certificate_and_a_user_is_a_kvdb_like_any() {
    let Some(etcd) = Secured::start(true).await else {
        return;
    };
    let client = etcd.user();
    let from = client.put("/c/k", "1").await.unwrap();
    let mut watcher = client.watch("/c/", from);
    let guard = client.hold_lease(2).await.unwrap();
    client
        .put_leased("/c/leased", "2", guard.id())
        .await
        .unwrap();
    assert_eq!(client.list("/c/").await.unwrap().kvs.len(), 2);
    let mut seen = 0;
    while seen < 2 {
        match next(&mut watcher).await {
            WatchEvent::Changes { events, .. } => seen += events.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(client.members().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_who_he_should_be_is_told_why() {
    let Some(etcd) = Secured::start(true).await else {
        return;
    };
    let at = |name: &str| etcd.dir.path().join(name);
    let refusal = async |options: Options| {
        let client = Client::with(&options).unwrap();
        client
            .get("/c/k")
            .await
            .expect_err("it is refused")
            .to_string()
    };
    let other_ca = Options {
        ca: Some(at("other.pem")),
        ..etcd.options()
    };
    let said = refusal(other_ca).await;
    assert!(said.contains("certificate"), "{said}");
    let nobody = Options {
        identity: None,
        ..etcd.options()
    };
    let said = refusal(nobody).await;
    assert!(said.contains("does not answer"), "{said}");
    let stranger = Options {
        identity: Some((at("other.pem"), at("other.key"))),
        ..etcd.options()
    };
    let said = refusal(stranger).await;
    assert!(said.contains("does not answer"), "{said}");
    let wrong = write(etcd.dir.path(), "wrong", "another password\n");
    let forgot = Options {
        login: Some(("keel".into(), wrong)),
        ..etcd.options()
    };
    let said = refusal(forgot).await;
    assert!(
        said.contains("user keel") && said.contains("--etcd-password-file"),
        "{said}"
    );
    let no_user = Options {
        login: None,
        ..etcd.options()
    };
    let client = Client::with(&no_user).unwrap();
    match client.put("/c/k", "1").await {
        // A certificate names a user too: there is none of that name that may do it, or it is the same.
        Ok(_) => {}
        Err(error) => assert!(matches!(error, KvError::Denied { .. }), "{error}"),
    }
    let plain = Client::new(&etcd.address()).unwrap();
    assert!(plain.get("/c/k").await.is_err());
}

/// Tokens are in etcd's memory: a restart forgets them, as time does.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_known_any_more_is_renewed() {
    let Some(mut etcd) = Secured::start(false).await else {
        return;
    };
    let said = Client::new(&etcd.address()).unwrap().get("/c/k").await;
    let said = said.expect_err("it wants a user").to_string();
    assert!(
        said.contains("names no user") && said.contains("--etcd-user"),
        "{said}"
    );
    let relay = Relay::to(&etcd.address()).await;
    let through = Options {
        endpoints: relay.address.clone(),
        ..etcd.options()
    };
    let client = Client::with(&through).unwrap();
    let from = client.put("/c/k", "1").await.unwrap();
    let mut watcher = client.watch("/c/", from);
    assert!(matches!(
        next(&mut watcher).await,
        WatchEvent::Changes { .. }
    ));
    let guard = client.hold_lease(60).await.unwrap();
    etcd.etcd = None;
    etcd.begin();
    crate::backend::until_it_answers(&etcd.user()).await;
    relay.cut();
    relay.heal();
    // The very first call may find a broken connection; none is refused.
    let put = async {
        loop {
            match client.put("/c/k", "2").await {
                Ok(revision) => return revision,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    };
    let put = tokio::time::timeout(PATIENCE, put).await;
    let put = put.expect("it is logged in again");
    match next(&mut watcher).await {
        WatchEvent::Changes { revision, .. } => assert!(revision <= put),
        other => panic!("{other:?}"),
    }
    assert!(client.lease_renew(guard.id()).await.unwrap() > 0);
    // A password that was changed is read when it is needed.
    write(etcd.dir.path(), "password", "wrong\n");
    etcd.etcd = None;
    etcd.begin();
    let denied = async {
        loop {
            match client.get("/c/k").await {
                Err(KvError::Denied { .. }) => return,
                Err(error) => assert!(error.is_transient(), "{error}"),
                Ok(_) => panic!("a password that is wrong was taken"),
            }
        }
    };
    let denied = tokio::time::timeout(PATIENCE, denied).await;
    denied.expect("it says so");
}
