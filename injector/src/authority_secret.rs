//! The Secret that holds the root. Whichever replica makes or fills it first has done so for all.

use crate::authority::{Authority, AuthorityError, NewRoot, Root};
use crate::kubernetes::{RequestError, bounded};
use crate::names::{FIELD_MANAGER, MANAGED_BY_LABEL};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// The type of Secrets with a certificate and its key. The API server insists on both.
const TYPE: &str = "kubernetes.io/tls";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
/// The certificate of a root that will sign later: trusted ahead of time.
const NEXT_CERTIFICATE: &str = "next.crt";

type Content = BTreeMap<String, ByteString>;

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// What is stored makes none.
    #[error(
        "Secret {namespace}/{name}: {key}: {cause}; correct it, or delete it and restart the injector to have a new root \
         made"
    )]
    Unusable {
        namespace: String,
        name: String,
        key: &'static str,
        cause: AuthorityError,
    },
    /// It couldn't be read or made.
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

    /// Reads the Secret. Where there is none it is made, and where it is empty, as the chart makes it, it is filled: again
    /// as it was, if it was read before, since everything that trusts the root would have to learn a new one; with a new
    /// root otherwise.
    ///
    /// # Errors
    /// The API server can't be asked, or the Secret holds no usable root.
    pub(crate) async fn read_or_create(&self, before: Option<&Stored>) -> Result<Stored, SecretError> {
        let found = self.requested(bounded(self.api.get_opt(&self.name)).await)?;
        let empty = match found {
            Some(secret) if secret.data.as_ref().is_none_or(BTreeMap::is_empty) => Some(secret),
            Some(secret) => return self.stored(secret),
            None => None,
        };
        let content = match before {
            Some(before) => before.content.clone(),
            None => new_content()?,
        };
        let secret = match empty {
            Some(secret) => self.fill_or_read(secret, content).await,
            None => self.create_or_read(content).await,
        };
        self.stored(self.requested(secret)?)
    }

    /// With the version that was found, so that only one replica fills it.
    async fn fill_or_read(&self, mut secret: Secret, content: Content) -> Result<Secret, RequestError> {
        secret.data = Some(content);
        match bounded(self.api.replace(&self.name, &params(), &secret)).await {
            Ok(filled) => Ok(self.told(filled)),
            // Another replica was first, and its root is the one.
            Err(error) if error.is_conflict() => bounded(self.api.get(&self.name)).await,
            Err(error) => Err(error),
        }
    }

    async fn create_or_read(&self, content: Content) -> Result<Secret, RequestError> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(BTreeMap::from([(MANAGED_BY_LABEL.into(), FIELD_MANAGER.into())])),
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.into()),
            data: Some(content),
            ..Secret::default()
        };
        match bounded(self.api.create(&params(), &secret)).await {
            Ok(created) => Ok(self.told(created)),
            // Another replica was first, and its root is the one.
            Err(error) if error.is_already_exists() => bounded(self.api.get(&self.name)).await,
            Err(error) => Err(error),
        }
    }

    fn told(&self, secret: Secret) -> Secret {
        let (namespace, name) = (&self.namespace, secret.name_any());
        tracing::info!(namespace, name, "stored the root certificate in the Secret");
        secret
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

fn params() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PostParams::default()
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
    /// What a Secret holds after it was made.
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        read(new_content().unwrap()).map_err(|(_, cause)| cause).unwrap()
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
