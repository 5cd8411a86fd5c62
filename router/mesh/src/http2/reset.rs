//! Why a peer reset a stream, in passing: what one hop's stream was given up for, the next hop's is, too.

use h2::Reason;
use std::error::Error;
use std::fmt;
use std::sync::LazyLock;

/// The reason that a peer gave for the end of a stream (RFC 9113 section 7), as far as it concerns the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset(Reason);

/// Reasons that say something of the call: that it is not wanted any more, or that it is too much. All others say something of
/// one connection, of which the other side has another.
const PASSING: [Reason; 3] = [Reason::CANCEL, Reason::ENHANCE_YOUR_CALM, Reason::INADEQUATE_SECURITY];

/// One error for each of [`PASSING`] and for everything else: hyper resets a stream with the reason of an h2 error that it
/// finds behind its body's.
static ERRORS: LazyLock<[(Reason, h2::Error); 4]> = LazyLock::new(|| {
    [PASSING[0], PASSING[1], PASSING[2], Reason::INTERNAL_ERROR].map(|reason| (reason, reason.into()))
});

impl Reset {
    /// The reset by a peer that is behind an error, if one is.
    pub fn behind(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                let reason = error.reason().filter(|_| error.is_reset() && error.is_remote())?;
                return Some(Self(if PASSING.contains(&reason) {
                    reason
                } else {
                    Reason::INTERNAL_ERROR
                }));
            }
            next = error.source();
        }
        None
    }
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.description())
    }
}

impl Error for Reset {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let known = ERRORS.iter().find(|(reason, _)| *reason == self.0);
        known.map(|(_, error)| error as &(dyn Error + 'static))
    }
}
