"""The rows of the table: what each one starts and how its clients reach it. Every client sends the same request."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import envoy
from certificates import ALPHA, POD_UID, ROUTER_IDENTITY, TRUST_DOMAIN
from lab import SPANS_PATH, Lab
from processes import Process

# More than the idle-connection measurement opens.
HAPROXY_MAX_CONNECTIONS = 12_000


@dataclass
class Running:
    """A started candidate."""

    port: int
    processes: list[Process]
    extra_headers: tuple[str, ...] = ()

    def headers(self, app_port, sandbox=ALPHA):
        """The routing headers of a request to the app on `app_port`, the same for every candidate, plus its own."""
        return [
            f"X-Sandbox-ID: {sandbox}",
            "X-Sandbox-Namespace: bench",
            f"X-Sandbox-Port: {app_port}",
            *self.extra_headers,
        ]

    def stop(self):
        for process in self.processes:
            process.stop()


@dataclass(frozen=True)
class Candidate:
    name: str
    title: str
    hops: int
    needs: tuple[str, ...]
    start: Callable[[Lab], Running]


def start_direct(lab):
    return Running(lab.app_port, [])


def start_haproxy(lab):
    port = lab.ports.next()
    config = f"""
global
    nbthread 1
    # It wants two files for each possible connection and would refuse to start where only half as many are allowed.
    no strict-limits
    maxconn {HAPROXY_MAX_CONNECTIONS}
defaults
    mode http
    http-reuse always
    option forwardfor
    timeout connect 5s
    timeout client 180s
    timeout server 180s
frontend front
    bind 127.0.0.1:{port} backlog 1024
    default_backend app
backend app
    server app 127.0.0.1:{lab.app_port}
"""
    path = lab.write(f"haproxy-{port}.cfg", config)
    argv = [lab.programs.paths["haproxy"], "-db", "-f", path]
    return Running(port, [lab.spawn_proxy("haproxy", argv, port)])


def start_envoy(lab):
    port = lab.ports.next()
    return Running(port, [spawn_envoy(lab, "envoy", port, envoy.plain_hop(port, lab.app_port))])


def start_envoy_chain(lab):
    front, back = lab.ports.next(), lab.ports.next()
    second = spawn_envoy(lab, "envoy-back", back, envoy.mesh_server(back, lab.app_port, lab.certificates))
    first = spawn_envoy(lab, "envoy-front", front, envoy.mesh_client(front, back, lab.certificates))
    return Running(front, [first, second])


def spawn_envoy(lab, name, port, config):
    path = lab.write(f"{name}-{port}.json", json.dumps(config, indent=2))
    flags = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return lab.spawn_proxy(name, [lab.programs.paths["envoy"], *flags, "-c", path], port)


def start_go_router(lab):
    port = lab.ports.next()
    argv = [
        lab.programs.paths["go-router"],
        f"--http-bind-address=127.0.0.1:{port}",
        f"--metrics-bind-address=127.0.0.1:{lab.ports.next()}",
        f"--health-probe-bind-address=127.0.0.1:{lab.ports.next()}",
        "--authz-mode=allow-all",
        "--access-log=false",
        "--allow-loopback-pod-ip=true",
    ]
    process = lab.spawn_proxy("go-router", argv, port, env={"GOMAXPROCS": "1"})
    return Running(port, [process], ("X-Sandbox-Pod-IP: 127.0.0.1",))


def start_router(lab):
    return start_plain_router(lab, "--access-log=false")


def start_router_with_access_log(lab):
    return start_plain_router(lab, "--access-log=true")


def start_router_with_tracing(lab):
    # The app's server takes the spans: what a collector does with them is none of the router's cost.
    collector = f"--otlp-traces-endpoint=http://127.0.0.1:{lab.app_port}{SPANS_PATH}"
    return start_plain_router(lab, "--access-log=false", collector, "--otlp-protocol=http/protobuf")


def start_plain_router(lab, *flags):
    port = lab.ports.next()
    flags = [*flags, "--mesh=off", "--sandbox-endpoint", "bench/alpha=127.0.0.1"]
    return Running(port, [spawn_router(lab, port, flags)])


def start_mesh(lab):
    """Our router and, behind mutual TLS, our sidecar with a policy of ten rules."""
    port, mesh_port = lab.ports.next(), lab.ports.next()
    sidecar = lab.spawn_proxy("sidecar", sidecar_argv(lab, mesh_port, lab.ports.next()), mesh_port)
    return Running(port, [spawn_router(lab, port, mesh_flags(lab, {ALPHA: mesh_port})), sidecar])


def mesh_flags(lab, mesh_ports):
    """Flags of a router in front of sandboxes whose sidecars listen on these ports."""
    tls = lab.certificates
    flags = [
        "--access-log=false",
        "--mesh=required",
        "--mesh-cert-file", tls.router.certificate,
        "--mesh-key-file", tls.router.key,
        "--mesh-trust-bundle-file", tls.trust_bundle,
        "--trust-domain", TRUST_DOMAIN,
    ]  # fmt: skip
    for sandbox, mesh_port in mesh_ports.items():
        flags += ["--sandbox-endpoint", f"bench/{sandbox}=127.0.0.1:{mesh_port},uid={POD_UID}"]
    return flags


def spawn_router(lab, port, flags):
    argv = [
        lab.programs.paths["sandbox-router"],
        "--http-bind-address", f"127.0.0.1:{port}",
        "--metrics-bind-address", f"127.0.0.1:{lab.ports.next()}",
        "--health-probe-bind-address", f"127.0.0.1:{lab.ports.next()}",
        "--authz-mode=allow-all",
        # All clients have one address here.
        "--max-connections-per-peer=65536",
        "--workers=1",
        # It would outlast the patience of whoever stops it, and be killed before its counts are written.
        "--drain-delay=0s",
        *flags,
    ]  # fmt: skip
    return lab.spawn_proxy("router", argv, port)


def sidecar_argv(lab, mesh_port, health_port, sandbox=ALPHA):
    tls = lab.certificates
    leaf = tls.sidecar if sandbox == ALPHA else tls.noisy_sidecar
    return [
        lab.programs.paths["sandbox-sidecar"],
        "--mesh-bind-address", f"127.0.0.1:{mesh_port}",
        "--health-bind-address", f"127.0.0.1:{health_port}",
        "--namespace", "bench",
        "--sandbox", sandbox,
        "--pod-uid", POD_UID,
        "--trust-domain", TRUST_DOMAIN,
        "--router-identity", ROUTER_IDENTITY,
        "--tls-cert-file", leaf.certificate,
        "--tls-key-file", leaf.key,
        "--trust-bundle-file", tls.trust_bundle,
        "--policy-file", lab.write("policy.json", json.dumps(ten_rules(lab), indent=2)),
        "--audit-log=false",
    ]  # fmt: skip


def ten_rules(lab):
    """A policy snapshot of which only the last rule matches the benchmark's requests."""
    ports = lab.app_ports()
    rules = [
        {
            "from": [{"users": [f"someone-{number}"]}],
            "to": [{"ports": ports, "methods": ["GET"], "paths": [f"/a{number}/*"]}],
        }
        for number in range(1, 10)
    ]
    rules.append(
        {"from": [{"anonymous": True}], "to": [{"ports": ports, "methods": ["GET", "PUT"], "paths": ["/bench/*"]}]}
    )
    return {
        "version": 1,
        "generation": {"epoch": 1, "counter": 1},
        "defaultPolicy": "deny",
        "ports": ports,
        "policies": [{"name": "bench", "rules": rules}],
    }


CANDIDATES = (
    Candidate("direct", "direct", 0, (), start_direct),
    Candidate("router", "our router", 1, ("sandbox-router",), start_router),
    Candidate(
        "router-access-log", "our router, access log on", 1, ("sandbox-router",), start_router_with_access_log
    ),
    Candidate("router-tracing", "our router, all traced", 1, ("sandbox-router",), start_router_with_tracing),
    Candidate("haproxy", "HAProxy", 1, ("haproxy",), start_haproxy),
    Candidate("envoy", "Envoy", 1, ("envoy",), start_envoy),
    Candidate("go-router", "Go router", 1, ("go-router",), start_go_router),
    Candidate("mesh", "our router + sidecar, mTLS", 2, ("sandbox-router", "sandbox-sidecar"), start_mesh),
    Candidate("envoy-mesh", "Envoy -> Envoy, mTLS", 2, ("envoy",), start_envoy_chain),
)
