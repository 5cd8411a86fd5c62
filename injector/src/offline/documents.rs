//! YAML and JSON text, of one document or several.

use serde_json::{Deserializer, Value};

/// How objects are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// YAML documents.
    Yaml,
    /// JSON documents.
    Json,
}

/// Reads every document of a text. Empty ones are left out.
///
/// # Errors
/// Where the text is wrong.
pub fn parse(text: &str) -> Result<Vec<Value>, String> {
    // Several JSON documents in a row are no YAML.
    if text.trim_start().starts_with('{') {
        let documents: Result<Vec<_>, _> = Deserializer::from_str(text).into_iter().collect();
        if let Ok(documents) = documents {
            return Ok(documents);
        }
    }
    // File modes are often written as 0644, which kubectl takes for octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| error.to_string())
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
