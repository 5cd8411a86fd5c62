//! What is wrong with a command line: all of it, where clap stops at the first bad value.

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;
use std::ops::Range;

/// Reads flags. Bad values are added to `problems`, and the flags are read as if they weren't there.
///
/// # Errors
/// A command line that can't be read even so, or one that asks for help or the version.
pub(crate) fn read<T: Parser>(mut args: Vec<OsString>, problems: &mut Vec<String>) -> Result<T, clap::Error> {
    loop {
        let error = match T::try_parse_from(&args) {
            Ok(flags) => return Ok(flags),
            Err(error) => error,
        };
        let Some(place) = bad_value(&args, &error) else {
            return Err(error);
        };
        args.drain(place);
        let text = error.to_string();
        let sentence = text.split("\n\n").next().unwrap_or_default();
        let lines = sentence.trim_start_matches("error: ").lines().map(str::trim);
        problems.push(lines.collect::<Vec<_>>().join(" "));
    }
}

/// Where the arguments hold the value that clap refused, with its flag.
fn bad_value(args: &[OsString], error: &clap::Error) -> Option<Range<usize>> {
    if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return None;
    }
    let (Some(ContextValue::String(flag)), Some(ContextValue::String(value))) =
        (error.get(ContextKind::InvalidArg), error.get(ContextKind::InvalidValue))
    else {
        return None;
    };
    // As clap's usage has it: `--flag <VALUE>`.
    let flag = flag.split(' ').next()?;
    let joined = format!("{flag}={value}");
    if let Some(at) = args.iter().position(|arg| *arg == *joined) {
        return Some(at..at + 1);
    }
    let pair = |pair: &[OsString]| matches!(pair, [first, second] if *first == *flag && *second == **value);
    args.windows(2).position(pair).map(|at| at..at + 2)
}
