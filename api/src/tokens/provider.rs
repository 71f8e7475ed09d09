//! The cryptography of tokens: `ring`, which is in the program anyway, behind the seam that the library of tokens has for that. Of the algorithms only those that keys are
//! for (`keys`) are there.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error as JwtError, ErrorKind};
use jsonwebtoken::signature::{Error, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey};
use ring::rand::SystemRandom;
use ring::{hmac, signature as asymmetric};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    // Of JSON web keys, which are not used.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Has the library use it, from the first time on.
pub(super) fn install() {
    // It is an error if it is there already, which is the same.
    let _ = PROVIDER.install_default();
}

fn hmac_of(algorithm: Algorithm) -> Option<hmac::Algorithm> {
    match algorithm {
        Algorithm::HS256 => Some(hmac::HMAC_SHA256),
        Algorithm::HS384 => Some(hmac::HMAC_SHA384),
        Algorithm::HS512 => Some(hmac::HMAC_SHA512),
        _ => None,
    }
}

fn verifying(algorithm: Algorithm) -> Option<&'static dyn asymmetric::VerificationAlgorithm> {
    match algorithm {
        Algorithm::RS256 => Some(&asymmetric::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Some(&asymmetric::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Some(&asymmetric::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::ES256 => Some(&asymmetric::ECDSA_P256_SHA256_FIXED),
        Algorithm::ES384 => Some(&asymmetric::ECDSA_P384_SHA384_FIXED),
        _ => None,
    }
}

fn rsa_of(algorithm: Algorithm) -> Option<&'static dyn asymmetric::RsaEncoding> {
    match algorithm {
        Algorithm::RS256 => Some(&asymmetric::RSA_PKCS1_SHA256),
        Algorithm::RS384 => Some(&asymmetric::RSA_PKCS1_SHA384),
        Algorithm::RS512 => Some(&asymmetric::RSA_PKCS1_SHA512),
        _ => None,
    }
}

fn ec_of(algorithm: Algorithm) -> Option<&'static asymmetric::EcdsaSigningAlgorithm> {
    match algorithm {
        Algorithm::ES256 => Some(&asymmetric::ECDSA_P256_SHA256_FIXED_SIGNING),
        Algorithm::ES384 => Some(&asymmetric::ECDSA_P384_SHA384_FIXED_SIGNING),
        _ => None,
    }
}

fn not_for_it() -> JwtError {
    ErrorKind::InvalidAlgorithm.into()
}

/// That the key is of the algorithm's kind: a public key is no secret.
fn same_kind(algorithm: Algorithm, family: AlgorithmFamily) -> Result<(), JwtError> {
    match algorithm.family() == family {
        true => Ok(()),
        false => Err(not_for_it()),
    }
}

enum Signing {
    Shared(hmac::Key),
    Rsa(
        Box<asymmetric::RsaKeyPair>,
        &'static dyn asymmetric::RsaEncoding,
    ),
    Ec(asymmetric::EcdsaKeyPair),
}

struct Sign(Algorithm, Signing);

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, JwtError> {
    let algorithm = *algorithm;
    same_kind(algorithm, key.family())?;
    let signing = match (hmac_of(algorithm), rsa_of(algorithm), ec_of(algorithm)) {
        (Some(hmac), _, _) => Signing::Shared(hmac::Key::new(hmac, key.as_bytes())),
        (_, Some(encoding), _) => {
            let pair = asymmetric::RsaKeyPair::from_der(key.as_bytes());
            let pair = pair.map_err(|e| ErrorKind::InvalidRsaKey(e.to_string()))?;
            Signing::Rsa(Box::new(pair), encoding)
        }
        (_, _, Some(ec)) => {
            let random = SystemRandom::new();
            let pair = asymmetric::EcdsaKeyPair::from_pkcs8(ec, key.as_bytes(), &random);
            Signing::Ec(pair.map_err(|_| ErrorKind::InvalidEcdsaKey)?)
        }
        _ => return Err(not_for_it()),
    };
    Ok(Box::new(Sign(algorithm, signing)))
}

impl Signer<Vec<u8>> for Sign {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let random = SystemRandom::new();
        match &self.1 {
            Signing::Shared(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            Signing::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                let signed = pair.sign(*encoding, &random, message, &mut signature);
                signed.map(|()| signature).map_err(|_| Error::new())
            }
            Signing::Ec(pair) => {
                let signed = pair.sign(&random, message);
                let signed = signed.map_err(|_| Error::new())?;
                Ok(signed.as_ref().to_vec())
            }
        }
    }
}

impl JwtSigner for Sign {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}

enum Verifying {
    Shared(hmac::Key),
    Public(asymmetric::UnparsedPublicKey<Vec<u8>>),
}

struct Verify(Algorithm, Verifying);

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, JwtError> {
    let algorithm = *algorithm;
    same_kind(algorithm, key.family())?;
    let bytes = key.try_get_as_bytes()?;
    let verifying = match (hmac_of(algorithm), verifying(algorithm)) {
        (Some(hmac), _) => Verifying::Shared(hmac::Key::new(hmac, bytes)),
        (_, Some(public)) => {
            let key = asymmetric::UnparsedPublicKey::new(public, bytes.to_vec());
            Verifying::Public(key)
        }
        _ => return Err(not_for_it()),
    };
    Ok(Box::new(Verify(algorithm, verifying)))
}

impl Verifier<Vec<u8>> for Verify {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), Error> {
        let verified = match &self.1 {
            Verifying::Shared(key) => hmac::verify(key, message, signature),
            Verifying::Public(key) => key.verify(message, signature),
        };
        verified.map_err(|_| Error::new())
    }
}

impl JwtVerifier for Verify {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}
