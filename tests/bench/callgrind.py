"""Where the instructions of a request go: each chosen row under Callgrind (Valgrind), counted only while requests run.

Of our router it also prints what counting costs: metrics can't be switched off, so no other row shows it.

User instructions do not wobble with the machine as CPU time does, so they tell whether a change costs anything, and which
functions they are in. What the kernel does for a request isn't in them.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

import load
from candidates import CANDIDATES
from lab import Lab
from peers import Missing, run
from processes import MeasurementError

SECONDS = 10
SHOWN = 15
PROGRAMS = ("valgrind", "callgrind_control", "callgrind_annotate")
# What counts requests. Its functions are inlined into others in part, but their source lines are known.
COUNTING_FILES = re.compile(r"/prometheus-[^/]*/|(^|/)router/src/(metrics|access)\.rs$")
COUNTING_FUNCTIONS = re.compile(r"sandbox_router::(metrics|access)::|<?prometheus::")
INHERITED_BY_CALLGRIND = ("--tool=callgrind", "--instr-atstart=no", "--collect-atstart=yes", "--quiet")


@dataclass
class ProfiledLab(Lab):
    """A lab whose proxies run under Callgrind."""

    def spawn_proxy(self, name, argv, port, env=None):
        output = f"--callgrind-out-file={self.directory}/callgrind.{name}"
        return super().spawn_proxy(name, ["valgrind", *INHERITED_BY_CALLGRIND, output, *argv], port, env)


def print_profiles(lab, names):
    """Prints instructions per request and the heaviest functions of each row in `names`; returns what went wrong."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return [f"{', '.join(missing)}: not installed"]
    failures = []
    for candidate in CANDIDATES:
        if candidate.name not in names:
            continue
        try:
            profile(lab, candidate)
        except (MeasurementError, Missing) as error:
            failures.append(f"profile of {candidate.title}: {error}")
    return failures


def profile(lab, candidate):
    missing = lab.programs.first_missing(candidate.needs)
    if missing:
        raise Missing(lab.programs.missing[missing])
    running = candidate.start(lab)
    load.check_answer(lab, running, load.SMALL)
    load.run_wrk(lab, running, load.SMALL, load.WARM_UP_SECONDS)
    for process in running.processes:
        run(["callgrind_control", "--instr=on", process.pid], "callgrind_control")
    report = load.run_wrk(lab, running, load.SMALL, SECONDS)
    for process in running.processes:
        run(["callgrind_control", "--instr=off", process.pid], "callgrind_control")
    # Each writes its counts as it ends.
    running.stop()
    for process in running.processes:
        print_process(lab, candidate, process.name, report["requests"])


def print_process(lab, candidate, name, requests):
    counts = lab.directory / f"callgrind.{name}"
    total = instructions(counts)
    print(f"\n{candidate.title}, {name}: {total / requests:,.0f} user instructions a request ({requests} requests)")
    if name == "router":
        counting = instructions_of(counts, COUNTING_FILES, COUNTING_FUNCTIONS)
        print(f"  {counting / requests:>8,.0f}  {100 * counting / total:>4.1f} %  of these for metrics")
    annotated = run(["callgrind_annotate", "--inclusive=no", "--show=Ir", counts], "callgrind_annotate")
    for count, function in heaviest(annotated)[:SHOWN]:
        print(f"  {count / requests:>8,.0f}  {100 * count / total:>4.1f} %  {function}")


def instructions(counts):
    """The sum that a Callgrind output file ends with."""
    try:
        match = re.search(r"^totals: (\d+)", counts.read_text(errors="replace"), re.MULTILINE)
    except OSError as error:
        raise MeasurementError(f"no counts were written: {error}") from error
    if not match or int(match[1]) == 0:
        raise MeasurementError("nothing was counted")
    return int(match[1])


def instructions_of(counts, files, functions):
    """The instructions of source lines in `files`, wherever they are inlined, and of whole `functions`.

    The format is Callgrind's: names are written once, `(1) name`, and are `(1)` from then on; the line after `calls=` has
    the callee's instructions.
    """
    names = {}

    def name_of(text, kind):
        key, _, name = text.partition(" ")
        return names.setdefault((kind, key), name)

    found, by_file, by_function, is_callee = 0, False, False, False
    for line in counts.read_text(errors="replace").splitlines():
        kind, separator, text = line.partition("=")
        if separator and kind in ("fl", "fi", "fe"):
            by_file = files.search(name_of(text, "file")) is not None
        elif separator and kind == "fn":
            by_function = functions.search(name_of(text, "function")) is not None
        elif separator and kind in ("cfi", "cfl", "cfn"):
            name_of(text, "function" if kind == "cfn" else "file")
        elif separator and kind == "calls":
            is_callee = True
        elif line[:1].isdigit() or line[:1] in ("+", "-", "*"):
            if (by_file or by_function) and not is_callee:
                found += int(line.split()[1])
            is_callee = False
    return found


def heaviest(annotated):
    """(instructions, function) of each function in callgrind_annotate's table, the heaviest first."""
    found = []
    for line in annotated.splitlines():
        match = re.match(r"\s*([\d,]+) (?:\([ \d.]+%\))?\s+\S*?:(.+?)(?: \[.*\])?$", line)
        if match:
            found.append((int(match[1].replace(",", "")), match[2]))
    return sorted(found, reverse=True)
