//! How a client reaches the KVDB: addresses, TLS, and who it is there. What is wrong with them is said before anything is connected to.
use super::KvError;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// A server that does not take a connection in this time is left for the next one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the KVDB is, and as whom it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// "HOST:PORT" or URLs, with commas between them.
    pub endpoints: String,
    /// A file with the certificates (PEM) that the servers' are signed by; with it all connections are TLS.
    pub ca: Option<PathBuf>,
    /// A file with this client's certificate (PEM), and one with its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The user, and a file whose first line is the password.
    pub login: Option<(String, PathBuf)>,
}

impl Options {
    /// Servers without TLS, and without users.
    pub fn plain(endpoints: &str) -> Self {
        Self {
            endpoints: endpoints.into(),
            ..Self::default()
        }
    }

    /// A channel for each server. Nothing is connected to before it is used.
    ///
    /// # Errors
    /// [`KvError::Endpoint`] and [`KvError::Options`] of what cannot be.
    pub(super) fn channels(&self) -> Result<Vec<Channel>, KvError> {
        let tls = self.tls()?;
        let all = self.endpoints.split(',').map(str::trim);
        let all: Vec<_> = all.filter(|e| !e.is_empty()).collect();
        if all.is_empty() {
            return Err(KvError::Endpoint(self.endpoints.clone()));
        }
        let channel = |endpoint: &&str| self.channel(endpoint, tls.as_ref());
        all.iter().map(channel).collect()
    }

    fn channel(&self, endpoint: &str, tls: Option<&ClientTlsConfig>) -> Result<Channel, KvError> {
        let url = match (endpoint.split_once("://"), tls) {
            (Some(("https", _)), None) => {
                return Err(KvError::Options(format!(
                    "the KVDB at {endpoint} wants TLS: say with --etcd-ca which certificates its own is signed by"
                )));
            }
            (Some((scheme, _)), Some(_)) if scheme != "https" => {
                return Err(KvError::Options(format!(
                    "the KVDB at {endpoint} is without TLS, and --etcd-ca asks for it: leave one of them out"
                )));
            }
            (Some(_), _) => endpoint.to_owned(),
            (None, None) => format!("http://{endpoint}"),
            (None, Some(_)) => format!("https://{endpoint}"),
        };
        let parsed = Endpoint::from_shared(url).map_err(|_| KvError::Endpoint(endpoint.into()))?;
        let mut parsed = parsed
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5));
        if let Some(tls) = tls {
            parsed = parsed.tls_config(tls.clone()).map_err(|error| {
                KvError::Options(format!(
                    "TLS to the KVDB cannot be: {}; see --etcd-ca, --etcd-cert and --etcd-key",
                    super::chain(&error)
                ))
            })?;
        }
        Ok(parsed.connect_lazy())
    }

    fn tls(&self) -> Result<Option<ClientTlsConfig>, KvError> {
        let Some(ca) = &self.ca else {
            return match &self.identity {
                None => Ok(None),
                Some((certificate, _)) => Err(KvError::Options(format!(
                    "certificate {} is for TLS: say with --etcd-ca which certificates the KVDB's own is signed by",
                    certificate.display()
                ))),
            };
        };
        let ca = Certificate::from_pem(pem(ca, "CERTIFICATE")?);
        let tls = ClientTlsConfig::new().ca_certificate(ca);
        Ok(Some(match &self.identity {
            None => tls,
            Some((certificate, key)) => tls.identity(Identity::from_pem(
                pem(certificate, "CERTIFICATE")?,
                pem(key, "PRIVATE KEY")?,
            )),
        }))
    }
}

/// A file that must have such a part.
fn pem(path: &Path, part: &str) -> Result<Vec<u8>, KvError> {
    let bytes = read(path)?;
    let end = format!("{part}-----");
    match bytes.windows(end.len()).any(|w| w == end.as_bytes()) {
        true => Ok(bytes),
        false => Err(KvError::Options(format!(
            "{} has no {part} (PEM) in it",
            path.display()
        ))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KvError> {
    std::fs::read(path)
        .map_err(|error| KvError::Options(format!("cannot read {}: {error}", path.display())))
}

/// The password: the file's first line. It is read again whenever somebody logs in, so that it can be changed.
///
/// # Errors
/// [`KvError::Options`] of a file that cannot be read, or has none.
pub(super) fn password(path: &Path) -> Result<String, KvError> {
    let text = String::from_utf8(read(path)?).ok();
    let line = text.as_deref().and_then(|t| t.lines().next());
    match line.filter(|l| !l.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => Err(KvError::Options(format!(
            "{} has no password in its first line",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(options: &Options) -> String {
        match options.channels() {
            Err(error) => error.to_string(),
            Ok(_) => panic!("it is taken: {options:?}"),
        }
    }

    #[tokio::test]
    async fn what_cannot_be_is_said_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let junk = file("junk", "junk\n");
        let none = dir.path().join("none");
        let with =
            |endpoints: &str, ca: Option<&PathBuf>, identity: Option<(&PathBuf, &PathBuf)>| {
                refusal(&Options {
                    endpoints: endpoints.into(),
                    ca: ca.cloned(),
                    identity: identity.map(|(c, k)| (c.clone(), k.clone())),
                    login: None,
                })
            };
        assert!(with(" , ", None, None).contains("HOST:PORT"));
        assert!(with("https://a:1", None, None).contains("--etcd-ca"));
        assert!(with("a:1", Some(&none), None).contains("cannot read"));
        assert!(with("a:1", Some(&junk), None).contains("no CERTIFICATE"));
        assert!(with("a:1", None, Some((&junk, &junk))).contains("--etcd-ca"));
        let text = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        let broken = file("broken", text);
        assert!(with("http://a:1", Some(&broken), None).contains("without TLS"));
        assert!(with("a:1", Some(&broken), None).contains("--etcd-ca"));
        assert!(with("a:1", Some(&broken), Some((&broken, &junk))).contains("no PRIVATE KEY"));
        assert_eq!(
            Options::plain("a:1,http://b:2").channels().unwrap().len(),
            2
        );
    }

    #[test]
    fn a_password_is_the_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        assert!(password(&path).is_err());
        std::fs::write(&path, "\n").unwrap();
        assert!(
            password(&path)
                .unwrap_err()
                .to_string()
                .contains("first line")
        );
        std::fs::write(&path, "pass word\nmore\n").unwrap();
        assert_eq!(password(&path).unwrap(), "pass word");
    }
}
