//! The configuration file: YAML with a flag's name for each key, as the Go router reads it. What the values mean is the
//! flags' to say.

use clap::Arg;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::any::TypeId;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::Path;

/// The longest file in bytes: no `ConfigMap` holds a longer one.
const LONGEST: u64 = 1 << 20;
/// Above this, whole numbers aren't exact as floating-point numbers (2^53).
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("can't be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is longer than {} KiB", LONGEST >> 10)]
    TooLong,
    #[error("is no UTF-8 text")]
    Encoding,
    #[error("is no YAML that can be read: {0}")]
    Yaml(String),
    #[error("has no keys with values, like proxy-timeout: 180s")]
    NoKeys,
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Where it stands; the first line is 1.
    pub(super) line: u64,
    value: Value,
}

/// Reads a file.
///
/// # Errors
/// See [`FileError`]. None of them shows what is in the file.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, FileError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(FileError::TooLong);
    }
    parse(str::from_utf8(&bytes).map_err(|_| FileError::Encoding)?)
}

fn parse(text: &str) -> Result<Vec<Entry>, FileError> {
    let options = serde_saphyr::options! {
        // A snippet could show a secret.
        with_snippet: false,
        // As the Go router reads numbers.
        legacy_octal_numbers: true,
        reject_unsupported_tags: true,
        budget: serde_saphyr::budget! {
            max_documents: 1,
            max_nodes: 10_000,
            max_events: 40_000,
            max_depth: 16,
        },
    };
    let parsed = serde_saphyr::from_str_with_options(text, options);
    let pairs = match parsed.map_err(|error| FileError::Yaml(error.to_string()))? {
        Parsed::Null => Vec::new(),
        Parsed::Mapping(pairs) => pairs,
        _ => return Err(FileError::NoKeys),
    };
    let entries = pairs.into_iter().map(|(key, value)| Entry {
        line: key.referenced.line(),
        key: key.value,
        value: resolve(value, text),
    });
    Ok(entries.collect())
}

impl Entry {
    /// The texts that `arg` is to be given, which more than one value is for only if it can be repeated.
    ///
    /// # Errors
    /// What the value is, instead.
    pub(super) fn texts(&self, arg: &Arg, repeatable: bool) -> Result<Vec<OsString>, &'static str> {
        match &self.value {
            Value::List(values) if repeatable => values.iter().map(|value| value.text(arg)).collect(),
            value => Ok(vec![value.text(arg)?]),
        }
    }
}

#[derive(Debug)]
enum Value {
    Null,
    Text(String),
    Boolean {
        value: bool,
        written: Option<String>,
    },
    Number {
        /// In decimal digits, where it is a whole number.
        value: String,
        written: Option<String>,
    },
    List(Vec<Value>),
    Mapping,
}

impl Value {
    /// As the flag spells it. Where a text is asked for, no digit of an unquoted token is lost for looking like a number.
    fn text(&self, arg: &Arg) -> Result<OsString, &'static str> {
        let text = match self {
            Self::Null => "",
            Self::Boolean { value: true, .. } if is_boolean(arg) => "true",
            Self::Boolean { value: false, .. } if is_boolean(arg) => "false",
            Self::Number { value, .. } if is_number(arg) => value,
            Self::Boolean { written, .. } | Self::Number { written, .. } => {
                written.as_deref().ok_or("no text; put it in quotes")?
            }
            Self::Text(text) => text,
            Self::List(_) => return Err("a list"),
            Self::Mapping => return Err("a mapping"),
        };
        Ok(text.into())
    }
}

/// Whether a flag's value is true or false.
pub(super) fn is_boolean(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<bool>()
}

/// Whether a flag's value is a whole number.
pub(super) fn is_number(arg: &Arg) -> bool {
    let of = arg.get_value_parser().type_id();
    [
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<NonZeroU32>(),
        TypeId::of::<NonZeroU64>(),
        TypeId::of::<NonZeroUsize>(),
    ]
    .iter()
    .any(|number| of == *number)
}

/// A value as the parser tells it, which of numbers and truth values keeps no spelling.
enum Parsed {
    Null,
    Text(String),
    Boolean(bool),
    Number(String),
    List(Vec<Spanned<Parsed>>),
    Mapping(Vec<(Spanned<String>, Spanned<Parsed>)>),
}

/// Gives a value its spelling back, out of the whole text.
fn resolve(value: Spanned<Parsed>, whole: &str) -> Value {
    let span = value.defined.span();
    let written = || {
        let from = usize::try_from(span.byte_offset()?).ok()?;
        let to = from.checked_add(usize::try_from(span.byte_len()?).ok()?)?;
        whole.get(from..to).map(str::to_owned)
    };
    match value.value {
        Parsed::Null => Value::Null,
        Parsed::Text(text) => Value::Text(text),
        Parsed::Boolean(value) => Value::Boolean {
            value,
            written: written(),
        },
        Parsed::Number(value) => Value::Number {
            value,
            written: written(),
        },
        Parsed::List(values) => Value::List(values.into_iter().map(|value| resolve(value, whole)).collect()),
        Parsed::Mapping(_) => Value::Mapping,
    }
}

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Parsed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Parsed, E> {
                Ok(Parsed::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Parsed, E> {
                Ok(Parsed::Boolean(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Parsed, E> {
                Ok(Parsed::Number(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Parsed, E> {
                Ok(Parsed::Number(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Parsed, E> {
                let whole = value.fract() == 0.0 && value.abs() < EXACT;
                Ok(Parsed::Number(if whole {
                    format!("{value:.0}")
                } else {
                    value.to_string()
                }))
            }

            fn visit_str<E>(self, value: &str) -> Result<Parsed, E> {
                Ok(Parsed::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Parsed, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Parsed::List(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Parsed::Mapping(pairs))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
