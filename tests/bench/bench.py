"""Measures the router and the sidecar beside HAProxy, Envoy and the Go router; see README.md. Started by `run`."""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path

import checks
import idle_websockets
import load
import neighbour
import peers
import report
from callgrind import ProfiledLab, print_profiles
from candidates import CANDIDATES
from lab import Lab, choose_cpus, make_lab, start_app
from processes import MeasurementError
from report import MIB, Target

ROWS = tuple(candidate.name for candidate in CANDIDATES)
CHECKS = ("binary-size", "sidecar-rss", "start", "idle", "transfer", "websockets", "neighbour")
QUICK_ROUNDS, QUICK_SECONDS = 3, 1
BUSY_LOAD_AVERAGE = 0.7


def main():
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cache = peers.cache_directory()
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another run is under way on this machine; both would be worthless", file=sys.stderr)
            return 1
        needed = needed_programs(options.profile or options.only)
        kind = "profiling" if options.profile else "release"
        programs = peers.provide_programs(needed, cache, options.binaries, kind)
        return run_bench(options, programs)


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("--rounds", type=positive, help="alternating rounds (default 5)")
    parser.add_argument("--seconds", type=positive, help="length of each measurement (default 4)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds of {QUICK_SECONDS} s")
    parser.add_argument("--full", action="store_true", help="also 64 KiB answers, and latency at half load")
    names = ", ".join(ROWS + CHECKS)
    parser.add_argument("--only", type=selection, default=ROWS + CHECKS, metavar="NAME,...", help=f"of {names}")
    parser.add_argument("--allow-missing", action="store_true", help="a peer that can't be installed is no failure")
    parser.add_argument(
        "--profile",
        type=profiled_rows,
        metavar="ROW,...",
        help="instead of all else, count the instructions of a request in these rows; programs of --binaries need symbols",
    )
    parser.add_argument("--binaries", type=Path, metavar="DIR", help="our programs, instead of building them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: target/bench.json")
    options = parser.parse_args()
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else 5)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else 4)
    options.json = options.json or peers.REPOSITORY / "target" / "bench.json"
    return options


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def selection(text):
    return chosen(text, ROWS + CHECKS)


def profiled_rows(text):
    return chosen(text, tuple(name for name in ROWS if name != "direct"))


def chosen(text, known):
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
    return names


def needed_programs(only):
    needed = {name for candidate in CANDIDATES if candidate.name in only for name in candidate.needs}
    return needed | (set(peers.OURS) if any(name in only for name in CHECKS) else set())


def run_bench(options, programs):
    unusable = programs.first_missing(peers.REQUIRED)
    if unusable:
        print(f"nothing can be measured: {programs.missing[unusable]}", file=sys.stderr)
        return 1
    for name, reason in programs.missing.items():
        print(f"\n*** {name} is MISSING: {reason}\n")
    with tempfile.TemporaryDirectory(prefix="sandgate-bench-") as directory:
        print_conditions()
        lab = make_lab(Path(directory), programs, ProfiledLab if options.profile else Lab)
        try:
            start_app(lab)
            if options.profile:
                return report_failures(print_profiles(lab, options.profile))
            result = measure_everything(lab, options)
        except MeasurementError as error:
            print(f"nothing can be measured: {error}", file=sys.stderr)
            return 1
        finally:
            lab.supervisor.stop_all()
    result["machine"] = machine()
    result["versions"] = peers.versions(programs)
    return conclude(options, result)


def print_conditions():
    proxy_cpu, load_cpu = choose_cpus()
    if proxy_cpu == load_cpu:
        print("*** ONE CPU: proxies and load share it; latency and throughput mean little, CPU per request still does")
    else:
        print(f"proxies on CPU {proxy_cpu}, wrk and the app on CPU {load_cpu}")
    busy = os.getloadavg()[0]
    if busy > BUSY_LOAD_AVERAGE:
        print(f"*** the machine is busy (load average {busy:.1f}): only ratios can be believed")


def measure_everything(lab, options):
    """Prints as it goes and returns what `conclude` judges: tables of rows and a list of targets."""
    result = {"tables": {}, "targets": [], "idle_connection_bytes": {}, "half_load": None}
    candidates = [candidate for candidate in CANDIDATES if candidate.name in options.only]
    if candidates:
        measure_rows(lab, candidates, options, result)
    for name, check in CHECK_TARGETS.items():
        if name in options.only:
            print(f"  {name}", flush=True)
            result["targets"] += check(lab, options, result)
    return result


def measure_rows(lab, candidates, options, result):
    rows = load.start_rows(lab, candidates)
    add_table(lab, load.SMALL, rows, options, result)
    result["targets"] += ratio_targets(rows)
    if options.full:
        add_table(lab, load.LARGE, load.same_candidates(rows), options, result)
        if {"direct", "mesh"} <= set(options.only):
            result["targets"].append(half_load_target(lab, rows, options, result))
    load.stop_rows(rows)


def add_table(lab, scenario, rows, options, result):
    load.measure_rounds(lab, rows, scenario, options.rounds, options.seconds)
    report.print_rows(f"{scenario.name}, {load.CONNECTIONS} connections; medians", rows)
    report.print_costs(rows)
    result["tables"][scenario.name] = rows


def ratio_targets(rows):
    bars = (
        ("router", "haproxy", "one plain hop / HAProxy", 1.10, 0.95),
        ("router", "go-router", "one plain hop / Go router", 0.17, 0.13),
        ("mesh", "envoy-mesh", "two mTLS hops, ten rules / Envoy->Envoy", 0.40, 0.28),
    )
    by_name = {row.candidate.name: row for row in rows}
    targets = []
    for name, peer, title, must, goal in bars:
        if name not in by_name or peer not in by_name:
            continue
        target = Target(title, "x CPU", must, goal, report.ratio(rows, name, peer))
        if target.value is None:
            target.problem = "a row it needs is not measured"
            target.peer_missing = by_name[peer].peer_missing and by_name[name].is_measured
        targets.append(target)
    return targets


def half_load_target(lab, rows, options, result):
    target = Target("added p99 of the two hops at half load", "ms", 1.0, None)

    def measure():
        half = load.measure_half_load(lab, rows, options.rounds, options.seconds)
        result["half_load"] = dataclasses.asdict(half)
        for name, p99 in half.p99_ms.items():
            print(f"  half load, {name}: {half.requests_per_second[name]:.0f} requests/s, p99 {p99:.2f} ms")
        return half.added_p99_ms("mesh")

    return fill([target], lambda: [measure()])[0]


def binary_targets(lab, _options, _result):
    target = Target("sidecar binary, stripped", "MB", 8, 5)
    return fill([target], lambda: [checks.stripped_size(lab.programs.paths["sandbox-sidecar"]) / 1e6], lab)


def sidecar_rss_targets(lab, _options, _result):
    target = Target("sidecar idle RSS", "MiB", 8, 5)
    return fill([target], lambda: [checks.sidecar_idle_rss(lab) / MIB], lab)


def start_targets(lab, _options, _result):
    target = Target("sidecar, exec to listening", "ms", 50, 10)
    return fill([target], lambda: [checks.sidecar_start_seconds(lab) * 1e3], lab)


def idle_targets(lab, options, result):
    target = Target(f"router, each of {checks.IDLE_CONNECTIONS} idle connections", "kB", 16, 2)
    names = {"router"} | (set(options.only) & set(checks.IDLE_CANDIDATES))

    def measure():
        result["idle_connection_bytes"] = checks.idle_connection_bytes(lab, names)
        for name, value in result["idle_connection_bytes"].items():
            print(f"    {name}: {value / 1e3:.1f} kB for each idle connection")
        return [result["idle_connection_bytes"]["router"] / 1e3]

    return fill([target], measure, lab)


def transfer_targets(lab, _options, result):
    names = ("router", "sidecar")
    targets = [Target(f"{name}, peak RSS growth in a 1 GiB transfer", "MiB", 16, None) for name in names]

    def measure():
        growth = result["transfer_growth_bytes"] = checks.transfer_growth(lab)
        for name, by_process in growth.items():
            print(f"    {name}: " + ", ".join(f"{key} {value / MIB:.1f} MiB" for key, value in by_process.items()))
        return [max(by_process[name] for by_process in growth.values()) / MIB for name in names]

    return fill(targets, measure, lab)


def websocket_targets(lab, _options, result):
    clients = (idle_websockets.PLAIN, idle_websockets.TLS)
    targets = [
        Target(f"router RSS, {idle_websockets.WANTED} idle WebSockets of {one}", "MB", 200, None)
        for one in clients
    ]

    def measure():
        held = idle_websockets.measure_both(lab)
        result["idle_websockets"] = {name: dataclasses.asdict(one) for name, one in held.items()}
        for name, one in held.items():
            print(
                f"    {name}: {one.opened} idle WebSockets, {one.each / 1e3:.1f} kB each:"
                f" RSS {one.before / 1e6:.1f} -> {one.after / 1e6:.1f} MB,"
                f" so {one.with_wanted() / 1e6:.1f} MB with {idle_websockets.WANTED}"
            )
        return [held[one].with_wanted() / 1e6 for one in clients]

    return fill(targets, measure, lab)


def neighbour_targets(lab, _options, result):
    names = (neighbour.DEFAULTS, neighbour.LIMITED)
    targets = [Target(f"p99 beside a noisy sandbox ({name}) / alone", "x", 2, None) for name in names]

    def measure():
        samples = neighbour.neighbour_samples(lab)
        result["neighbour"] = {name: [dataclasses.asdict(one) for one in taken] for name, taken in samples.items()}
        report.print_neighbour(samples, neighbour.ALONE)
        return [report.neighbour_ratio(samples, name, neighbour.ALONE) for name in names]

    return fill(targets, measure, lab)


CHECK_TARGETS = {
    "binary-size": binary_targets,
    "sidecar-rss": sidecar_rss_targets,
    "start": start_targets,
    "idle": idle_targets,
    "transfer": transfer_targets,
    "websockets": websocket_targets,
    "neighbour": neighbour_targets,
}


def fill(targets, measure, lab=None):
    """Gives each target its value, or all of them the reason why there is none."""
    missing = lab.programs.first_missing(peers.OURS) if lab else None
    try:
        if missing:
            raise MeasurementError(lab.programs.missing[missing])
        for target, value in zip(targets, measure(), strict=True):
            target.value = value
    except MeasurementError as error:
        for target in targets:
            target.problem = str(error)
    return targets


def machine():
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "unknown")
    return {"cpu": cpu.rpartition(": ")[2], "cpus": os.cpu_count(), "kernel": platform.release()}


def conclude(options, result):
    """Prints the targets, writes the JSON and returns the exit status."""
    tables, targets = result.pop("tables"), result.pop("targets")
    if targets:
        report.print_targets(targets)
    failures = []
    for title, rows in tables.items():
        failures += [f"{title}: {row.candidate.title}" for row in rows if row.problem and not excused(options, row)]
    for target in targets:
        if target.is_failed or (target.value is None and not excused(options, target)):
            failures.append(f"{target.name}: {target.verdict}")
    result["rounds"], result["seconds"] = options.rounds, options.seconds
    result["tables"] = {title: report.rows_as_json(rows) for title, rows in tables.items()}
    result["targets"] = report.targets_as_json(targets)
    result["failures"] = failures
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {options.json}")
    return report_failures(failures)


def report_failures(failures):
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


def excused(options, measured):
    return options.allow_missing and measured.peer_missing


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
