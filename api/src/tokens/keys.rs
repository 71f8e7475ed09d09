//! Keys of tokens. Each is for the algorithms of its kind, and no other: a token does not choose.

use super::provider;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use std::fmt;

/// Shortest shared secret, in bytes: as long as what HS256 makes.
pub const SECRET_BYTES_MIN: usize = 32;
/// Bytes of an encoded RSA public key of 2048 bits with the smallest exponent; shorter ones are of fewer bits.
const RSA_BYTES_MIN: usize = 268;
/// Bytes of an uncompressed point of P-256 and P-384.
const POINT_BYTES: [(usize, &[Algorithm]); 2] =
    [(65, &[Algorithm::ES256]), (97, &[Algorithm::ES384])];

const SHARED: [Algorithm; 3] = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
const RSA: [Algorithm; 3] = [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512];

/// Why a key is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A short secret.
    #[error(
        "the secret has {0} bytes, and needs {SECRET_BYTES_MIN} (`openssl rand -hex 32` makes one)"
    )]
    Short(usize),
    /// A private key where a public one is wanted.
    #[error(
        "it has a private key: give the public one (`openssl pkey -pubout`), and keep the private one where tokens are made"
    )]
    Private,
    /// No such key in PEM.
    #[error("it has no {0} in PEM")]
    Pem(&'static str),
    /// A short RSA key.
    #[error("an RSA key needs at least 2048 bits")]
    RsaShort,
    /// Another curve.
    #[error("it is on a curve that is not supported: P-256 and P-384 are (ES256, ES384)")]
    Curve,
    /// No such algorithm of this kind of key.
    #[error("{0} is not an algorithm of such a key")]
    Algorithm(String),
}

/// What tokens are verified with.
#[derive(Clone)]
pub struct VerifyingKey {
    key: DecodingKey,
    algorithms: &'static [Algorithm],
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey(for {:?})", self.algorithms)
    }
}

impl VerifyingKey {
    /// A secret that whoever makes tokens has, too: HS256, HS384, HS512.
    ///
    /// # Errors
    /// [`KeyError::Short`].
    pub fn shared_secret(secret: &[u8]) -> Result<Self, KeyError> {
        let short = KeyError::Short(secret.len());
        if secret.len() < SECRET_BYTES_MIN {
            return Err(short);
        }
        Ok(Self {
            key: DecodingKey::from_secret(secret).map_err(|_| short)?,
            algorithms: &SHARED,
        })
    }

    /// An RSA public key in PEM: RS256, RS384, RS512.
    ///
    /// # Errors
    /// [`KeyError`] of what is none.
    pub fn rsa_public_pem(pem: &[u8]) -> Result<Self, KeyError> {
        public(pem)?;
        let none = |_| KeyError::Pem("RSA public key");
        let key = DecodingKey::from_rsa_pem(pem).map_err(none)?;
        if key.try_get_as_bytes().map_err(none)?.len() < RSA_BYTES_MIN {
            return Err(KeyError::RsaShort);
        }
        Ok(Self {
            key,
            algorithms: &RSA,
        })
    }

    /// An EC public key in PEM: ES256 or ES384, as its curve is.
    ///
    /// # Errors
    /// [`KeyError`] of what is none.
    pub fn ec_public_pem(pem: &[u8]) -> Result<Self, KeyError> {
        public(pem)?;
        let none = |_| KeyError::Pem("EC public key");
        let key = DecodingKey::from_ec_pem(pem).map_err(none)?;
        let bytes = key.try_get_as_bytes().map_err(none)?.len();
        let found = POINT_BYTES.iter().find(|(of, _)| *of == bytes);
        let (_, algorithms) = found.ok_or(KeyError::Curve)?;
        Ok(Self { key, algorithms })
    }

    pub(super) fn key(&self) -> &DecodingKey {
        &self.key
    }

    pub(super) fn algorithms(&self) -> &'static [Algorithm] {
        self.algorithms
    }
}

fn public(pem: &[u8]) -> Result<(), KeyError> {
    let private = b"PRIVATE KEY-----";
    match pem.windows(private.len()).any(|w| w == private) {
        true => Err(KeyError::Private),
        false => Ok(()),
    }
}

/// What tokens are signed with.
pub struct SigningKey {
    key: EncodingKey,
    algorithm: Algorithm,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(for {:?})", self.algorithm)
    }
}

impl SigningKey {
    /// A shared secret; `algorithm` HS256, HS384 or HS512.
    ///
    /// # Errors
    /// [`KeyError::Short`], [`KeyError::Algorithm`].
    pub fn shared_secret(secret: &[u8], algorithm: &str) -> Result<Self, KeyError> {
        let short = KeyError::Short(secret.len());
        if secret.len() < SECRET_BYTES_MIN {
            return Err(short);
        }
        Ok(Self {
            key: EncodingKey::from_secret(secret).map_err(|_| short)?,
            algorithm: one_of(&SHARED, algorithm)?,
        })
    }

    /// A private key in PEM (PKCS#8; RSA also PKCS#1); `algorithm` one of its kind.
    ///
    /// # Errors
    /// [`KeyError`] of what is none.
    pub fn private_pem(pem: &[u8], algorithm: &str) -> Result<Self, KeyError> {
        provider::install();
        if let Ok(key) = EncodingKey::from_rsa_pem(pem) {
            let algorithm = one_of(&RSA, algorithm)?;
            return Ok(Self { key, algorithm });
        }
        let none = |_| KeyError::Pem("RSA or EC private key (PKCS#8)");
        let key = EncodingKey::from_ec_pem(pem).map_err(none)?;
        let algorithm = one_of(&[Algorithm::ES256, Algorithm::ES384], algorithm)?;
        Ok(Self { key, algorithm })
    }

    pub(super) fn key(&self) -> &EncodingKey {
        &self.key
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn one_of(all: &[Algorithm], name: &str) -> Result<Algorithm, KeyError> {
    let found = all.iter().find(|a| format!("{a:?}") == name);
    found
        .copied()
        .ok_or_else(|| KeyError::Algorithm(name.chars().take(16).collect()))
}
