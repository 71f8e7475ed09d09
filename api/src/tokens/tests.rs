//! Tokens that must not count: what an attacker has is a token of the past, the public key, and whatever he writes into a header.

use super::*;
use proptest::prelude::*;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const OTHER: &[u8] = b"another secret of thirty-two bytes";
const RSA: &[u8] = include_bytes!("testkeys/rsa.pem");
const RSA_PUBLIC: &[u8] = include_bytes!("testkeys/rsa.pub.pem");
const NOW_S: u64 = 1_800_000_000;

fn claims() -> Claims {
    Claims {
        iss: "test".into(),
        sub: "ann".into(),
        exp: NOW_S + 100,
        iat: NOW_S - 100,
        roles: vec!["r".into()],
        ..Default::default()
    }
}

fn shared() -> VerifyingKey {
    VerifyingKey::shared_secret(SECRET).unwrap()
}

fn signed(claims: &Claims) -> String {
    sign(claims, &SigningKey::shared_secret(SECRET, "HS256").unwrap()).unwrap()
}

fn verified(token: &str) -> Result<Claims, TokenError> {
    verify(token, [&shared()], NOW_S, 60)
}

/// A token of these parts, signed with the secret as HS256.
fn raw(header: &str, payload: &str) -> String {
    use jsonwebtoken::crypto::sign;
    provider::install();
    let message = format!("{}.{}", b64(header), b64(payload));
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET).unwrap();
    let signature = sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

/// URL-safe base64 without padding.
fn b64(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..=chunk.len() {
            encoded.push(DIGITS[(bits >> (18 - 6 * at) & 63) as usize] as char);
        }
    }
    encoded
}

#[test]
fn every_algorithm_signs_and_verifies_and_no_other_key_does() {
    let ec256 = include_bytes!("testkeys/ec256.pem").as_slice();
    let ec384 = include_bytes!("testkeys/ec384.pem").as_slice();
    let public = [
        shared(),
        VerifyingKey::rsa_public_pem(RSA_PUBLIC).unwrap(),
        VerifyingKey::ec_public_pem(include_bytes!("testkeys/ec256.pub.pem")).unwrap(),
        VerifyingKey::ec_public_pem(include_bytes!("testkeys/ec384.pub.pem")).unwrap(),
    ];
    for (algorithm, pem, of) in [
        ("HS256", None, 0),
        ("HS384", None, 0),
        ("HS512", None, 0),
        ("RS256", Some(RSA), 1),
        ("RS384", Some(RSA), 1),
        ("RS512", Some(RSA), 1),
        ("ES256", Some(ec256), 2),
        ("ES384", Some(ec384), 3),
    ] {
        let key = match pem {
            None => SigningKey::shared_secret(SECRET, algorithm),
            Some(pem) => SigningKey::private_pem(pem, algorithm),
        };
        let token = sign(&claims(), &key.unwrap()).unwrap();
        for (at, key) in public.iter().enumerate() {
            let found = verify(&token, [key], NOW_S, 0);
            match at == of {
                true => assert_eq!(found.unwrap(), claims(), "{algorithm}"),
                false => assert_eq!(found, Err(TokenError::Algorithm), "{algorithm}"),
            }
        }
        assert_eq!(verify(&token, &public, NOW_S, 0).unwrap(), claims());
        let (head, signature) = token.rsplit_once('.').unwrap();
        let cut = format!("{head}.{}", &signature[..signature.len() - 2]);
        assert!(verify(&cut, &public, NOW_S, 0).is_err(), "{algorithm}");
    }
    let wrong = SigningKey::private_pem(ec256, "ES384").unwrap();
    assert!(sign(&claims(), &wrong).is_err(), "another curve");
    assert!(SigningKey::private_pem(RSA, "HS256").is_err());
    assert!(SigningKey::shared_secret(SECRET, "RS256").is_err());
}

#[test]
fn a_public_key_is_no_secret() {
    // Whoever has the public key signs with it as if it were a shared secret.
    let as_secret = SigningKey::shared_secret(RSA_PUBLIC, "HS256").unwrap();
    let forged = sign(&claims(), &as_secret).unwrap();
    let rsa = VerifyingKey::rsa_public_pem(RSA_PUBLIC).unwrap();
    let found = verify(&forged, [&rsa], NOW_S, 60);
    assert_eq!(found, Err(TokenError::Algorithm));
    let found = verify(&forged, [&rsa, &shared()], NOW_S, 60);
    assert_eq!(found, Err(TokenError::Signature));
}

#[test]
fn no_algorithm_is_none() {
    let payload = serde_json::to_string(&claims()).unwrap();
    for header in [
        r#"{"alg":"none"}"#,
        r#"{"alg":"None","typ":"JWT"}"#,
        r#"{"alg":""}"#,
        r#"{"typ":"JWT"}"#,
        r#"{"alg":"HS1"}"#,
        "{}",
    ] {
        let signed = raw(header, &payload);
        assert!(verified(&signed).is_err(), "{header}");
        let bare = format!("{}.{}.", b64(header), b64(&payload));
        assert!(verified(&bare).is_err(), "{header}");
        assert!(unverified_issuer(&bare).is_err(), "{header}");
    }
    let good = raw(r#"{"alg":"HS256"}"#, &payload);
    assert_eq!(verified(&good).unwrap(), claims());
    let critical = r#"{"alg":"HS256","crit":["b64"],"b64":false}"#;
    assert!(verified(&raw(critical, &payload)).is_err());
    let without = format!("{}.", good.rsplit_once('.').unwrap().0);
    assert_eq!(verified(&without), Err(TokenError::Signature));
}

#[test]
fn times_count_but_for_the_skew() {
    let at = |change: fn(&mut Claims)| {
        let mut claims = claims();
        change(&mut claims);
        verified(&signed(&claims)).map(drop)
    };
    assert_eq!(at(|_| ()), Ok(()));
    assert_eq!(at(|c| c.exp = NOW_S - 59), Ok(()));
    assert_eq!(at(|c| c.exp = NOW_S - 60), Err(TokenError::Expired(60)));
    assert_eq!(at(|c| c.exp = 0), Err(TokenError::Expired(NOW_S)));
    assert_eq!(at(|c| c.exp = u64::MAX), Ok(()));
    assert_eq!(at(|c| c.iat = NOW_S + 60), Ok(()));
    assert_eq!(at(|c| c.iat = NOW_S + 61), Err(TokenError::Early(61)));
    assert_eq!(at(|c| c.nbf = Some(NOW_S + 61)), Err(TokenError::Early(61)));
    assert!(at(|c| c.sub.clear()).is_err());
    assert!(at(|c| c.iss.clear()).is_err());
}

#[test]
fn claims_that_are_missing_or_of_another_type_are_named_without_what_is_in_them() {
    let head = r#"{"alg":"HS256"}"#;
    let full = r#"{"iss":"i","sub":"s","exp":1800000009.5,"iat":1}"#;
    assert_eq!(verified(&raw(head, full)).unwrap().exp, NOW_S + 9);
    for (without, payload) in [
        ("exp", r#"{"iss":"i","sub":"s","iat":1}"#),
        ("iat", r#"{"iss":"i","sub":"s","exp":1800000009}"#),
        ("sub", r#"{"iss":"i","exp":1800000009,"iat":1}"#),
    ] {
        let error = verified(&raw(head, payload)).unwrap_err();
        assert_eq!(
            error,
            TokenError::Claims(format!("`{without}` is missing")),
            "{payload}"
        );
    }
    for payload in [
        r#"{"iss":"i","sub":"s","exp":"9800000009","iat":1}"#,
        r#"{"iss":"i","sub":"s","exp":-1,"iat":1}"#,
        r#"{"iss":"i","sub":"s","exp":1e300,"iat":1}"#,
        r#"{"iss":"i","sub":"s","exp":null,"iat":1}"#,
        r#"{"iss":"i","sub":"s","exp":1800000009,"iat":1,"nbf":"secret-1"}"#,
        r#"{"iss":"i","sub":"s","exp":1800000009,"iat":1,"roles":"secret-2"}"#,
        r#"{"iss":"i","sub":"s","exp":1,"exp":1800000009,"iat":1}"#,
        r#"["secret-3"]"#,
        "secret-4",
    ] {
        let error = verified(&raw(head, payload)).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn what_is_no_token_or_too_long_is_refused() {
    let good = signed(&claims());
    assert_eq!(unverified_issuer(&good).unwrap(), "test");
    for bad in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "bearer x",
        &good.replace('.', ""),
        &format!("{good}.x"),
        &format!("{good}="),
    ] {
        assert!(verified(bad).is_err(), "{bad}");
    }
    let long = "a".repeat(TOKEN_BYTES_MAX + 1);
    assert_eq!(verified(&long), Err(TokenError::Long));
    assert_eq!(unverified_issuer(&long), Err(TokenError::Long));
    assert_eq!(shown_issuer("a\u{1b}[31mb"), "a[31mb");
    assert_eq!(shown_issuer(&"x".repeat(999)).len(), 100);
}

#[test]
fn another_secret_is_another_key_and_any_of_several_will_do() {
    let other = VerifyingKey::shared_secret(OTHER).unwrap();
    let token = signed(&claims());
    assert_eq!(
        verify(&token, [&other], NOW_S, 60),
        Err(TokenError::Signature)
    );
    assert!(verify(&token, [&other, &shared()], NOW_S, 60).is_ok());
    assert_eq!(verify(&token, [], NOW_S, 60), Err(TokenError::Algorithm));
}

#[test]
fn keys_that_cannot_be_are_told_and_none_is_shown() {
    assert_eq!(
        VerifyingKey::shared_secret(b"short").unwrap_err(),
        KeyError::Short(5)
    );
    assert!(SigningKey::shared_secret(b"short", "HS256").is_err());
    let refused = |key: Result<VerifyingKey, KeyError>| key.unwrap_err();
    assert_eq!(
        refused(VerifyingKey::rsa_public_pem(RSA)),
        KeyError::Private
    );
    let small = include_bytes!("testkeys/rsa1024.pub.pem");
    assert_eq!(
        refused(VerifyingKey::rsa_public_pem(small)),
        KeyError::RsaShort
    );
    let curve = include_bytes!("testkeys/ec521.pub.pem");
    assert_eq!(refused(VerifyingKey::ec_public_pem(curve)), KeyError::Curve);
    assert!(VerifyingKey::ec_public_pem(RSA_PUBLIC).is_err());
    assert!(VerifyingKey::rsa_public_pem(curve).is_err());
    assert!(VerifyingKey::rsa_public_pem(b"-----BEGIN").is_err());
    let debug = format!(
        "{:?} {:?} {:?}",
        shared(),
        SigningKey::shared_secret(SECRET, "HS512").unwrap(),
        VerifyingKey::shared_secret(SECRET)
    );
    assert!(
        debug.contains("HS512") && !debug.contains("0123") && !debug.contains("48, 49"),
        "{debug}"
    );
}

proptest! {
    #[test]
    fn no_text_panics_and_none_counts(text in "\\PC{0,300}") {
        prop_assert!(verified(&text).is_err());
    }

    #[test]
    fn a_token_that_was_changed_anywhere_does_not_count(at in 0usize..200, with in "[A-Za-z0-9_-]") {
        let good = signed(&claims());
        let at = at % good.len();
        let mut changed = good.clone();
        changed.replace_range(at..=at, &with);
        if changed != good && verified(&changed).is_ok() {
            // The last digit of base64 has bits that mean nothing: strict decoders refuse those, too.
            prop_assert!(false, "{at} {with}");
        }
    }
}
