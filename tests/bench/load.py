"""Requests under load: the rows of the table, measured with wrk in alternating rounds."""

import json
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from candidates import Candidate, Running
from lab import LARGE_BODY, LARGE_PATH, SMALL_BODY, SMALL_PATH, curl
from peers import OURS
from processes import MeasurementError, pinned

CONNECTIONS = 32
WARM_UP_SECONDS = 1
SETTLE_SECONDS = 0.5
WRK_SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True)
class Scenario:
    name: str
    path: str
    body: bytes


SMALL = Scenario("100-byte answers", SMALL_PATH, SMALL_BODY)
LARGE = Scenario("64 KiB answers", LARGE_PATH, LARGE_BODY)


@dataclass(frozen=True)
class Sample:
    """One wrk run: what the client saw and what the proxies spent."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_request: float


@dataclass
class Row:
    """One candidate in one scenario. Exactly one of `problem` and a non-empty `samples` holds after the rounds."""

    candidate: Candidate
    running: Running | None = None
    samples: list = field(default_factory=list)
    idle_rss: dict = field(default_factory=dict)
    loaded_rss: dict = field(default_factory=dict)
    problem: str | None = None
    # The problem is only that a peer could not be installed.
    peer_missing: bool = False

    @property
    def is_measured(self):
        return bool(self.samples) and self.problem is None

    def median(self, attribute):
        return statistics.median(getattr(sample, attribute) for sample in self.samples)

    def spread_percent(self):
        """How far the rounds lie apart: the range of CPU per request over its median."""
        values = [sample.cpu_us_per_request for sample in self.samples]
        middle = statistics.median(values)
        return 100 * (max(values) - min(values)) / middle if middle else 0.0


def start_rows(lab, candidates):
    """Starts every candidate once; they all stay up, so that the rounds can alternate between them."""
    rows = []
    for candidate in candidates:
        row = Row(candidate)
        rows.append(row)
        missing = lab.programs.first_missing(candidate.needs)
        if missing:
            row.problem = lab.programs.missing[missing]
            row.peer_missing = missing not in OURS
            continue
        try:
            row.running = candidate.start(lab)
        except MeasurementError as error:
            row.problem = str(error)
    time.sleep(SETTLE_SECONDS)
    for row in rows:
        if row.running:
            row.idle_rss = {process.name: process.rss_bytes() for process in row.running.processes}
    return rows


def same_candidates(rows):
    """Fresh rows for another scenario over the candidates that are up."""
    return [Row(row.candidate, row.running) for row in rows if row.running and not row.problem]


def stop_rows(rows):
    for row in rows:
        if row.running:
            row.running.stop()


def measure_rounds(lab, rows, scenario, rounds, seconds):
    """Fills `rows`. Each round measures every candidate once and starts with another one."""
    for number in range(rounds):
        usable = [row for row in rows if row.running and not row.problem]
        offset = number % max(1, len(usable))
        for row in usable[offset:] + usable[:offset]:
            try:
                check_answer(lab, row.running, scenario)
                run_wrk(lab, row.running, scenario, WARM_UP_SECONDS)
                row.samples.append(measure_once(lab, row.running, scenario, seconds))
            except MeasurementError as error:
                row.problem = f"round {number + 1}: {error}"
        print(f"  {scenario.name}: round {number + 1} of {rounds}", flush=True)
    for row in rows:
        if row.is_measured:
            row.loaded_rss = {process.name: process.peak_rss_bytes() for process in row.running.processes}


def check_answer(lab, running, scenario):
    """One request of which status and body are compared; wrk itself only notices 4xx and 5xx."""
    url = f"http://127.0.0.1:{running.port}{scenario.path}"
    headers = [argument for header in running.headers(lab.app_port) for argument in ("-H", header)]
    status, body = curl(lab, url, *headers)
    if status != 200 or body != scenario.body:
        raise MeasurementError(f"answers {status} with {len(body)} bytes: {body[:200]!r}")


def measure_once(lab, running, scenario, seconds, mean_delay_ms=None):
    before = [process.cpu_seconds() for process in running.processes]
    report = run_wrk(lab, running, scenario, seconds, mean_delay_ms)
    after = [process.cpu_seconds() for process in running.processes]
    return Sample(
        requests_per_second=report["requests"] / (report["duration_us"] / 1e6),
        p50_ms=report["p50_us"] / 1e3,
        p99_ms=report["p99_us"] / 1e3,
        cpu_us_per_request=1e6 * (sum(after) - sum(before)) / report["requests"],
    )


def run_wrk(lab, running, scenario, seconds, mean_delay_ms=None):
    """One wrk run without a single failed request, as load.lua reports it."""
    argv = [*pinned(lab.load_cpu), lab.programs.paths["wrk"], "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s"]
    argv += ["--timeout", "10s", "-s", WRK_SCRIPT]
    for header in running.headers(lab.app_port):
        argv += ["-H", header]
    argv.append(f"http://127.0.0.1:{running.port}{scenario.path}")
    if mean_delay_ms is not None:
        argv += ["--", mean_delay_ms]
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines or not lines[-1].startswith("{"):
        raise MeasurementError(f"wrk failed: {(done.stderr or done.stdout).strip()}")
    report = json.loads(lines[-1])
    failed = {kind: count for kind, count in report["errors"].items() if count}
    if failed or not report["requests"]:
        raise MeasurementError(f"wrk saw errors: {failed} in {report['requests']} requests")
    if report["bytes"] < report["requests"] * len(scenario.body):
        raise MeasurementError(f"wrk read {report['bytes']} bytes in {report['requests']} requests: bodies are missing")
    return report


@dataclass(frozen=True)
class HalfLoad:
    """Latency of each candidate at half of what our two hops can carry."""

    requests_per_second: dict
    p99_ms: dict

    def added_p99_ms(self, name):
        return self.p99_ms[name] - self.p99_ms["direct"]


def measure_half_load(lab, rows, rounds, seconds):
    """Needs the measured rows `direct` and `mesh`; takes `envoy-mesh` along where it is there."""
    by_name = {row.candidate.name: row for row in rows if row.is_measured}
    if not {"direct", "mesh"} <= by_name.keys():
        raise MeasurementError("needs the rows direct and mesh")
    half = by_name["mesh"].median("requests_per_second") / 2
    chosen = [by_name[name] for name in ("direct", "mesh", "envoy-mesh") if name in by_name]
    samples = {row.candidate.name: [] for row in chosen}
    for _ in range(rounds):
        for row in chosen:
            # Closed loop: a connection's cycle is the wait plus the answer's latency; wrk waits whole milliseconds.
            cycle_ms = 1000 * CONNECTIONS / half
            delay = max(1, round(cycle_ms - row.median("p50_ms") / 2))
            samples[row.candidate.name].append(measure_once(lab, row.running, SMALL, seconds, delay))
    return HalfLoad(
        {name: statistics.median(s.requests_per_second for s in taken) for name, taken in samples.items()},
        {name: statistics.median(s.p99_ms for s in taken) for name, taken in samples.items()},
    )
