//! YAML and JSON text, of one document or several.

use serde_json::{Deserializer, Value};
use serde_saphyr::Error;
use serde_saphyr::budget::BudgetBreach;

/// How objects are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// YAML documents.
    Yaml,
    /// JSON documents.
    Json,
}

/// How much a YAML text may hold, in all documents together. It bounds memory: at most about 1 GiB.
#[derive(Debug, Clone, Copy)]
struct Limits {
    documents: usize,
    /// Keys and values. A pod that runs has about 500.
    values: usize,
    /// MiB of keys and values.
    text: usize,
    /// Lists and mappings in each other.
    depth: usize,
}

const LIMITS: Limits = Limits {
    documents: 20_000,
    values: 4_000_000,
    text: 128,
    depth: 64,
};

/// Reads every document of a text. Empty ones are left out.
///
/// # Errors
/// Where the text is wrong, or which limit of YAML it is over.
pub fn parse(text: &str) -> Result<Vec<Value>, String> {
    // Several JSON documents in a row are no YAML.
    if text.trim_start().starts_with('{') {
        let documents: Result<Vec<_>, _> = Deserializer::from_str(text).into_iter().collect();
        if let Ok(documents) = documents {
            return Ok(documents);
        }
    }
    parse_yaml(text, LIMITS)
}

fn parse_yaml(text: &str, limits: Limits) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! {
        // File modes are often written as 0644, which kubectl takes for octal.
        legacy_octal_numbers: true,
        budget: serde_saphyr::budget! {
            max_documents: limits.documents,
            max_nodes: limits.values,
            // Lists and mappings end, and so do documents.
            max_events: 3 * limits.values,
            max_total_scalar_bytes: limits.text << 20,
            max_depth: limits.depth,
        },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| limits.told(&error))
}

impl Limits {
    /// What is wrong with a text. Where it is too large, in words that say what to do.
    fn told(self, error: &Error) -> String {
        let too_much = |amount: String| format!("more than {amount}; split the file or use JSON");
        match error.without_snippet() {
            Error::AliasError { error: cause, .. } if self.told(cause) != cause.to_string() => self.told(cause),
            Error::Budget { breach, .. } => match breach {
                BudgetBreach::Documents { .. } => too_much(format!("{} documents", grouped(self.documents))),
                BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. } => {
                    too_much(format!("{} keys and values", grouped(self.values)))
                }
                BudgetBreach::ScalarBytes { .. } => too_much(format!("{} MiB of keys and values", self.text)),
                BudgetBreach::Depth { .. } => format!("lists and mappings more than {} deep in each other", self.depth),
                _ => EXPANDED.to_owned(),
            },
            Error::AliasReplayLimitExceeded { .. } | Error::AliasReplayStackDepthExceeded { .. } => EXPANDED.to_owned(),
            _ => error.to_string(),
        }
    }
}

/// Of a few bytes with anchors and aliases YAML can make any amount.
const EXPANDED: &str = "too much comes of its anchors, aliases and merge keys; write out what they stand for";

/// A number as people write it: 20,000.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let (first, rest) = digits.split_at((digits.len() - 1) % 3 + 1);
    let mut text = first.to_owned();
    for (index, digit) in rest.chars().enumerate() {
        if index % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes documents.
///
/// # Errors
/// A document that the format can't hold.
pub fn render(documents: &[Value], format: Format) -> Result<String, String> {
    let mut text = String::new();
    for (index, document) in documents.iter().enumerate() {
        match format {
            Format::Yaml => {
                if index > 0 {
                    text.push_str("---\n");
                }
                text.push_str(&serde_saphyr::to_string(document).map_err(|error| error.to_string())?);
            }
            Format::Json => {
                text.push_str(&serde_json::to_string_pretty(document).map_err(|error| error.to_string())?);
            }
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    #[test]
    fn yaml_over_a_limit_is_refused_in_words_of_our_own() {
        let small = Limits {
            documents: 2_000,
            values: 10_000,
            text: 1,
            depth: 20,
        };
        let refused = |text: &str| parse_yaml(text, small).unwrap_err();
        let split = "split the file or use JSON";
        let documents = |number: usize| "--- a\n".repeat(number);
        assert_eq!(parse_yaml(&documents(2_000), small).unwrap().len(), 2_000);
        assert_eq!(
            refused(&documents(2_001)),
            format!("more than 2,000 documents; {split}")
        );
        let values = format!("[{}]", "1,".repeat(10_000));
        assert_eq!(refused(&values), format!("more than 10,000 keys and values; {split}"));
        let text = "x".repeat((1 << 20) + 1);
        assert_eq!(refused(&text), format!("more than 1 MiB of keys and values; {split}"));
        let deep = format!("{}1{}", "[".repeat(21), "]".repeat(21));
        assert_eq!(refused(&deep), "lists and mappings more than 20 deep in each other");
    }

    #[test]
    fn a_few_bytes_do_not_make_gigabytes() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..9 {
            let inner = format!("*a{},", level - 1).repeat(10);
            writeln!(bomb, "a{level}: &a{level} [{inner}]").unwrap();
        }
        assert_eq!(parse(&bomb).unwrap_err(), EXPANDED);
        let many = format!("a: &a 1\nb: [{}]", "*a,".repeat(60_000));
        assert_eq!(parse(&many).unwrap_err(), EXPANDED);
    }

    #[test]
    fn numbers_are_grouped() {
        let grouped = [7, 999, 1_000, 20_000, 4_000_000].map(grouped);
        assert_eq!(grouped, ["7", "999", "1,000", "20,000", "4,000,000"]);
    }
}
