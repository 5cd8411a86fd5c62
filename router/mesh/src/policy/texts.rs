//! A sorted set of texts that is asked without allocating.

use crate::caller::shortest_first;

/// A set of texts, fixed once built.
#[derive(Debug, Default)]
pub(super) struct Texts(Box<[Box<str>]>);

impl FromIterator<Box<str>> for Texts {
    fn from_iter<I: IntoIterator<Item = Box<str>>>(texts: I) -> Self {
        let mut texts: Vec<Box<str>> = texts.into_iter().collect();
        texts.sort_unstable_by(|one, other| shortest_first(one, other));
        texts.dedup();
        Self(texts.into())
    }
}

impl Texts {
    pub(super) fn contains(&self, text: &str) -> bool {
        self.0.binary_search_by(|known| shortest_first(known, text)).is_ok()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|text| &**text)
    }
}
