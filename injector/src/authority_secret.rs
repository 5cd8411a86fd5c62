//! The Secret that holds the root. The chart makes it empty; whichever replica fills it first has done so for all.

use crate::authority::{Authority, AuthorityError, NewRoot, Root};
use crate::kubernetes::{RequestError, bounded};
use crate::names::FIELD_MANAGER;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// The entry with the root that signs.
pub(crate) const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// The certificate of a root that will sign later: trusted ahead of time.
const NEXT_CERTIFICATE: &str = "next.crt";

type Content = BTreeMap<String, ByteString>;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// What is stored makes none.
    #[error(
        "Secret {namespace}/{name}: {key}: {cause}; correct it; for a new root, scale the injector to zero, empty the \
         Secret's data, start again"
    )]
    Unusable {
        namespace: String,
        name: String,
        key: &'static str,
        cause: AuthorityError,
    },
    /// There is none.
    #[error(
        "Secret {namespace}/{name}: there is none; run `helm upgrade`, or apply the manifests: they make it, empty, and \
         the injector may only fill it"
    )]
    Missing { namespace: String, name: String },
    /// It couldn't be read or filled.
    #[error("Secret {namespace}/{name}: {cause}")]
    Request {
        namespace: String,
        name: String,
        cause: RequestError,
    },
    /// No randomness.
    #[error("no root can be made: {0}")]
    Generate(#[from] rcgen::Error),
}

/// What the Secret held when it was last read.
pub(crate) struct Stored {
    /// The root that signs.
    pub(crate) authority: Authority,
    /// Every root that is to be trusted: the one that signs first.
    pub(crate) roots: Vec<Root>,
    content: Content,
}

/// The Secret.
pub(crate) struct AuthoritySecret {
    api: Api<Secret>,
    namespace: String,
    name: String,
}

impl AuthoritySecret {
    pub(crate) fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Reads the Secret. Where it is empty, as the chart makes it, it is filled: again as it was, if it was read before,
    /// since everything that trusts the root would have to learn a new one; with a new root otherwise.
    ///
    /// # Errors
    /// The API server can't be asked, there is no Secret, or it holds no usable root.
    pub(crate) async fn read_or_fill(&self, before: Option<&Stored>) -> Result<Stored, SecretError> {
        let found = self.requested(bounded(self.api.get_opt(&self.name)).await)?;
        let found = found.ok_or_else(|| SecretError::Missing {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        })?;
        if found.data.as_ref().is_some_and(|data| !data.is_empty()) {
            return self.stored(found);
        }
        let content = match before {
            Some(before) => before.content.clone(),
            None => new_content()?,
        };
        let filled = self.fill_or_read(found, content).await;
        self.stored(self.requested(filled)?)
    }

    /// With the version that was found, so that only one replica fills it.
    async fn fill_or_read(&self, mut secret: Secret, content: Content) -> Result<Secret, RequestError> {
        secret.data = Some(content);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        match bounded(self.api.replace(&self.name, &params, &secret)).await {
            Ok(filled) => {
                let (namespace, name) = (&self.namespace, filled.name_any());
                tracing::info!(namespace, name, "stored the root certificate in the Secret");
                Ok(filled)
            }
            // Another replica was first, and its root is the one.
            Err(error) if error.is_conflict() => bounded(self.api.get(&self.name)).await,
            Err(error) => Err(error),
        }
    }

    fn requested<T>(&self, answer: Result<T, RequestError>) -> Result<T, SecretError> {
        answer.map_err(|cause| SecretError::Request {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            cause,
        })
    }

    fn stored(&self, secret: Secret) -> Result<Stored, SecretError> {
        read(secret.data.unwrap_or_default()).map_err(|(key, cause)| SecretError::Unusable {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            key,
            cause,
        })
    }
}

fn new_content() -> Result<Content, rcgen::Error> {
    let root = NewRoot::generate()?;
    let part = |key: &str, pem: String| (key.to_owned(), ByteString(pem.into_bytes()));
    Ok(Content::from([
        part(CERTIFICATE, root.certificate_pem),
        part(KEY, root.key_pem),
    ]))
}

impl Stored {
    /// Whether the Secret held the same.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.content == other.content
    }

    /// What a Secret holds after it was filled.
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        read(new_content().unwrap()).map_err(|(_, cause)| cause).unwrap()
    }

    /// The same, read once more.
    #[cfg(test)]
    pub(crate) fn read_again(&self) -> Self {
        read(self.content.clone()).map_err(|(_, cause)| cause).unwrap()
    }

    /// The same where the other's root is the next.
    #[cfg(test)]
    pub(crate) fn with_next(&self, other: &Self) -> Self {
        let mut content = self.content.clone();
        content.insert(NEXT_CERTIFICATE.into(), other.content[CERTIFICATE].clone());
        read(content).map_err(|(_, cause)| cause).unwrap()
    }
}

fn read(content: Content) -> Result<Stored, (&'static str, AuthorityError)> {
    let part = |key: &str| content.get(key).map(|part| part.0.as_slice());
    let (certificate, key) = (part(CERTIFICATE).unwrap_or_default(), part(KEY).unwrap_or_default());
    let authority = Authority::from_pem(certificate, key, SystemTime::now()).map_err(|cause| {
        let about_key = matches!(cause, AuthorityError::Key | AuthorityError::KeyMismatch);
        (if about_key { KEY } else { CERTIFICATE }, cause)
    })?;
    let mut roots = vec![authority.root().clone()];
    if let Some(next) = part(NEXT_CERTIFICATE).filter(|next| !next.is_empty()) {
        roots.push(Root::from_pem(next).map_err(|cause| (NEXT_CERTIFICATE, cause))?);
    }
    Ok(Stored {
        authority,
        roots,
        content,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(content: Content) -> (&'static str, AuthorityError) {
        read(content).err().expect("refused")
    }

    /// The injector may neither make nor delete a Secret, so no advice leads there.
    #[test]
    fn errors_advise_what_the_charts_rights_allow() {
        let (namespace, name) = ("here".to_owned(), "root".to_owned());
        let unusable = SecretError::Unusable {
            namespace: namespace.clone(),
            name: name.clone(),
            key: CERTIFICATE,
            cause: AuthorityError::Pem,
        };
        assert_eq!(
            unusable.to_string(),
            "Secret here/root: tls.crt: the certificate isn't valid PEM; correct it; for a new root, scale the injector to \
             zero, empty the Secret's data, start again"
        );
        let missing = SecretError::Missing { namespace, name }.to_string();
        assert!(
            missing.starts_with("Secret here/root: there is none; run `helm upgrade`"),
            "{missing}"
        );
    }

    #[test]
    fn a_new_secret_reads_back() {
        let stored = read(new_content().unwrap()).unwrap();
        assert_eq!(stored.roots, [stored.authority.root().clone()]);
    }

    #[test]
    fn a_next_root_is_trusted_and_does_not_sign() {
        let (mut content, next) = (new_content().unwrap(), new_content().unwrap());
        content.insert(NEXT_CERTIFICATE.into(), next[CERTIFICATE].clone());
        let stored = read(content).unwrap();
        let next = Root::from_pem(&next[CERTIFICATE].0).unwrap();
        assert_eq!(stored.roots, [stored.authority.root().clone(), next.clone()]);
        assert_ne!(*stored.authority.root(), next);
    }

    #[test]
    fn the_key_that_does_not_fit_is_named() {
        let (content, other) = (new_content().unwrap(), new_content().unwrap());
        let with = |key: &str, part: &ByteString| {
            let mut content = content.clone();
            content.insert(key.into(), part.clone());
            content
        };
        assert_eq!(refused(Content::new()), (CERTIFICATE, AuthorityError::NotOne(0)));
        assert_eq!(refused(with(KEY, &other[KEY])), (KEY, AuthorityError::KeyMismatch));
        assert_eq!(refused(with(KEY, &content[CERTIFICATE])), (KEY, AuthorityError::Key));
        let junk = ByteString(b"junk".to_vec());
        assert_eq!(
            refused(with(NEXT_CERTIFICATE, &junk)),
            (NEXT_CERTIFICATE, AuthorityError::NotOne(0))
        );
    }
}
