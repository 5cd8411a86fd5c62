"""Targets, tables and JSON."""

import statistics
from dataclasses import asdict, dataclass

MIB = 1 << 20
# A shared machine wobbles: a "must" counts as failed only beyond this.
TOLERANCE = 1.10
PEERS = (("haproxy", "/HAProxy"), ("envoy", "/Envoy"), ("go-router", "/Go router"), ("envoy-mesh", "/Envoy->Envoy"))


@dataclass
class Target:
    """A number with the bar it is held against; `value` None means not measured, `problem` says why."""

    name: str
    unit: str
    must: float
    goal: float | None
    value: float | None = None
    problem: str | None = None
    # It could not be measured only because a peer could not be installed.
    peer_missing: bool = False

    @property
    def verdict(self):
        if self.value is None:
            return "NOT MEASURED"
        if self.goal is not None and self.value <= self.goal:
            return "goal met"
        if self.value <= self.must:
            return "must met" if self.goal is not None else "met"
        return "MISSED" if self.is_failed else "missed within noise"

    @property
    def is_failed(self):
        return self.value is not None and self.value > self.must * TOLERANCE


def ratio(rows, name, peer):
    """CPU per request of `name` over that of `peer`, or None when either is not measured."""
    by_name = {row.candidate.name: row for row in rows if row.is_measured}
    if name not in by_name or peer not in by_name:
        return None
    spent = by_name[peer].median("cpu_us_per_request")
    return by_name[name].median("cpu_us_per_request") / spent if spent else None


def print_rows(title, rows):
    heads = ["", "req/s", "p50 ms", "p99 ms", "CPU us/req", "spread", "RSS idle MiB", "RSS loaded MiB"]
    heads += [head for _, head in PEERS]
    print(f"\n{title}")
    print_table([heads, *(row_cells(rows, row) for row in rows)])
    for row in rows:
        if row.problem:
            print(f"  {row.candidate.title}: {row.problem}")


def print_costs(rows):
    """What the router's signals cost that can be switched off: CPU beside the row without them."""
    by_name = {row.candidate.name: row.median("cpu_us_per_request") for row in rows if row.is_measured}
    for name, signal in (("router-access-log", "access log"), ("router-tracing", "a span of each request")):
        if "router" in by_name and name in by_name:
            added = by_name[name] - by_name["router"]
            print(f"  {signal}: {added:+.1f} us CPU a request ({100 * added / by_name['router']:+.0f} %)")


def row_cells(rows, row):
    if not row.is_measured:
        return [row.candidate.title, "NOT MEASURED"]
    cells = [
        row.candidate.title,
        f"{row.median('requests_per_second'):.0f}",
        f"{row.median('p50_ms'):.2f}",
        f"{row.median('p99_ms'):.2f}",
    ]
    if not row.running.processes:
        return cells
    cells += [
        f"{row.median('cpu_us_per_request'):.1f}",
        f"{row.spread_percent():.0f} %",
        mebibytes(row.idle_rss),
        mebibytes(row.loaded_rss),
    ]
    for peer, _ in PEERS:
        value = ratio(rows, row.candidate.name, peer)
        same = row.candidate.name == peer
        comparable = row.candidate.hops == (2 if peer == "envoy-mesh" else 1)
        cells.append(f"{value:.2f}" if value and comparable and not same else "")
    return cells


def mebibytes(by_process):
    return " + ".join(f"{value / MIB:.1f}" for value in by_process.values())


def neighbour_ratio(samples, name, alone):
    """The median of the rounds' p99 over that of the rounds without noise."""
    middle = {key: statistics.median(sample.p99_ms for sample in samples[key]) for key in (name, alone)}
    return middle[name] / middle[alone]


def print_neighbour(samples, alone):
    """What one sandbox's clients wait beside each noise, and what that noise got of its own sandbox."""
    heads = ["", "p50 ms", "p99 ms", "spread ms", "/alone", "noise answered/s", "refused/s", "held"]
    print_table([heads, *(neighbour_cells(samples, name, alone) for name in samples)])


def neighbour_cells(samples, name, alone):
    taken = samples[name]
    waits = [sample.p99_ms for sample in taken]
    cells = [
        name,
        f"{statistics.median(sample.p50_ms for sample in taken):.2f}",
        f"{statistics.median(waits):.2f}",
        f"{min(waits):.2f}-{max(waits):.2f}",
        f"{neighbour_ratio(samples, name, alone):.2f}",
    ]
    if name == alone:
        return cells
    for kind in ("answered", "refused"):
        rates = [sum(got[kind] for got in sample.noise["hammers"].values()) for sample in taken]
        cells.append(f"{statistics.median(rates):.0f}")
    held = [sum(sample.noise["held"].values()) for sample in taken]
    return [*cells, f"{statistics.median(held):.0f}"]


def print_targets(targets):
    print("\nTargets")
    heads = ["", "value", "must", "goal", "unit", ""]
    print_table([heads, *(target_cells(target) for target in targets)])
    for target in targets:
        if target.problem:
            print(f"  {target.name}: {target.problem}")


def target_cells(target):
    value = "-" if target.value is None else f"{target.value:.2f}"
    goal = "" if target.goal is None else f"<= {target.goal:g}"
    return [target.name, value, f"<= {target.must:g}", goal, target.unit, target.verdict]


def print_table(lines):
    """Left-aligned first column, right-aligned others, short lines allowed."""
    width = max(len(line) for line in lines)
    padded = [line + [""] * (width - len(line)) for line in lines]
    widths = [max(len(line[column]) for line in padded) for column in range(width)]
    for line in padded:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(size) for cell, size in zip(line[1:], widths[1:], strict=True))]
        print(("  " + "  ".join(cells)).rstrip())


def rows_as_json(rows):
    return [
        {
            "name": row.candidate.name,
            "title": row.candidate.title,
            "problem": row.problem,
            "median": row_medians(row) if row.is_measured else None,
            "samples": [asdict(sample) for sample in row.samples],
            "rss_idle_bytes": row.idle_rss,
            "rss_loaded_bytes": row.loaded_rss,
            "cpu_ratio_to": {
                peer: ratio(rows, row.candidate.name, peer) for peer, _ in PEERS if peer != row.candidate.name
            },
        }
        for row in rows
    ]


def row_medians(row):
    return {name: row.median(name) for name in asdict(row.samples[0])}


def targets_as_json(targets):
    return [{**asdict(target), "verdict": target.verdict} for target in targets]
