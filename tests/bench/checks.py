"""What is measured once beside the table: memory, size, start, idle connections, large transfers."""

import json
import resource
import select
import socket
import statistics
import subprocess
import time

from candidates import CANDIDATES, HAPROXY_MAX_CONNECTIONS, sidecar_argv, start_mesh
from lab import curl, start_transfer_app
from load import SMALL, check_answer
from processes import START_TIMEOUT_SECONDS, MeasurementError, accepts, allow_files
from transfer_app import CHUNK, PAUSE_AFTER_BYTES, PAUSE_SECONDS

STARTS = 11
# A proxy may need two files for each connection: where the system allows few, fewer are opened.
HARD_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
IDLE_CONNECTIONS = 10_000 if HARD_FILES == resource.RLIM_INFINITY else min(10_000, (HARD_FILES - 4_000) // 2)
SETTLE_SECONDS = 1.0
TRANSFER_BYTES = 1 << 30
IDLE_CANDIDATES = ("router", "haproxy", "envoy", "go-router")

assert IDLE_CONNECTIONS < HAPROXY_MAX_CONNECTIONS


def stripped_size(binary):
    """Bytes of a program as the release profile leaves it."""
    image = binary.read_bytes()
    # The name of the symbol table's section, which stripping removes.
    if b"\0.symtab\0" in image:
        raise MeasurementError(f"{binary} is not stripped")
    return len(image)


def sidecar_idle_rss(lab):
    mesh_port = lab.ports.next()
    process = lab.spawn_proxy("sidecar", sidecar_argv(lab, mesh_port, lab.ports.next()), mesh_port)
    time.sleep(SETTLE_SECONDS)
    try:
        return process.rss_bytes()
    finally:
        process.stop()


def sidecar_start_seconds(lab):
    """From before the fork until the mesh port accepts: the median of several starts."""
    return statistics.median(time_one_start(lab) for _ in range(STARTS))


def time_one_start(lab):
    mesh_port = lab.ports.next()
    argv = sidecar_argv(lab, mesh_port, lab.ports.next())
    begin = time.perf_counter()
    process = lab.supervisor.spawn_bare("sidecar", argv, lab.proxy_cpu)
    try:
        while not accepts(mesh_port):
            if not process.is_alive() or time.perf_counter() - begin > START_TIMEOUT_SECONDS:
                raise process.failure("does not listen on its mesh port")
        return time.perf_counter() - begin
    finally:
        process.stop()


def idle_connection_bytes(lab, names):
    """Growth of RSS per idle connection, by candidate. Each is started afresh: load would have left free memory."""
    allow_files(IDLE_CONNECTIONS + 1_000)
    return {
        candidate.name: measure_idle_connections(lab, candidate)
        for candidate in CANDIDATES
        if candidate.name in names and not lab.programs.first_missing(candidate.needs)
    }


def measure_idle_connections(lab, candidate):
    running = candidate.start(lab)
    connections = []
    try:
        check_answer(lab, running, SMALL)
        time.sleep(SETTLE_SECONDS)
        before = sum(process.rss_bytes() for process in running.processes)
        for _ in range(IDLE_CONNECTIONS):
            connections.append(socket.create_connection(("127.0.0.1", running.port), timeout=10))
        # Connections are accepted in order: an answer on a later one means that these were all accepted.
        check_answer(lab, running, SMALL)
        time.sleep(SETTLE_SECONDS)
        after = sum(process.rss_bytes() for process in running.processes)
        closed = count_closed(connections)
        if closed:
            raise MeasurementError(f"{candidate.title} closed {closed} of {IDLE_CONNECTIONS} idle connections")
        return (after - before) / IDLE_CONNECTIONS
    finally:
        for connection in connections:
            connection.close()
        running.stop()


def count_closed(connections):
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN)
    return len(poll.poll(0))


def transfer_growth(lab):
    """Peak growth of RSS in bytes, by transfer and process, while 1 GiB passes both hops."""
    app = start_transfer_app(lab)
    running = start_mesh(lab)
    try:
        # A first request opens the connection between the hops: only the bodies are of interest.
        download(lab, running, len(CHUNK))
        transfers = {
            "upload, Content-Length": lambda: upload(lab, running, []),
            "upload, chunked": lambda: upload(lab, running, ["-H", "Transfer-Encoding: chunked"]),
            "download": lambda: download(lab, running, TRANSFER_BYTES),
        }
        return {name: growth_during(running.processes, transfer) for name, transfer in transfers.items()}
    finally:
        running.stop()
        app.stop()


def growth_during(processes, transfer):
    time.sleep(SETTLE_SECONDS)
    before = {}
    for process in processes:
        before[process.name] = process.rss_bytes()
        process.reset_peak_rss()
    transfer()
    return {process.name: max(0, process.peak_rss_bytes() - before[process.name]) for process in processes}


def upload(lab, running, framing):
    source = lab.directory / "upload"
    with source.open("wb") as file:
        file.truncate(TRANSFER_BYTES)
    url = f"http://127.0.0.1:{running.port}/bench/upload"
    status, answer = curl(lab, url, *transfer_headers(lab, running), *framing, "-T", source)
    if status != 200 or json.loads(answer)["bytes"] != TRANSFER_BYTES:
        raise MeasurementError(f"upload of {TRANSFER_BYTES} bytes: {status} {answer[:200]!r}")


def download(lab, running, length):
    """Reads through a pipe and pauses midway: curl stops reading, and the proxies must push back."""
    url = f"http://127.0.0.1:{running.port}/bench/download/{length}"
    argv = [lab.programs.paths["curl"], "-sSf", "--max-time", "120", *transfer_headers(lab, running), url]
    with subprocess.Popen(list(map(str, argv)), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        total = 0
        while piece := client.stdout.read(len(CHUNK)):
            if total < PAUSE_AFTER_BYTES <= total + len(piece):
                time.sleep(PAUSE_SECONDS)
            total += len(piece)
        error = client.stderr.read().decode(errors="replace").strip()
    if client.returncode != 0 or total != length:
        raise MeasurementError(f"download: got {total} of {length} bytes; {error}")


def transfer_headers(lab, running):
    return [argument for header in running.headers(lab.transfer_port) for argument in ("-H", header)]
