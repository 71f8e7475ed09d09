//! The file of `--auth`: whose tokens count, and what they are verified with (`docs/auth.md`, The file).
use super::caller::User;
use super::nodes::ISSUER;
use keelblock_api::tokens::{
    Claims, KeyError, TokenError, VerifyingKey, shown_issuer, unverified_issuer, verify,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// How far clocks may differ, unless the file says otherwise.
const SKEW_S: u64 = 60;
/// And at most.
const SKEW_S_MAX: u64 = 600;
/// Most roles and groups of a token.
const NAMES_MAX: usize = 64;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthFileError {
    /// It, or a file that it names, cannot be read.
    #[error("{what} cannot be read from {path}: {error}")]
    Read {
        /// What it is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It is no such JSON.
    #[error(
        "{path}, which --auth names, cannot be used: {why} (docs/auth.md has all of its fields)"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A key that is none.
    #[error("the key of issuer {issuer} in {path} cannot be used: {error}")]
    Key {
        /// Whose.
        issuer: String,
        /// The file that it is in.
        path: PathBuf,
        /// Why.
        error: KeyError,
    },
}

/// What users are called by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum UsernameClaim {
    #[default]
    Sub,
    Email,
    Name,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    clock_skew_s: Option<u64>,
    authenticators: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    issuer: String,
    shared_secret_file: Option<PathBuf>,
    rsa_public_key_file: Option<PathBuf>,
    ec_public_key_file: Option<PathBuf>,
    oidc: Option<serde_json::Value>,
    #[serde(default)]
    username_claim: UsernameClaim,
}

#[derive(Debug)]
struct Authenticator {
    keys: Vec<VerifyingKey>,
    username: UsernameClaim,
}

/// Whose tokens count.
#[derive(Debug)]
pub struct Authenticators {
    skew_s: u64,
    by_issuer: BTreeMap<String, Authenticator>,
}

impl Authenticators {
    /// From a file.
    ///
    /// # Errors
    /// [`AuthFileError`].
    pub fn read(path: &Path) -> Result<Self, AuthFileError> {
        let text = read("what --auth names", path)?;
        let content = |why: String| AuthFileError::Content {
            path: path.into(),
            why,
        };
        let file: File =
            serde_json::from_slice(&text).map_err(|error| content(error.to_string()))?;
        let skew_s = file.clock_skew_s.unwrap_or(SKEW_S);
        if skew_s > SKEW_S_MAX {
            return Err(content(format!("clock_skew_s is above {SKEW_S_MAX}")));
        }
        if file.authenticators.is_empty() {
            return Err(content(
                "it has no authenticators, so no token would count".into(),
            ));
        }
        let mut by_issuer: BTreeMap<String, Authenticator> = BTreeMap::new();
        for entry in file.authenticators {
            if entry.issuer.is_empty() || entry.issuer == ISSUER {
                let issuer = &entry.issuer;
                return Err(content(format!("an issuer cannot be called `{issuer}`")));
            }
            let key = entry.key(path)?;
            let known = by_issuer.entry(entry.issuer.clone());
            let known = known.or_insert_with(|| Authenticator {
                keys: Vec::new(),
                username: entry.username_claim,
            });
            if known.username != entry.username_claim {
                let issuer = &entry.issuer;
                return Err(content(format!(
                    "issuer {issuer} is there with one username_claim and with another"
                )));
            }
            known.keys.push(key);
        }
        Ok(Self { skew_s, by_issuer })
    }

    /// How far clocks may differ, in s.
    pub(super) fn skew_s(&self) -> u64 {
        self.skew_s
    }

    /// The user that a token is of, at this moment, s since the Unix epoch.
    ///
    /// # Errors
    /// Why it does not count, for whoever brought it.
    pub(super) fn user(&self, token: &str, now_s: u64) -> Result<User, String> {
        let issuer = unverified_issuer(token).map_err(|e| e.to_string())?;
        let found = self.by_issuer.get(&issuer).ok_or_else(|| {
            let issuer = shown_issuer(&issuer);
            format!("its issuer `{issuer}` is none that this node was told of (--auth)")
        })?;
        let claims = verify(token, &found.keys, now_s, self.skew_s).map_err(|e| e.to_string())?;
        if claims.iss != issuer {
            return Err(TokenError::Form.to_string());
        }
        user(claims, found.username)
    }
}

fn user(claims: Claims, username: UsernameClaim) -> Result<User, String> {
    let (claim, name) = match username {
        UsernameClaim::Sub => ("sub", claims.sub),
        UsernameClaim::Email => ("email", claims.email),
        UsernameClaim::Name => ("name", claims.name),
    };
    if name.is_empty() {
        return Err(format!(
            "it has no `{claim}`, which users of its issuer are called by"
        ));
    }
    for (claim, names) in [("roles", &claims.roles), ("groups", &claims.groups)] {
        if names.len() > NAMES_MAX {
            let n = names.len();
            return Err(format!("it has {n} {claim}, at most {NAMES_MAX}"));
        }
    }
    Ok(User {
        name,
        roles: claims.roles,
        groups: claims.groups,
    })
}

fn read(what: &'static str, path: &Path) -> Result<Zeroizing<Vec<u8>>, AuthFileError> {
    let read = std::fs::read(path);
    read.map(Zeroizing::new)
        .map_err(|error| AuthFileError::Read {
            what,
            path: path.into(),
            error,
        })
}

impl Entry {
    /// Its key; paths are relative to the file that it is in.
    fn key(&self, file: &Path) -> Result<VerifyingKey, AuthFileError> {
        let content = |why: &str| AuthFileError::Content {
            path: file.into(),
            why: format!("the authenticator of issuer {}: {why}", self.issuer),
        };
        if self.oidc.is_some() {
            return Err(content(
                "`oidc` is not supported: give the provider's public key as rsa_public_key_file or ec_public_key_file",
            ));
        }
        type Parse = fn(&[u8]) -> Result<VerifyingKey, KeyError>;
        let kinds: [(&Option<PathBuf>, Parse); 3] = [
            (&self.shared_secret_file, |text| {
                VerifyingKey::shared_secret(first_line(text))
            }),
            (&self.rsa_public_key_file, VerifyingKey::rsa_public_pem),
            (&self.ec_public_key_file, VerifyingKey::ec_public_pem),
        ];
        let mut given = kinds
            .iter()
            .filter_map(|(path, parse)| path.as_ref().map(|path| (path, parse)));
        let (Some((path, parse)), None) = (given.next(), given.next()) else {
            return Err(content(
                "it needs one of shared_secret_file, rsa_public_key_file and ec_public_key_file",
            ));
        };
        let path = file.parent().unwrap_or(Path::new("")).join(path);
        let text = read("the key of an issuer", &path)?;
        parse(&text).map_err(|error| AuthFileError::Key {
            issuer: self.issuer.clone(),
            path,
            error,
        })
    }
}

fn first_line(text: &[u8]) -> &[u8] {
    let line = text.split(|b| *b == b'\n').next().unwrap_or_default();
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelblock_api::tokens::{SigningKey, sign};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const NEXT: &str = "fedcba9876543210fedcba9876543210";

    fn read_file(json: &str) -> Result<Authenticators, AuthFileError> {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("secret", &format!("{SECRET}\r\nmore\n"));
        write("next", NEXT);
        write("short", "secret7");
        write("auth.json", json);
        Authenticators::read(&dir.path().join("auth.json"))
    }

    fn one(entry: &str) -> Result<Authenticators, AuthFileError> {
        read_file(&format!("{{\"authenticators\":[{entry}]}}"))
    }

    fn token(secret: &str, change: impl FnOnce(&mut Claims)) -> String {
        let mut claims = Claims {
            iss: "i".into(),
            sub: "ann".into(),
            email: "ann@example".into(),
            exp: 2000,
            iat: 1000,
            roles: vec!["r".into()],
            groups: vec!["g".into()],
            ..Default::default()
        };
        change(&mut claims);
        let key = SigningKey::shared_secret(secret.as_bytes(), "HS256").unwrap();
        sign(&claims, &key).unwrap()
    }

    #[test]
    fn what_cannot_be_used_is_named_and_no_secret_is_shown() {
        for (entry, says) in [
            (r#"{"issuer":"i"}"#, "needs one of"),
            (
                r#"{"issuer":"i","shared_secret_file":"secret","ec_public_key_file":"x"}"#,
                "needs one of",
            ),
            (
                r#"{"issuer":"i","oidc":{"client_id":"x"}}"#,
                "`oidc` is not supported",
            ),
            (
                r#"{"issuer":"i","shared_secret":"secret"}"#,
                "shared_secret",
            ),
            (r#"{"issuer":"","shared_secret_file":"secret"}"#, "issuer"),
            (
                r#"{"issuer":"keelblock.node","shared_secret_file":"secret"}"#,
                "keelblock.node",
            ),
            (r#"{"issuer":"i","shared_secret_file":"short"}"#, "7 bytes"),
            (
                r#"{"issuer":"i","shared_secret_file":"none"}"#,
                "cannot be read",
            ),
            (
                r#"{"issuer":"i","rsa_public_key_file":"secret"}"#,
                "no RSA public key",
            ),
            (
                r#"{"issuer":"i","shared_secret_file":"secret","username_claim":"id"}"#,
                "id",
            ),
            (
                r#"{"issuer":"i","shared_secret_file":"secret"},{"issuer":"i","shared_secret_file":"next","username_claim":"email"}"#,
                "one username_claim",
            ),
        ] {
            let error = one(entry).unwrap_err().to_string();
            assert!(error.contains(says), "{entry}: {error}");
            assert!(
                !error.contains(SECRET) && !error.contains("secret7"),
                "{error}"
            );
        }
        for (json, says) in [
            ("", "cannot be used"),
            ("[]", "cannot be used"),
            (r#"{"authenticators":[]}"#, "no authenticators"),
            (r#"{"authenticators":[],"clock_skew":1}"#, "clock_skew"),
            (r#"{"authenticators":[],"clock_skew_s":601}"#, "above 600"),
        ] {
            let error = read_file(json).unwrap_err().to_string();
            assert!(error.contains(says), "{json}: {error}");
        }
        let nowhere = Authenticators::read(Path::new("/none/auth.json")).unwrap_err();
        assert!(nowhere.to_string().contains("/none/auth.json"));
        let read = one(r#"{"issuer":"i","shared_secret_file":"secret"}"#).unwrap();
        assert!(!format!("{read:?}").contains("0123"), "{read:?}");
    }

    #[test]
    fn a_token_is_of_its_issuer() {
        let auth = one(r#"{"issuer":"i","shared_secret_file":"secret"},{"issuer":"j","shared_secret_file":"next"}"#).unwrap();
        let ann = auth.user(&token(SECRET, |_| ()), 1500).unwrap();
        assert_eq!(ann.name, "ann");
        assert_eq!(
            (ann.roles, ann.groups),
            (vec!["r".to_owned()], vec!["g".to_owned()])
        );
        let refused = |token: &str, now| auth.user(token, now).unwrap_err();
        let of_j = token(SECRET, |c| c.iss = "j".into());
        assert!(refused(&of_j, 1500).contains("signature"), "signed by i");
        let of_k = token(SECRET, |c| c.iss = "k\n".into());
        assert!(refused(&of_k, 1500).contains("`k`"), "nobody's");
        assert!(refused(&token(SECRET, |_| ()), 2060).contains("expired 60 s ago"));
        assert!(auth.user(&token(SECRET, |_| ()), 2059).is_ok(), "skew");
        assert!(refused("x", 1500).contains("no JSON web token"));
        let many = token(SECRET, |c| c.roles = vec!["r".into(); 65]);
        assert!(refused(&many, 1500).contains("65 roles"));
    }

    #[test]
    fn keys_of_an_issuer_can_be_changed_and_users_be_called_otherwise() {
        let auth = read_file(
            r#"{"clock_skew_s":0,"authenticators":[
                {"issuer":"i","shared_secret_file":"secret","username_claim":"email"},
                {"issuer":"i","shared_secret_file":"next","username_claim":"email"}]}"#,
        )
        .unwrap();
        for secret in [SECRET, NEXT] {
            let user = auth.user(&token(secret, |_| ()), 1500).unwrap();
            assert_eq!(user.name, "ann@example");
        }
        let without = token(SECRET, |c| c.email.clear());
        assert!(auth.user(&without, 1500).unwrap_err().contains("`email`"));
        assert!(auth.user(&token(SECRET, |_| ()), 2000).is_err(), "no skew");
    }
}
