//! The roots by which a gate knows the control plane before it has an identity: how they stand in its environment, and
//! whether those of a gate that is there are ones that this replica knows.
//!
//! No text that a pod's author wrote is parsed for that: it must be put together of texts that were made here.

use crate::authority::{AuthorityError, Root};
use crate::ca_bundle::pem;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// The longest text in bytes. The admission policy lets no longer one pass.
const MAX_BYTES: usize = 16 << 10;

/// Why a file holds no roots for a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnchorsError {
    /// No certificate in it.
    #[error("it holds no certificate in PEM")]
    Empty,
    /// One that can't be a root.
    #[error("certificate {number}: {cause}")]
    Root {
        /// Its place, from 1.
        number: usize,
        /// What is wrong with it.
        cause: AuthorityError,
    },
    /// More than a gate gets.
    #[error("its roots take more than {} KiB, and gates get them in an environment variable", MAX_BYTES >> 10)]
    TooLong,
}

/// The roots that a gate is given, at least one, and those that are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchors {
    given: String,
    /// Each in PEM. None begins with another.
    known: Vec<String>,
    /// Of which of them each new gate must have one; of none in particular if this is empty.
    required: Vec<String>,
}

impl Anchors {
    /// These roots, each once; the one that signs first.
    ///
    /// # Errors
    /// There is none, or they are too long together.
    pub fn of(roots: &[Root]) -> Result<Self, AnchorsError> {
        Self::given_and_known(roots, roots)
    }

    /// The same where a gate may have been given others before. Those that are given are known in any case.
    pub(crate) fn given_and_known(given: &[Root], known: &[Root]) -> Result<Self, AnchorsError> {
        let (given, known) = (texts(given), texts(known));
        let text = given.concat();
        match text.len() {
            0 => Err(AnchorsError::Empty),
            1..=MAX_BYTES => Ok(Self {
                given: text,
                known,
                required: Vec::new(),
            }),
            _ => Err(AnchorsError::TooLong),
        }
    }

    /// The roots in a PEM file.
    ///
    /// # Errors
    /// What [`AnchorsError`] lists.
    pub fn from_pem(file: &[u8]) -> Result<Self, AnchorsError> {
        let mut roots = Vec::new();
        for (found, number) in CertificateDer::pem_slice_iter(file).zip(1..) {
            let root = found.map_err(|_| AuthorityError::Pem).and_then(Root::from_der);
            roots.push(root.map_err(|cause| AnchorsError::Root { number, cause })?);
        }
        Self::of(&roots)
    }

    /// The roots as a new gate is given them.
    pub fn as_pem(&self) -> &str {
        &self.given
    }

    /// The same where each gate that is made from now on must know one of these.
    pub(crate) fn requiring(mut self, roots: &[Root]) -> Self {
        self.required = texts(roots);
        self
    }

    /// The same for gates that are there: they may have been made on another day.
    pub(crate) fn of_any_day(&self) -> Self {
        Self {
            required: Vec::new(),
            ..self.clone()
        }
    }

    /// Whether a gate that is being made may have these roots: known ones, as [`hold`](Self::hold) says, and not only such as
    /// leave. Whoever writes a pod can copy the gate of an old one, and those would be needed for ever.
    pub(crate) fn admit(&self, text: &str) -> bool {
        self.hold(text) && !self.are_outdated(text)
    }

    /// Whether these are roots of another day: none of those that stay.
    pub(crate) fn are_outdated(&self, text: &str) -> bool {
        let has = |root: &String| text.contains(root.as_str());
        !self.required.is_empty() && !self.required.iter().any(has)
    }

    /// Whether a gate was given roots that are known and no others: some or all, in any order, each once, as they are
    /// written here. Roots come and go between two calls, and replicas learn of that one after the other.
    pub fn hold(&self, text: &str) -> bool {
        let (mut rest, mut left) = (text, self.known.iter().collect::<Vec<_>>());
        while !rest.is_empty() {
            let next = left
                .iter()
                .enumerate()
                .find_map(|(index, root)| Some((index, rest.strip_prefix(root.as_str())?)));
            let Some((index, after)) = next else { return false };
            left.remove(index);
            rest = after;
        }
        !text.is_empty()
    }
}

/// Each root in PEM, once.
fn texts(roots: &[Root]) -> Vec<String> {
    let mut texts = Vec::new();
    for root in roots {
        let text = pem(&[root.der()]);
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::NewRoot;

    fn root() -> String {
        NewRoot::generate().unwrap().certificate_pem
    }

    fn anchors(roots: &[&str]) -> Anchors {
        Anchors::from_pem(roots.concat().as_bytes()).unwrap()
    }

    #[test]
    fn any_of_the_roots_that_are_known_are_accepted_in_any_order_and_nothing_else() {
        let (signing, next, other) = (root(), root(), root());
        let known = anchors(&[&signing, &next]);
        assert_eq!(known.as_pem(), format!("{signing}{next}"));
        for good in [&[&signing][..], &[&next], &[&signing, &next], &[&next, &signing]] {
            let text: String = good.iter().map(|root| root.as_str()).collect();
            assert!(known.hold(&text), "{text}");
        }
        let without_end = signing.trim_end();
        let other_lines = signing.replace('\n', "\r\n");
        for bad in [
            "",
            "\n",
            &other,
            &format!("{signing}{other}"),
            &format!("{other}{signing}"),
            &format!("{signing}{signing}"),
            &format!("{signing}\n"),
            &format!("\n{signing}"),
            &format!("# signing\n{signing}"),
            &format!("{signing}{without_end}"),
            without_end,
            &other_lines,
            &signing[1..],
        ] {
            assert!(!known.hold(bad), "{bad}");
        }
    }

    #[test]
    fn a_file_holds_each_root_once_and_nothing_but_roots() {
        let (first, second) = (root(), root());
        let commented = format!("the roots of today\r\n{first}\n{second}{first}").replace('\n', "\r\n");
        let found = Anchors::from_pem(commented.as_bytes()).unwrap();
        assert_eq!(found.as_pem(), format!("{first}{second}"));

        for nothing in ["", "junk"] {
            assert_eq!(Anchors::from_pem(nothing.as_bytes()), Err(AnchorsError::Empty));
        }
        let leaf = crate::authority_stored::Stored::new();
        let leaf = leaf
            .authority
            .serving(&["a.svc".parse().unwrap()], crate::rig::PATIENCE);
        let refused = Anchors::from_pem(format!("{first}{}", leaf.unwrap().chain_pem).as_bytes()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "certificate 2: the certificate isn't an authority's (basicConstraints CA and keyUsage keyCertSign)"
        );
        let broken = first.replace("-----END", "-----ENDE");
        assert!(matches!(
            Anchors::from_pem(broken.as_bytes()),
            Err(AnchorsError::Root {
                number: 1,
                cause: AuthorityError::Pem
            })
        ));
    }

    #[test]
    fn more_roots_than_the_admission_policy_lets_pass_are_refused_beforehand() {
        let roots: Vec<_> = (0..64).map(|_| root()).collect();
        assert_eq!(Anchors::from_pem(roots.concat().as_bytes()), Err(AnchorsError::TooLong));
    }
}
