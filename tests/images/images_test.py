"""Checks the images that `run` has built; see there."""

import argparse
import json
import re
import sys
import tempfile
import tomllib
from pathlib import Path

from image import ET_DYN, PF_X, PT_DYNAMIC, PT_GNU_RELRO, PT_GNU_STACK, PT_INTERP, Elf, Image, Root
from peers import Dns, app, ending, get

REPOSITORY = Path(__file__).resolve().parents[2]
# The roots of some cluster.
ROOT = REPOSITORY / "tests" / "golden" / "root.crt"
CONTENT = {
    "sidecar": ["/sandbox-sidecar"],
    "router": ["/sandbox-router", "/sandbox-sidecar"],
    "injector": ["/sandbox-injector"],
}
PORTS = {"sidecar": {14443, 14480}, "router": {8080, 8081, 9090, 14443}, "injector": {8443, 8081}}
MACHINES = {"amd64": 62, "arm64": 183}
LARGEST_SIDECAR = 10_000_000
# What clusters choose that give each namespace users of its own.
ANY_USER = "1000660000:0"
# An address of this network namespace alone: a name may not lead the router to loopback.
POD_IP = "10.77.0.1"


class World:
    """The images, their bills of materials, and root file systems for whoever asks."""

    def __init__(self, built, folder, revision, source):
        self.images = {name: Image(name, built / name) for name in CONTENT}
        self.sboms = {path.name.removesuffix(".cdx.json"): json.loads(path.read_text()) for path in (built / "sbom").iterdir()}
        self.lock = tomllib.loads((REPOSITORY / "Cargo.lock").read_text())["package"]
        self.version = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["workspace"]["package"]["version"]
        self.revision = revision
        self.source = source
        self._folder = folder
        self._roots = []

    def root(self, name, added=None, volumes=()):
        root = Root(self.images[name], self._folder / f"root-{len(self._roots)}", added, volumes)
        self._roots.append(root)
        return root

    def close(self):
        for root in self._roots:
            root.unmount()


def chart(name):
    return (REPOSITORY / "charts" / "sandgate" / "templates" / name).read_text()


def both_dockerfiles_make_the_toolchain_alike_and_build_from_the_lock_file(_):
    toolchains = set()
    for name in ("Dockerfile.router", "Dockerfile.injector"):
        text = (REPOSITORY / name).read_text()
        toolchains.add(text[text.index("# The toolchain.") : text.index("FROM toolchain")])
        builds = re.findall(r"cargo (?:build|install).*", text)
        assert builds and all(" --locked " in build for build in builds), f"{name}: {builds}"
        assert re.search(r"^ARG RUST_IMAGE=rust:\d+\.\d+\.\d+-slim-bookworm$", text, re.M), f"{name}: the base has no version"
        bases = set(re.findall(r"^FROM (?:--platform=\S+ )?(\S+)", text, re.M))
        assert bases == {"$RUST_IMAGE", "toolchain", "source", "scratch"}, f"{name}: it starts from {bases}"
    assert len(toolchains) == 1, "the first stages differ"


def the_sidecar_image_is_one_layer_with_one_file_of_at_most_10_mb(world):
    image = world.images["sidecar"]
    assert len(image.layers) == 1, f"{len(image.layers)} layers"
    [layer] = image.layers
    assert [member.name for member in layer.members()] == ["sandbox-sidecar"], [member.name for member in layer.members()]
    assert len(layer.archive) <= LARGEST_SIDECAR, f"{len(layer.archive)} bytes before compression"


def an_image_holds_its_programs_and_nothing_else_no_shell_and_no_library(world):
    for name, image in world.images.items():
        members = image.members()
        found = sorted("/" + member.name for member in members)
        assert found == CONTENT[name], f"{name}: {found}"
        for member in members:
            assert member.isfile(), f"{name}: {member.name} isn't a file"
            how = (oct(member.mode & 0o7777), member.uid, member.gid, member.mtime)
            assert how == ("0o555", 0, 0, 0), f"{name}: {member.name} has mode, owner, group and time {how}"


def every_program_is_static_and_position_independent(world):
    for name, image in world.images.items():
        for path, data in image.programs().items():
            elf = Elf(data)
            assert PT_INTERP not in elf.segments, f"{name}: {path} asks for a dynamic linker"
            assert elf.needed == 0, f"{name}: {path} needs {elf.needed} shared libraries"
            assert elf.type == ET_DYN and PT_DYNAMIC in elf.segments, f"{name}: {path} is loaded at a fixed address"
            assert not elf.segments[PT_GNU_STACK] & PF_X, f"{name}: the stack of {path} is executable"
            assert PT_GNU_RELRO in elf.segments, f"{name}: {path} keeps its relocations writable"
            assert elf.machine == MACHINES[image.architecture], f"{name}: {path} isn't for {image.architecture}"


def images_run_as_the_users_and_programs_that_the_chart_names(world):
    users = {"sidecar": chart("_gate.tpl"), "router": chart("_helpers.tpl"), "injector": chart("_helpers.tpl")}
    for name, template in users.items():
        # The gate's stand first in its template.
        expected = ":".join(re.search(rf"^ *runAs{part}: ([1-9]\d*)$", template, re.M)[1] for part in ("User", "Group"))
        assert world.images[name].user == expected, f"{name}: {world.images[name].user!r}, and the chart has {expected}"
    assert f"command: [{world.images['sidecar'].entrypoint[0]}]" in chart("_gate.tpl")
    for name, image in world.images.items():
        assert image.entrypoint == CONTENT[name][:1], f"{name}: {image.entrypoint}"
        assert image.ports == {f"{port}/tcp" for port in PORTS[name]}, f"{name}: {image.ports}"


def labels_say_what_it_is(world):
    for name, image in world.images.items():
        labels = {key.removeprefix("org.opencontainers.image."): value for key, value in image.labels.items()}
        assert labels["title"] == f"sandbox-{name}", labels
        assert labels["description"].startswith("Sandgate's "), labels
        assert labels["licenses"] == "Apache-2.0", labels
        # Given by nobody: the Dockerfile's own default.
        assert labels["version"] == world.version, f"{labels['version']}, and Cargo.toml has {world.version}"
        assert (labels["revision"], labels["source"]) == (world.revision, world.source), labels


def programs_run_on_a_read_only_root_as_any_user(world):
    for name, image in world.images.items():
        root = world.root(name)
        program = image.entrypoint[0].removeprefix("/")
        for user in (image.user, ANY_USER):
            status, output = root.run("--version", user=user)
            assert (status, output) == (0, f"{program} {world.version}\n"), f"{name} as {user}: {status}, {output}"
            status, output = root.run("--help", user=user)
            assert status == 0 and f"Usage: {program}" in output, f"{name} as {user}: {status}, {output}"


def a_gate_as_the_injector_makes_it_answers_the_kubelet(world):
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "alpha", "namespace": "default", "labels": {"agents.x-k8s.io/sandbox-name-hash": "8c736521"}},
        "spec": {"containers": [{"name": "app", "image": "app.example/app:1"}]},
    }
    roots = "/etc/roots.pem"
    root = world.root("injector", {roots: ROOT.read_text()})
    status, output = root.run("inject", "-f", "-", "-o", "json", f"--trust-anchors-file={roots}", text=json.dumps(pod))
    assert status == 0, output
    pod = json.loads(output)
    pod["metadata"]["uid"] = "6b1e2c1e-0c1f-4d0c-9f38-0b5c1a2d3e4f"
    [container] = pod["spec"]["initContainers"]
    assert container["command"] == world.images["sidecar"].entrypoint, container["command"]
    context = container["securityContext"]
    user = f"{context['runAsUser']}:{context['runAsGroup']}"
    environment = {variable["name"]: value_of(variable, pod) for variable in container["env"]}
    # The token is missed only when somebody asks for it.
    [state] = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "sandgate-state"]
    root = world.root("sidecar", volumes=[state])
    gate = root.start(*container["args"], user=user, environment=environment)
    with ending(gate):
        # It runs, and it isn't ready without an identity.
        hook = container["lifecycle"]["postStart"]["exec"]["command"]
        assert hook[:1] == container["command"], hook
        status, why = root.run(*hook[1:], user=user)
        assert status == 0, f"postStart: {status}: {why}"
        call = container["readinessProbe"]["httpGet"]
        status, why = get(gate, f"http://127.0.0.1:{call['port']}{call['path']}")
        assert status == 503, f"readinessProbe: {status}: {why}"


def value_of(variable, pod):
    """What a kubelet gives a container as this variable: a text, or a field of the pod, as the downward API names it."""
    if "value" in variable:
        return variable["value"]
    for name in variable["valueFrom"]["fieldRef"]["fieldPath"].split("."):
        pod = pod[name]
    return pod


def the_router_finds_a_sandbox_by_dns(world):
    dns = Dns({"alpha.default.svc.cluster.local": POD_IP})
    root = world.root("router", {"/etc/resolv.conf": "nameserver 127.0.0.1\n", "/etc/hosts": "127.0.0.1 localhost\n"})
    router = root.start("--mesh=off", "--authz-mode=allow-all")
    try:
        with app((POD_IP, 8888)) as seen, ending(router):
            answer = get(router, "http://127.0.0.1:8080/hello", {"X-Sandbox-ID": "alpha"})
            assert answer == (200, b"the app") and seen == ["/hello"], f"{answer}, and the app saw {seen}"
            # A name that isn't there ends in an answer as well.
            answer = get(router, "http://127.0.0.1:8080/", {"X-Sandbox-ID": "gamma"})
            assert answer[0] == 502 and seen == ["/hello"], f"{answer}, and the app saw {seen}"
            assert dns.asked == {f"{name}.default.svc.cluster.local" for name in ("alpha", "gamma")}, dns.asked
    finally:
        dns.close()


def the_injector_explains_a_sandbox_offline(world):
    sandbox = {
        "apiVersion": "agents.x-k8s.io/v1alpha1",
        "kind": "Sandbox",
        "metadata": {"name": "alpha"},
        "spec": {"podTemplate": {"spec": {"containers": [{"name": "app", "image": "app.example/app:1"}]}}},
    }
    status, output = world.root("injector").run("explain", "-f", "-", "-o", "json", text=json.dumps(sandbox))
    assert status == 0 and "alpha" in output, f"{status}: {output}"


def the_router_image_can_be_a_gates_image(world):
    """Its second program is the sidecar image's own."""
    assert world.images["router"].programs()["/sandbox-sidecar"] == world.images["sidecar"].programs()["/sandbox-sidecar"]


def each_program_has_a_bill_of_materials_that_fits_the_lock_file(world):
    locked = {(package["name"], package["version"]) for package in world.lock}
    assert set(world.sboms) == {"sandbox-router", "sandbox-sidecar", "sandbox-injector"}, set(world.sboms)
    for program, sbom in world.sboms.items():
        assert (sbom["bomFormat"], sbom["specVersion"], sbom["version"]) == ("CycloneDX", "1.5", 1)
        about = sbom["metadata"]["component"]
        assert (about["type"], about["name"], about["version"]) == ("application", program, world.version), about
        crates = {(entry["name"], entry["version"]) for entry in sbom["components"] if is_crate(entry)}
        assert crates <= locked, f"{program}: not in Cargo.lock: {crates - locked}"
        for crate in ("rustls", "hyper"):
            assert [name for name, _ in crates].count(crate) == 1, f"{program}: {crate} isn't named once"
        for entry in sbom["components"]:
            if is_crate(entry) and not entry["name"].startswith("sandgate-"):
                assert entry["purl"] == f"pkg:cargo/{entry['name']}@{entry['version']}", entry
                assert re.fullmatch(r"[A-Za-z0-9.() -]+", entry["licenses"][0]["expression"]), entry
        system = {entry["name"]: entry["version"] for entry in sbom["components"] if not is_crate(entry)}
        assert {"rust-std", "libc6-dev"} <= system.keys() and all(system.values()), f"{program}: {system}"


def a_bill_of_materials_has_one_entry_for_each_component_and_says_what_needs_it(world):
    for program, sbom in world.sboms.items():
        references = [entry["bom-ref"] for entry in [sbom["metadata"]["component"], *sbom["components"]]]
        assert len(references) == len(set(references)), f"{program}: a component stands there twice"
        assert sorted(entry["ref"] for entry in sbom["dependencies"]) == sorted(references), f"{program}: other dependencies than components"
        needed = {reference for entry in sbom["dependencies"] for reference in entry["dependsOn"]}
        assert needed == set(references[1:]), f"{program}: {needed ^ set(references[1:])} is needed by none, or isn't there"


def what_the_compiler_left_in_a_program_is_in_its_bill_of_materials(world):
    """Panics name the source file they come from, and so the crate with its version."""
    left = re.compile(rb"/registry/src/[^/]+/([a-zA-Z0-9_-]+)-(\d+\.\d+\.\d+[a-zA-Z0-9.+-]*)/")
    for name, image in world.images.items():
        for path, data in image.programs().items():
            sbom = world.sboms[path.removeprefix("/")]
            listed = {(entry["name"], entry["version"]) for entry in sbom["components"]}
            found = {(crate.decode(), version.decode()) for crate, version in left.findall(data)}
            assert ("tokio" in {crate for crate, _ in found}) and len(found) > 10, f"{name}: {path} names {found}"
            assert found <= listed, f"{name}: {path} holds {found - listed}, and its bill of materials doesn't"


def a_program_holds_what_it_needs_and_not_what_others_ask_for(world):
    """A list for the whole workspace would name in each what only another program needs, or the tests."""
    held = {
        program: {entry["name"] for entry in world.sboms[program]["components"]}
        for program in ("sandbox-sidecar", "sandbox-router", "sandbox-injector")
    }
    for program, needed, absent in (
        ("sandbox-sidecar", {"h2"}, {"kube", "k8s-openapi", "tonic", "prost", "warp"}),
        ("sandbox-router", {"h2", "kube", "tonic"}, {"warp", "tungstenite"}),
        ("sandbox-injector", {"h2", "kube", "warp"}, {"tonic", "prost"}),
    ):
        assert needed <= held[program], f"{program}: {needed - held[program]}"
        assert not held[program] & absent, f"{program}: {held[program] & absent}"


def is_crate(entry):
    return entry.get("purl", "pkg:cargo/").startswith("pkg:cargo/")


TESTS = [
    both_dockerfiles_make_the_toolchain_alike_and_build_from_the_lock_file,
    the_sidecar_image_is_one_layer_with_one_file_of_at_most_10_mb,
    an_image_holds_its_programs_and_nothing_else_no_shell_and_no_library,
    every_program_is_static_and_position_independent,
    images_run_as_the_users_and_programs_that_the_chart_names,
    labels_say_what_it_is,
    programs_run_on_a_read_only_root_as_any_user,
    a_gate_as_the_injector_makes_it_answers_the_kubelet,
    the_router_finds_a_sandbox_by_dns,
    the_injector_explains_a_sandbox_offline,
    the_router_image_can_be_a_gates_image,
    each_program_has_a_bill_of_materials_that_fits_the_lock_file,
    a_bill_of_materials_has_one_entry_for_each_component_and_says_what_needs_it,
    what_the_compiler_left_in_a_program_is_in_its_bill_of_materials,
    a_program_holds_what_it_needs_and_not_what_others_ask_for,
]


def print_sizes(world):
    print(f"{'image':<10} {'layers':>6} {'bytes':>10} {'in a registry':>14}  {'user':<12} files")
    for name, image in world.images.items():
        size = sum(len(data) for data in image.programs().values())
        transferred = sum(layer.transferred for layer in image.layers)
        print(f"{name:<10} {len(image.layers):>6} {size:>10} {transferred:>14}  {image.user:<12} {' '.join(image.programs())}")


def main():
    parser = argparse.ArgumentParser(prog="tests/images/run", description=__doc__)
    parser.add_argument("--built", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--revision", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--source", required=True, help=argparse.SUPPRESS)
    parser.add_argument("parts", nargs="*", help="parts of names of tests; all if none is given")
    options = parser.parse_args()
    chosen = [test for test in TESTS if not options.parts or any(part in test.__name__ for part in options.parts)]
    if not chosen:
        parser.error(f"no test is named like {' or '.join(options.parts)}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        world = World(options.built, Path(folder), options.revision, options.source)
        print_sizes(world)
        for test in chosen:
            try:
                test(world)
                print(f"ok      {test.__name__}")
            # Whatever is wrong with an image is this test's failure, and no other's.
            except Exception as error:
                failed += 1
                print(f"FAILED  {test.__name__}: {type(error).__name__}: {error}")
        world.close()
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
