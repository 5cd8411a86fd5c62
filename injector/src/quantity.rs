//! Amounts of CPU and memory as a pod spells them
//! (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>), without its rarer spellings.

use std::fmt;
use std::str::FromStr;

/// A text that isn't an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not an amount of CPU.
    #[error("not an amount of CPU; write it like 100m, 1 or 0.5")]
    Cpu,
    /// Not an amount of memory.
    #[error("not an amount of memory; write it like 64Mi or 1Gi")]
    Memory,
}

/// CPU in thousandths of a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpu(u64);

impl Cpu {
    /// So many thousandths of a core.
    pub const fn millis(millis: u64) -> Self {
        Self(millis)
    }
}

impl FromStr for Cpu {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if let Some(millis) = text.strip_suffix('m') {
            return whole(millis).map(Self).ok_or(QuantityError::Cpu);
        }
        let (cores, fraction) = text.split_once('.').unwrap_or((text, "0"));
        if fraction.len() > 3 {
            return Err(QuantityError::Cpu);
        }
        let thousandths = whole(&format!("{fraction:0<3}"));
        whole(cores)
            .and_then(|cores| cores.checked_mul(1000))
            .zip(thousandths)
            .and_then(|(cores, thousandths)| cores.checked_add(thousandths))
            .map(Self)
            .ok_or(QuantityError::Cpu)
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            millis if millis.is_multiple_of(1000) => write!(f, "{}", millis / 1000),
            millis => write!(f, "{millis}m"),
        }
    }
}

/// The suffixes of memory and their bytes.
const MEMORY_UNITS: [(&str, u64); 6] = [
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory(u64);

impl Memory {
    /// So many mebibytes.
    pub const fn mebibytes(mebibytes: u64) -> Self {
        Self(mebibytes << 20)
    }
}

impl FromStr for Memory {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let split = |(suffix, bytes)| Some((text.strip_suffix(suffix)?, bytes));
        let (number, bytes) = MEMORY_UNITS.into_iter().find_map(split).unwrap_or((text, 1));
        whole(number)
            .and_then(|number| number.checked_mul(bytes))
            .map(Self)
            .ok_or(QuantityError::Memory)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, bytes): &(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*bytes);
        match MEMORY_UNITS.iter().take(3).find(|unit| fits(unit)) {
            Some((suffix, bytes)) => write!(f, "{}{suffix}", self.0 / bytes),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A whole number in ASCII digits, without sign or white space.
fn whole(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        for (text, millis) in [("100m", 100), ("1", 1000), ("0.5", 500), ("1.25", 1250), ("0", 0)] {
            assert_eq!(text.parse(), Ok(Cpu(millis)), "{text}");
        }
        for (text, bytes) in [
            ("64Mi", 64 << 20),
            ("1Gi", 1 << 30),
            ("1k", 1000),
            ("7", 7),
            ("2M", 2_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Memory(bytes)), "{text}");
        }
    }

    #[test]
    fn whatever_else_is_refused() {
        for bad in [
            "",
            "m",
            "-1",
            "+1",
            "1 ",
            " 1",
            "1e3",
            "0.0001",
            ".5",
            "1,5",
            "1M",
            "٣",
            "99999999999999999999",
        ] {
            assert_eq!(bad.parse::<Cpu>(), Err(QuantityError::Cpu), "{bad:?}");
        }
        for bad in [
            "",
            "Mi",
            "-1Mi",
            "1.5Gi",
            "1mi",
            "1 Mi",
            "1e3",
            "1Ei",
            "18446744073709551615Gi",
        ] {
            assert_eq!(bad.parse::<Memory>(), Err(QuantityError::Memory), "{bad:?}");
        }
    }

    #[test]
    fn a_displayed_amount_reads_back() {
        for millis in [0, 1, 999, 1000, 1250] {
            assert_eq!(Cpu(millis).to_string().parse(), Ok(Cpu(millis)));
        }
        for bytes in [0, 1, 1000, 1024, 3 << 20, 5 << 30, (5 << 30) + 1] {
            assert_eq!(Memory(bytes).to_string().parse(), Ok(Memory(bytes)));
        }
    }
}
