//! Tokens of the SDK's doors: JSON web tokens, signed with a shared secret, or an RSA or EC key (`docs/auth.md`). `keys` are what they are signed and verified with, `provider`
//! the cryptography of that, which is `ring`.
//!
//! Nothing here shows a token or a secret: errors have words, and claims that were verified, only.

mod keys;
mod provider;
#[cfg(test)]
mod tests;

pub use keys::{KeyError, SECRET_BYTES_MIN, SigningKey, VerifyingKey};

use jsonwebtoken::{Algorithm, Header, Validation, dangerous, decode, decode_header, encode};
use serde::{Deserialize, Deserializer, Serialize};

/// Longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Longest issuer that is repeated in words.
const SHOWN_CHARS: usize = 100;

/// What a token says. Times are s since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who made it.
    pub iss: String,
    /// The user.
    pub sub: String,
    /// Until when it is good.
    #[serde(deserialize_with = "seconds")]
    pub exp: u64,
    /// When it was made.
    #[serde(deserialize_with = "seconds")]
    pub iat: u64,
    /// Not good before.
    #[serde(
        default,
        deserialize_with = "maybe_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub nbf: Option<u64>,
    /// The user's name, for people.
    #[serde(default)]
    pub name: String,
    /// The user's address.
    #[serde(default)]
    pub email: String,
    /// Names of roles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Names of groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// Why a token does not count. Never has any of it but the issuer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token.
    #[error("it is no JSON web token of three parts, or one of its parts cannot be read")]
    Form,
    /// It is too long.
    #[error("it is longer than {TOKEN_BYTES_MAX} bytes")]
    Long,
    /// Signed in a way that no key of the issuer is for, or in none.
    #[error("it is signed in a way that no key of its issuer is for")]
    Algorithm,
    /// Signed with another key, or changed.
    #[error("its signature is not that of its issuer's key")]
    Signature,
    /// A claim that is missing, or cannot be.
    #[error("its claims cannot be used: {0}")]
    Claims(String),
    /// It is over.
    #[error("it expired {0} s ago: get a new one")]
    Expired(u64),
    /// It is of the future.
    #[error(
        "it is good only in {0} s: the clock of whoever made it, or of this node, may be wrong"
    )]
    Early(u64),
    /// It cannot be made.
    #[error("the key cannot sign: {0}")]
    Sign(String),
}

/// Times are numbers, whole or not.
fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(from)?;
    let not_whole = number.as_f64().filter(|n| (0.0..9e15).contains(n));
    let whole = number.as_u64().or(not_whole.map(|n| n as u64));
    whole.ok_or_else(|| serde::de::Error::custom("a time is none"))
}

fn maybe_seconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    seconds(from).map(Some)
}

#[derive(Deserialize)]
struct Issuer {
    iss: String,
}

/// Who a token says that it is of. Nobody has verified that yet.
///
/// # Errors
/// [`TokenError`] of what is no token.
pub fn unverified_issuer(token: &str) -> Result<String, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Long);
    }
    // `none` and the like are no algorithms that could be read.
    decode_header(token).map_err(|e| of(&e))?;
    let issuer: Issuer = dangerous::insecure_decode_claims(token).map_err(|e| of(&e))?;
    Ok(issuer.iss)
}

/// An issuer as it is shown: not longer than it may be, and without what a terminal acts upon.
pub fn shown_issuer(issuer: &str) -> String {
    let shown = issuer.chars().filter(|c| !c.is_control());
    shown.take(SHOWN_CHARS).collect()
}

/// What a token says, if one of these keys has signed it and it is good at this moment, s since the Unix epoch, by clocks that may differ by `skew_s`. The issuer is for the caller to compare.
///
/// # Errors
/// [`TokenError`]: why it does not count.
pub fn verify<'k>(
    token: &str,
    keys: impl IntoIterator<Item = &'k VerifyingKey>,
    now_s: u64,
    skew_s: u64,
) -> Result<Claims, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Long);
    }
    provider::install();
    let algorithm = decode_header(token).map_err(|e| of(&e))?.alg;
    let mut refused = TokenError::Algorithm;
    for key in keys {
        if !key.algorithms().contains(&algorithm) {
            continue;
        }
        match verify_one(token, key, algorithm) {
            Ok(claims) => return timely(claims, now_s, skew_s),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn verify_one(token: &str, key: &VerifyingKey, algorithm: Algorithm) -> Result<Claims, TokenError> {
    // Times are looked at below, by the caller's clock.
    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let decoded = decode::<Claims>(token, key.key(), &validation);
    Ok(decoded.map_err(|e| of(&e))?.claims)
}

fn timely(claims: Claims, now_s: u64, skew_s: u64) -> Result<Claims, TokenError> {
    for (claim, text) in [("iss", &claims.iss), ("sub", &claims.sub)] {
        if text.is_empty() {
            return Err(TokenError::Claims(format!("`{claim}` is empty")));
        }
    }
    let over_s = now_s.saturating_sub(claims.exp);
    if now_s >= claims.exp.saturating_add(skew_s) {
        return Err(TokenError::Expired(over_s));
    }
    let from_s = claims.iat.max(claims.nbf.unwrap_or(0));
    if from_s > now_s.saturating_add(skew_s) {
        return Err(TokenError::Early(from_s - now_s));
    }
    Ok(claims)
}

/// Makes a token.
///
/// # Errors
/// [`TokenError::Sign`].
pub fn sign(claims: &Claims, key: &SigningKey) -> Result<String, TokenError> {
    provider::install();
    let signed = encode(&Header::new(key.algorithm()), claims, key.key());
    signed.map_err(|_| TokenError::Sign("it is not one of its algorithm".into()))
}

/// The library's words without anything of the token.
fn of(error: &jsonwebtoken::errors::Error) -> TokenError {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => TokenError::Algorithm,
        // It names fields, not what is in them.
        ErrorKind::Json(error) if error.is_data() => {
            TokenError::Claims(without_values(&error.to_string()))
        }
        _ => TokenError::Form,
    }
}

/// What a JSON error says, up to where it would repeat a value.
fn without_values(text: &str) -> String {
    let missing = text.strip_prefix("missing field `");
    match missing.and_then(|rest| rest.split_once('`')) {
        Some((field, _)) => format!("`{field}` is missing"),
        None => "one of them is of another type than it must be".into(),
    }
}
