"""What every measurement of a run shares: CPUs, working directory, ports, certificates and the apps."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from certificates import Certificates, make_certificates
from peers import Programs
from processes import MeasurementError, PortAllocator, Supervisor, in_background, wait_until_listening

SMALL_BODY = b"x" * 100
LARGE_BODY = b"y" * 65_536
SMALL_PATH = "/bench/small"
LARGE_PATH = "/bench/large"
SPANS_PATH = "/v1/traces"


@dataclass
class Lab:
    directory: Path
    programs: Programs
    supervisor: Supervisor
    proxy_cpu: int
    load_cpu: int
    certificates: Certificates
    ports: PortAllocator = field(default_factory=PortAllocator)
    app_port: int = 0
    transfer_port: int = 0
    socket_port: int = 0
    # Of the noisy sandbox's own app.
    noisy_port: int = 0

    def app_ports(self):
        return [self.app_port, self.transfer_port, self.socket_port, self.noisy_port]

    def write(self, name, text):
        path = self.directory / name
        path.write_text(text)
        return path

    def spawn_server(self, name, argv, cpu, port, env=None):
        """Starts a server and waits until it accepts on `port`."""
        process = self.supervisor.spawn(name, argv, cpu, env)
        wait_until_listening(process, port)
        return process

    def spawn_proxy(self, name, argv, port, env=None):
        return self.spawn_server(name, argv, self.proxy_cpu, port, env)


def make_lab(directory, programs, kind=Lab):
    proxy_cpu, load_cpu = choose_cpus()
    # The driver itself belongs to the load: it must not wake up on the proxies' CPU.
    os.sched_setaffinity(0, {load_cpu})
    logs = directory / "logs"
    logs.mkdir()
    lab = kind(
        directory=directory,
        programs=programs,
        supervisor=Supervisor(logs),
        proxy_cpu=proxy_cpu,
        load_cpu=load_cpu,
        certificates=make_certificates(programs.paths["openssl"], directory / "tls"),
    )
    lab.app_port = lab.ports.next()
    lab.transfer_port = lab.ports.next()
    lab.socket_port = lab.ports.next()
    lab.noisy_port = lab.ports.next()
    return lab


def choose_cpus():
    """The CPU of the proxies and the CPU of the load: the first and the last we may use."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0], cpus[-1]


def start_app(lab):
    """nginx: one worker that answers fixed bodies of 100 bytes and 64 KiB and never closes a connection on its own."""
    return start_nginx(lab, "app", lab.app_port)


def start_noisy_app(lab):
    """The same again, for the noisy sandbox."""
    return start_nginx(lab, "noisy-app", lab.noisy_port, in_background())


def start_nginx(lab, name, port, prefix=()):
    root = lab.directory / name
    (root / "bench").mkdir(parents=True)
    (root / LARGE_PATH.lstrip("/")).write_bytes(LARGE_BODY)
    config = f"""
daemon off;
master_process off;
pid {root}/nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    default_type application/octet-stream;
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=16;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {root};
        location = {SMALL_PATH} {{ return 200 "{SMALL_BODY.decode()}"; }}
        location = {LARGE_PATH} {{ }}
        location = {SPANS_PATH} {{ client_max_body_size 64m; return 200; }}
    }}
}}
"""
    path = lab.write(f"nginx-{name}.conf", config)
    argv = [*prefix, lab.programs.paths["nginx"], "-p", root, "-e", "stderr", "-c", path]
    return lab.spawn_server(f"nginx-{name}", argv, lab.load_cpu, port)


def start_transfer_app(lab):
    """The app of the large transfers, which counts what it reads; see transfer_app.py."""
    script = Path(__file__).with_name("transfer_app.py")
    argv = [sys.executable, script, str(lab.transfer_port)]
    return lab.spawn_server("transfer-app", argv, lab.load_cpu, lab.transfer_port)


def start_socket_app(lab, prefix=()):
    """The app of connections that are held; see socket_app.py."""
    script = Path(__file__).with_name("socket_app.py")
    argv = [*prefix, sys.executable, script, str(lab.socket_port)]
    return lab.spawn_server("socket-app", argv, lab.load_cpu, lab.socket_port)


def curl(lab, target, *arguments, timeout_seconds=120):
    """Runs curl on the load CPU against `target`'s path; returns (status, body)."""
    argv = ["taskset", "-c", str(lab.load_cpu), lab.programs.paths["curl"], "-sS", "--http1.1"]
    argv += ["--max-time", str(timeout_seconds), "-w", "\n%{http_code}", *arguments, target]
    done = subprocess.run(list(map(str, argv)), capture_output=True, check=False)
    body, _, status = done.stdout.rpartition(b"\n")
    if done.returncode != 0:
        raise MeasurementError(f"curl {target}: {done.stderr.decode(errors='replace').strip()}")
    return int(status), body
