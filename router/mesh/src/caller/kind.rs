//! How each kind of caller is spelt, in names and in assertions: the one table of it.

/// Declares [`CallerKind`] from one table, so that no kind can be missing from a list or be spelt in a second place.
macro_rules! caller_kinds {
    ($version:literal; $($kind:ident: $prefix:literal, $asserted:literal;)*) => {
        /// The kinds of [`Caller`](super::Caller), and how each is spelt.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum CallerKind {
            $($kind),*
        }

        impl CallerKind {
            /// Every kind.
            pub(crate) const ALL: &[Self] = &[$(Self::$kind),*];
            pub(super) const VERSION: &str = $version;

            /// How the name of each such caller begins: for anonymous it is the name, for users nothing.
            pub(crate) const fn prefix(self) -> &'static str {
                match self {
                    $(Self::$kind => $prefix),*
                }
            }

            /// How the assertion of each such caller begins: version and kind.
            pub(super) const fn assertion(self) -> &'static str {
                match self {
                    $(Self::$kind => concat!($version, $asserted)),*
                }
            }

            /// The kind that an assertion calls so.
            pub(super) fn asserted(text: &str) -> Option<Self> {
                match text {
                    $($asserted => Some(Self::$kind),)*
                    _ => None,
                }
            }
        }
    };
}

caller_kinds! {
    "v1;";
    Anonymous: "anonymous", "anonymous";
    Static: "static:", "static";
    Scoped: "scoped:", "scoped";
    ServiceAccount: "system:serviceaccount:", "serviceaccount";
    User: "", "user";
    Spiffe: "spiffe://", "spiffe";
    Certificate: "cert:", "certificate";
}

impl CallerKind {
    /// Whose name `text` would be, and what follows the prefix. A user's name is what no other kind's can be.
    pub(crate) fn of_name(text: &str) -> (Self, &str) {
        let of = |kind: &Self| kind.strip(text).map(|rest| (*kind, rest));
        Self::ALL.iter().find_map(of).unwrap_or((Self::User, text))
    }

    fn strip(self, text: &str) -> Option<&str> {
        match self {
            Self::Anonymous => (text == self.prefix()).then_some(""),
            Self::Static | Self::Scoped | Self::ServiceAccount | Self::Spiffe | Self::Certificate => {
                text.strip_prefix(self.prefix())
            }
            Self::User => None,
        }
    }

    /// What a user's name can't be or begin with, for people.
    pub(super) fn reserved() -> String {
        let others = Self::ALL.iter().filter(|kind| **kind != Self::User);
        others.map(|kind| kind.prefix()).collect::<Vec<_>>().join(", ")
    }
}
