//! `keelctl auth …`: tokens, made here without asking any node (`docs/auth.md`), and the token that this program brings itself.
use crate::failure::{Failure, Result};
use crate::render::Answer;
use crate::time::{parse_interval, unix_ms};
use clap::{Args, Subcommand};
use keelblock_api::tokens::{Claims, SigningKey, sign};
use serde_json::json;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// A token as the command line or the environment has it. Never shown.
#[derive(Clone)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl std::str::FromStr for Token {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(Self(text.trim().to_owned()))
    }
}

/// Who asks.
#[derive(Debug, Clone, Args)]
pub struct Who {
    /// The token to bring; others of this machine may see a command line: rather use the environment, or --token-file.
    #[arg(
        long,
        global = true,
        env = "KEELBLOCK_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    token: Option<Token>,
    /// A file whose first line is the token to bring.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Who {
    /// The token to bring; `None`: none.
    pub fn token(&self) -> Result<Option<Zeroizing<String>>> {
        let text = match (&self.token_file, &self.token) {
            (Some(path), _) => Zeroizing::new(first_line("the token", path)?),
            (None, Some(Token(text))) => Zeroizing::new(text.clone()),
            (None, None) => return Ok(None),
        };
        Ok(Some(text).filter(|t| !t.is_empty()))
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tokens.
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, of a shared secret or a private key. No node is asked.
    Generate(Box<Generate>),
}

/// What a token is to say.
#[derive(Debug, Args)]
pub struct Generate {
    /// As the file of --auth has it for this key.
    #[arg(long)]
    issuer: String,
    /// The user: what volumes are owned by.
    #[arg(long)]
    subject: String,
    /// The user's name.
    #[arg(long, default_value = "")]
    name: String,
    /// The user's address.
    #[arg(long, default_value = "")]
    email: String,
    /// A role (repeatable), like system.user.
    #[arg(long = "role")]
    roles: Vec<String>,
    /// A group (repeatable); `*` may do anything with any volume.
    #[arg(long = "group")]
    groups: Vec<String>,
    /// How long it is good, like 30m, 12h or 7d.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_interval)]
    duration: u64,
    /// A file whose first line is the secret that nodes have, too.
    #[arg(long, value_name = "FILE", group = "key", required = true)]
    shared_secret_file: Option<PathBuf>,
    /// A private key in PEM (PKCS#8), whose public key nodes have.
    #[arg(long, value_name = "FILE", group = "key", requires = "algorithm")]
    private_key_file: Option<PathBuf>,
    /// HS256, HS384, HS512 with a secret; RS256, RS384, RS512, ES256, ES384 with a private key.
    #[arg(long, value_name = "NAME")]
    algorithm: Option<String>,
}

fn read(what: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let read = std::fs::read(path);
    let failed = |e: std::io::Error| {
        Failure::local(
            format!("read {what} from {}", path.display()),
            e.to_string(),
        )
    };
    read.map(Zeroizing::new).map_err(failed)
}

fn first_line(what: &str, path: &Path) -> Result<String> {
    let bytes = read(what, path)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Answers without asking a node.
pub fn run(command: Command) -> Result<Answer> {
    let Command::Token(TokenCommand::Generate(wanted)) = command;
    let (token, expires_s) = generate(*wanted, unix_ms() / 1000)?;
    let data = json!({ "token": token, "expires_unix_s": expires_s });
    Ok(Answer::new(data, token))
}

/// A token, and until when it is good, s since the Unix epoch.
fn generate(wanted: Generate, now_s: u64) -> Result<(String, u64)> {
    let key = match (&wanted.shared_secret_file, &wanted.private_key_file) {
        (Some(path), _) => {
            let secret = Zeroizing::new(first_line("the secret", path)?);
            let algorithm = wanted.algorithm.as_deref().unwrap_or("HS256");
            SigningKey::shared_secret(secret.as_bytes(), algorithm)
        }
        (None, Some(path)) => {
            let algorithm = wanted.algorithm.as_deref().unwrap_or_default();
            SigningKey::private_pem(&read("the private key", path)?, algorithm)
        }
        (None, None) => {
            let say = "say what signs it: --shared-secret-file or --private-key-file";
            return Err(Failure::Usage(say.into()));
        }
    };
    let failed = |why: String| Failure::local("make a token", why);
    let key = key.map_err(|e| failed(e.to_string()))?;
    let exp = now_s.saturating_add(wanted.duration);
    let claims = Claims {
        iss: wanted.issuer,
        sub: wanted.subject,
        exp,
        iat: now_s,
        nbf: None,
        name: wanted.name,
        email: wanted.email,
        roles: wanted.roles,
        groups: wanted.groups,
    };
    let token = sign(&claims, &key).map_err(|e| failed(e.to_string()))?;
    Ok((token, exp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use keelblock_api::tokens::{VerifyingKey, verify};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        who: Who,
        #[command(subcommand)]
        command: Option<Command>,
    }

    fn line(text: &str) -> std::result::Result<Line, clap::Error> {
        Line::try_parse_from(std::iter::once("keelctl").chain(text.split(' ')))
    }

    #[test]
    fn a_token_says_what_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let secret = "0123456789abcdef0123456789abcdef";
        std::fs::write(&path, format!("{secret}\n")).unwrap();
        let text = format!(
            "auth token generate --issuer i --subject ann --role r --role s --group g --duration 1h --algorithm HS384 --shared-secret-file {}",
            path.display()
        );
        let text = text.strip_prefix("auth ").unwrap();
        let Some(Command::Token(TokenCommand::Generate(wanted))) = line(text).unwrap().command
        else {
            panic!("it is another command");
        };
        let (token, expires_s) = generate(*wanted, 1000).unwrap();
        let token = token.as_str();
        assert_eq!(expires_s, 4600);
        let key = VerifyingKey::shared_secret(secret.as_bytes()).unwrap();
        let claims = verify(token, [&key], 4599, 0).unwrap();
        assert_eq!((claims.sub.as_str(), claims.exp), ("ann", 4600));
        assert_eq!((claims.roles.len(), claims.groups.len()), (2, 1));
        assert!(verify(token, [&key], 4600, 0).is_err());
    }

    #[test]
    fn a_key_is_needed_and_one_that_is_none_is_refused_without_showing_it() {
        let with = |rest: &str| line(&format!("token generate --issuer i --subject s {rest}"));
        assert!(with("--role r").is_err());
        assert!(with("--shared-secret-file a --private-key-file b").is_err());
        assert!(with("--private-key-file b").is_err(), "which algorithm?");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "tooshort").unwrap();
        let read = with(&format!("--shared-secret-file {}", path.display())).unwrap();
        let refused = run(read.command.unwrap()).err();
        let error = refused.expect("it is too short").to_string();
        assert!(
            error.contains("8 bytes") && !error.contains("tooshort"),
            "{error}"
        );
    }

    #[test]
    fn the_token_that_is_brought_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "from-file\nmore").unwrap();
        let given = line("--token hush").unwrap();
        assert!(!format!("{given:?}").contains("hush"), "{given:?}");
        assert_eq!(given.who.token().unwrap().unwrap().as_str(), "hush");
        let both = format!("--token hush --token-file {}", path.display());
        let both = line(&both).unwrap().who.token().unwrap();
        assert_eq!(both.unwrap().as_str(), "from-file");
        let none = Who {
            token: Some(Token(String::new())),
            token_file: None,
        };
        assert!(none.token().unwrap().is_none(), "an empty variable is none");
    }
}
