use super::*;
use http::header::AUTHORIZATION;
use sandgate_mesh::sandbox::SandboxKey;
use sandgate_mesh::scoped_token::SigningKey;
use std::time::Duration;
use tokio::sync::watch;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const END: u64 = 1_900_000_000;

fn before_the_end() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(END - 1)
}

fn claims() -> Claims {
    Claims {
        scope: Scope {
            sandbox: SandboxKey {
                namespace: "team-a".parse().unwrap(),
                name: "alpha".parse().unwrap(),
            },
            uid: None,
            port: None,
            method: None,
            path: None,
        },
        expires: END,
    }
}

fn polled<T>(value: T) -> (watch::Sender<Option<Arc<T>>>, Option<Followed<T>>) {
    let (sender, receiver) = watch::channel(Some(Arc::new(value)));
    (sender, Some(receiver))
}

fn keys(pem: &str) -> Keys {
    Keys {
        keys: PublicKeys::parse(pem.as_bytes()).unwrap(),
        verified: Verified::default(),
    }
}

fn tokens(secrets: Option<Followed<Secrets>>, keys: Option<Followed<Keys>>) -> ScopedTokens {
    let v1_holder = holder(V1_HOLDER).unwrap();
    ScopedTokens {
        secrets,
        keys,
        v1_holder,
    }
}

#[test]
fn a_holder_is_named_by_the_key_and_bound_to_the_scope() {
    let key = SigningKey::generate().unwrap().0;
    let secrets = Secrets::parse(SECRET).unwrap();
    let (v1, v2) = (secrets.mint(&claims()).unwrap(), key.mint(&claims()).unwrap());
    let tokens = tokens(polled(secrets).1, polled(keys(&key.public_pem())).1);
    for (token, name) in [(&v1, "v1"), (&v2, key.id().as_str()), (&v2, key.id().as_str())] {
        let found = tokens.judge(token, before_the_end()).unwrap();
        assert_eq!(found.caller.to_string(), format!("scoped:{name}"));
        assert_eq!(
            Caller::from_assertion(found.assertion.as_bytes()).unwrap(),
            *found.caller
        );
        assert_eq!(found.scope.as_deref(), Some(&claims().scope));
    }
}

#[test]
fn without_a_file_for_its_version_no_token_is_good() {
    let key = SigningKey::generate().unwrap().0;
    let secrets = Secrets::parse(SECRET).unwrap();
    let (v1, v2) = (secrets.mint(&claims()).unwrap(), key.mint(&claims()).unwrap());
    let only_v1 = tokens(polled(secrets).1, None);
    let only_v2 = tokens(None, polled(keys(&key.public_pem())).1);
    assert_eq!(only_v1.judge(&v2, before_the_end()).err(), Some(TokenError::NoKey));
    assert_eq!(only_v2.judge(&v1, before_the_end()).err(), Some(TokenError::NoKey));
}

#[test]
fn a_key_that_is_taken_out_takes_its_remembered_tokens_along() {
    let (old, new) = (SigningKey::generate().unwrap().0, SigningKey::generate().unwrap().0);
    let (file, polled) = polled(keys(&(old.public_pem() + &new.public_pem())));
    let tokens = tokens(None, polled);
    let minted = [&old, &new].map(|key| key.mint(&claims()).unwrap());
    for _ in 0..2 {
        assert!(minted.iter().all(|token| tokens.judge(token, before_the_end()).is_ok()));
    }
    file.send_replace(Some(Arc::new(keys(&new.public_pem()))));
    assert_eq!(
        tokens.judge(&minted[0], before_the_end()).err(),
        Some(TokenError::UnknownKey)
    );
    assert!(tokens.judge(&minted[1], before_the_end()).is_ok());
}

#[test]
fn a_remembered_token_expires_as_any_other() {
    let key = SigningKey::generate().unwrap().0;
    let token = key.mint(&claims()).unwrap();
    let tokens = tokens(None, polled(keys(&key.public_pem())).1);
    assert!(tokens.judge(&token, before_the_end()).is_ok());
    let end = before_the_end() + Duration::from_secs(1);
    assert_eq!(tokens.judge(&token, end).err(), Some(TokenError::Expired));
}

#[test]
fn whatever_is_wrong_with_a_token_callers_hear_the_same() {
    let secrets = Secrets::parse(SECRET).unwrap();
    let mut expired = claims();
    expired.expires = 1;
    let expired = secrets.mint(&expired).unwrap();
    let tokens = tokens(polled(secrets).1, None);
    let check = |value: &[u8]| {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, http::HeaderValue::from_bytes(value).unwrap());
        tokens.check(&headers).map(|_| ())
    };
    assert_eq!(
        tokens.check(&HeaderMap::new()).map(|_| ()),
        Err(RouterError::NoCredential)
    );
    assert_eq!(check(b"Basic dXNlcjpwYXNz"), Err(RouterError::NoCredential));
    for bad in [
        b"Bearer ".as_slice(),
        b"Bearer s3cret",
        b"Bearer v1..",
        b"Bearer \xff",
        expired.as_bytes(),
    ] {
        let value = if bad == expired.as_bytes() {
            [b"Bearer ", bad].concat()
        } else {
            bad.to_vec()
        };
        assert_eq!(check(&value), Err(RouterError::BadCredential), "{}", bad.escape_ascii());
    }
}
