//! What JSON takes in memory once it is parsed, told beforehand: `{"name":""}` takes sixty times its own length.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;

/// Entries in a node of a `BTreeMap`.
const NODE_ENTRIES: usize = 11;
/// Entries that all nodes but one hold at least.
const LEAST_ENTRIES: usize = 5;
/// One node, with its share of those above it.
const NODE: usize = NODE_ENTRIES * (size_of::<String>() + size_of::<Value>()) + 128;
/// Elements of the smallest `Vec` that holds any.
const LEAST_ELEMENTS: usize = 4;
/// What an allocator adds.
const ALLOCATION: usize = 16;

/// What a byte is parsed to at most, in `{"":{"":{"":0}}}`.
pub(crate) const MOST_PER_BYTE: usize = NODE.div_ceil(r#"{"":}"#.len());

/// Bytes that a [`Value`] takes outside itself; an estimate that is seldom too low.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ParsedSize(pub(crate) usize);

impl ParsedSize {
    /// Of a JSON text. Nothing of it is kept.
    ///
    /// # Errors
    /// It isn't JSON.
    pub(crate) fn of(json: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json)
    }
}

impl<'de> Deserialize<'de> for ParsedSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Measure)
    }
}

struct Measure;

impl<'de> Visitor<'de> for Measure {
    type Value = ParsedSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<ParsedSize, E> {
        Ok(ParsedSize(0))
    }

    fn visit_bool<E>(self, _: bool) -> Result<ParsedSize, E> {
        Ok(ParsedSize(0))
    }

    fn visit_i64<E>(self, _: i64) -> Result<ParsedSize, E> {
        Ok(ParsedSize(0))
    }

    fn visit_u64<E>(self, _: u64) -> Result<ParsedSize, E> {
        Ok(ParsedSize(0))
    }

    fn visit_f64<E>(self, _: f64) -> Result<ParsedSize, E> {
        Ok(ParsedSize(0))
    }

    fn visit_str<E>(self, text: &str) -> Result<ParsedSize, E> {
        Ok(ParsedSize(if text.is_empty() { 0 } else { text.len() + ALLOCATION }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<ParsedSize, A::Error> {
        let (mut bytes, mut count) = (0, 0);
        while let Some(ParsedSize(element)) = elements.next_element()? {
            bytes += element;
            count += 1;
        }
        if count > 0 {
            bytes += usize::max(count, LEAST_ELEMENTS).next_power_of_two() * size_of::<Value>() + ALLOCATION;
        }
        Ok(ParsedSize(bytes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<ParsedSize, A::Error> {
        let (mut bytes, mut count) = (0, 0);
        while let Some((ParsedSize(key), ParsedSize(value))) = entries.next_entry()? {
            bytes += key + value;
            count += 1;
        }
        if count > 0 {
            bytes += (1 + count / LEAST_ENTRIES) * NODE;
        }
        Ok(ParsedSize(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_value_is_measured() {
        let size = |json: &str| ParsedSize::of(json.as_bytes()).unwrap().0;
        for nothing in ["null", "true", "-1", "1", "1.5", "1e300", "\"\"", "[]", "{}"] {
            assert_eq!(size(nothing), 0, "{nothing}");
        }
        assert_eq!(size(r#""name""#), 4 + ALLOCATION);
        assert_eq!(size(r#"{"name":""}"#), NODE + 4 + ALLOCATION);
        assert_eq!(
            size(r#"[{"a":{"b":1}}]"#),
            4 * size_of::<Value>() + 2 * (NODE + 1) + 3 * ALLOCATION
        );
        assert_eq!(size("[1,2,3,4,5]"), 8 * size_of::<Value>() + ALLOCATION);
        let twelve = (0..12).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(",");
        assert!(size(&format!("{{{twelve}}}")) >= 3 * NODE);
        for wrong in ["", "{", "[1,]", "nul", "{1:2}"] {
            assert!(ParsedSize::of(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn depth_is_an_error_and_no_crash() {
        assert!(ParsedSize::of("[".repeat(100_000).as_bytes()).is_err());
    }
}
