//! The few things that a pod's author may choose for its gate, by annotation. None of them changes who is let in.

use crate::deny::{Denial, Denials, DenyReason, shown};
use crate::names::{
    CPU_LIMIT_ANNOTATION, CPU_REQUEST_ANNOTATION, LOG_LEVEL_ANNOTATION, MEMORY_LIMIT_ANNOTATION,
    MEMORY_REQUEST_ANNOTATION,
};
use crate::pod::Pod;
use crate::quantity::{Cpu, Memory};
use crate::settings::{LogLevel, Resources, Settings};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// CPU that a pod's author may ask for.
const CPU_REQUEST: RangeInclusive<Cpu> = Cpu::millis(1)..=Cpu::millis(4000);
/// CPU that a pod's author may limit the gate to: with less a handshake may take longer than anybody waits for it.
const CPU_LIMIT: RangeInclusive<Cpu> = Cpu::millis(10)..=Cpu::millis(4000);
/// Memory that a pod's author may ask for.
const MEMORY_REQUEST: RangeInclusive<Memory> = Memory::mebibytes(8)..=Memory::mebibytes(1024);
/// Memory that a pod's author may limit the gate to: with less it can't serve its connections.
pub(crate) const MEMORY_LIMIT: RangeInclusive<Memory> = Memory::mebibytes(32)..=Memory::mebibytes(1024);

/// A gate's resources and log level: the operator's, changed by the pod's annotations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrides {
    /// CPU and memory.
    pub resources: Resources,
    /// How much it logs.
    pub log_level: LogLevel,
}

impl Overrides {
    /// Reads a pod's annotations.
    ///
    /// # Errors
    /// Every annotation that can't be followed.
    pub fn read(settings: &Settings, pod: Pod<'_>) -> Result<Self, Denials> {
        let mut denials = Vec::new();
        let mut resources = settings.resources;
        if let Some(cpu) = amount(pod, CPU_REQUEST_ANNOTATION, &CPU_REQUEST, &mut denials) {
            resources.cpu_request = cpu;
        }
        if let Some(cpu) = amount(pod, CPU_LIMIT_ANNOTATION, &CPU_LIMIT, &mut denials) {
            resources.cpu_limit = Some(cpu);
        }
        if let Some(memory) = amount(pod, MEMORY_REQUEST_ANNOTATION, &MEMORY_REQUEST, &mut denials) {
            resources.memory_request = memory;
        }
        if let Some(memory) = amount(pod, MEMORY_LIMIT_ANNOTATION, &MEMORY_LIMIT, &mut denials) {
            resources.memory_limit = memory;
        }
        let log_level = read(pod, LOG_LEVEL_ANNOTATION, &mut denials).unwrap_or(settings.log_level);
        if denials.is_empty() {
            let problems = resources.problems().into_iter();
            denials.extend(problems.map(|problem| Denial {
                reason: DenyReason::Annotation,
                field: "metadata.annotations".to_owned(),
                why: format!("with what they say for the gate, {problem}"),
                fix: "annotate request and limit so that they fit together".to_owned(),
            }));
        }
        Denials::of(denials).map_or(Ok(Self { resources, log_level }), Err)
    }
}

fn read<T: FromStr<Err: Display>>(pod: Pod<'_>, name: &str, denials: &mut Vec<Denial>) -> Option<T> {
    let text = pod.annotation(name)?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(error) => {
            denials.push(refused(name, format!("{} is {error}", shown(text)), "correct it"));
            None
        }
    }
}

fn amount<T: FromStr<Err: Display> + Display + PartialOrd>(
    pod: Pod<'_>,
    name: &str,
    bounds: &RangeInclusive<T>,
    denials: &mut Vec<Denial>,
) -> Option<T> {
    let amount: T = read(pod, name, denials)?;
    if bounds.contains(&amount) {
        return Some(amount);
    }
    let fix = format!("choose from {} to {}", bounds.start(), bounds.end());
    denials.push(refused(name, format!("{amount} is out of bounds"), &fix));
    None
}

fn refused(name: &str, why: String, fix: &str) -> Denial {
    Denial {
        reason: DenyReason::Annotation,
        field: format!("metadata.annotations[{name}]"),
        why,
        fix: format!("{fix}, or remove the annotation"),
    }
}
