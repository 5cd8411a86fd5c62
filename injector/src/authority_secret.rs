//! The Secret that holds the root. The chart makes it empty; whichever replica fills it first has done so for all.

use crate::authority::AuthorityError;
use crate::authority_files::External;
use crate::authority_stored::{Content, Stored, external_content, new_content};
use crate::kubernetes::{RequestError, bounded};
use crate::names::{FIELD_MANAGER, ROTATION_ANNOTATION};
use crate::rotation::steps::NotMoved;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};

/// How often a change is tried when somebody else changes the Secret at the same time.
const TRIES: u32 = 5;

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
    /// What it holds allows no such change.
    #[error("Secret {namespace}/{name}: {cause}")]
    NotMoved {
        namespace: String,
        name: String,
        cause: NotMoved,
    },
    /// No randomness.
    #[error("no root can be made: {0}")]
    Generate(#[from] rcgen::Error),
    /// Somebody else makes it, and hasn't yet.
    #[error("the files of the authority hold none that can be used, and the Secret that it goes into is empty")]
    NoFiles,
}

/// The Secret.
#[derive(Clone)]
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
    /// since everything that trusts the root would have to learn a new one; otherwise with a new root, or with that of files where
    /// there are to be any.
    ///
    /// # Errors
    /// The API server can't be asked, there is no Secret, or it holds no usable root.
    pub(crate) async fn read_or_fill(
        &self,
        before: Option<&Stored>,
        external: Option<&External>,
    ) -> Result<Stored, SecretError> {
        let found = self.get().await?;
        if found.data.as_ref().is_some_and(|data| !data.is_empty()) {
            return self.stored(found);
        }
        let content = match (before, external) {
            (Some(before), _) => before.content.clone(),
            (None, None) => new_content()?,
            (None, Some(external)) => {
                let found = external.borrow().clone();
                external_content(&*found.ok_or(SecretError::NoFiles)?)
            }
        };
        let filled = self.fill_or_read(found, content).await;
        self.stored(self.requested(filled)?)
    }

    /// With the version that was found, so that only one replica fills it.
    async fn fill_or_read(&self, mut secret: Secret, content: Content) -> Result<Secret, RequestError> {
        secret.data = Some(content);
        match self.replace(&secret).await {
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

    /// What it holds, and what the leader has told in its annotation about the replacement of the root.
    ///
    /// # Errors
    /// The API server can't be asked, there is no Secret, or it holds no usable root.
    pub(crate) async fn read(&self) -> Result<(Stored, Option<String>), SecretError> {
        let found = self.get().await?;
        let told = found.annotations().get(ROTATION_ANNOTATION).cloned();
        if found.data.as_ref().is_none_or(Content::is_empty) {
            return Err(self.not_moved(NotMoved::Empty));
        }
        Ok((self.stored(found)?, told))
    }

    /// Changes what it holds, if that is what `change` takes it for: with the version that was read, so that nothing that
    /// somebody else writes at the same time is lost.
    ///
    /// # Errors
    /// `change` refuses, or the API server can't be asked.
    pub(crate) async fn change(
        &self,
        change: impl Fn(&Content) -> Result<Content, NotMoved>,
    ) -> Result<Stored, SecretError> {
        let mut tries_left = TRIES;
        loop {
            tries_left -= 1;
            let mut found = self.get().await?;
            let content = change(found.data.get_or_insert_default()).map_err(|cause| self.not_moved(cause))?;
            found.data = Some(content);
            match self.replace(&found).await {
                Err(error) if error.is_conflict() && tries_left > 0 => {}
                answer => return self.stored(self.requested(answer)?),
            }
        }
    }

    /// Tells in its annotation how the replacement of the root stands; nothing where there is nothing to tell.
    ///
    /// # Errors
    /// The API server can't be asked, or somebody was faster.
    pub(crate) async fn tell(&self, status: Option<&str>) -> Result<(), SecretError> {
        let mut found = self.get().await?;
        if found.annotations().get(ROTATION_ANNOTATION).map(String::as_str) == status {
            return Ok(());
        }
        match status {
            Some(status) => drop(
                found
                    .annotations_mut()
                    .insert(ROTATION_ANNOTATION.into(), status.to_owned()),
            ),
            None => drop(found.annotations_mut().remove(ROTATION_ANNOTATION)),
        }
        let answer = self.replace(&found).await;
        self.requested(answer).map(drop)
    }

    async fn get(&self) -> Result<Secret, SecretError> {
        let found = self.requested(bounded(self.api.get_opt(&self.name)).await)?;
        found.ok_or_else(|| SecretError::Missing {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        })
    }

    async fn replace(&self, secret: &Secret) -> Result<Secret, RequestError> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        bounded(self.api.replace(&self.name, &params, secret)).await
    }

    fn not_moved(&self, cause: NotMoved) -> SecretError {
        SecretError::NotMoved {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            cause,
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
        Stored::read(secret.data.unwrap_or_default()).map_err(|(key, cause)| SecretError::Unusable {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            key,
            cause,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority_stored::CERTIFICATE;

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
}
