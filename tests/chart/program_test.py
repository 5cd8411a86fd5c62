"""Whether the chart's schema and the injector's program agree: what one refuses, so does the other."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from rendered import CHART, NAMESPACE, REPOSITORY

# Exit code of a program whose flags have values that it can't work with.
BAD_CONFIGURATION = 64
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {sandgate.dev/inject: enabled}}\nspec: {containers: [{name: app, image: app}]}\n"

TAKEN = [
    {},
    {"injection.logLevel": "trace"},
    {"trustDomain": "a_b-c.d", "injection.routerIdentities": ["spiffe://a_b-c.d/ns/n/sa/a.b"], "router.mesh.certificate.source": "secret"},
    {"injection.acceptedImages": ["localhost:5000/a/b@sha256:00ff", "a"]},
    {"injection.acceptedRouterIdentities": ["spiffe://cluster.local/ns/n/sa/a.b", "spiffe://cluster.local/ns/n/sa/c"]},
    {"imageRegistry": "mirror.example:5000/x", "injection.image.repository": "a/b_c", "injection.image.tag": "1.0-rc_1"},
    {"injection.identitySource": "pod-certificates"},
    {"injection.lockdown": "enabled", "injection.lockdownRuntimeClasses": ["kata.qemu", "runc"]},
    {"injection.resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1073741824"}}},
    {"injection.resources": {"requests": {"cpu": 0.029, "memory": "1k"}, "limits": {"cpu": 0.3, "memory": "1Ki"}}},
    {"injection.resources": {"requests": {"cpu": "0.05", "memory": "999999999Gi"}, "limits": {"cpu": "050m", "memory": "999999999Gi"}}},
    {"injection.resources": {"limits": {"cpu": 10000, "memory": "2M"}, "requests": {"memory": "1953Ki"}}},
]
REFUSED = [
    {"injection.logLevel": "loud"},
    {"injection.logLevel": "info,hyper=trace"},
    {"injection.identitySource": "both"},
    {"trustDomain": "Not A Domain"},
    {"trustDomain": ""},
    {"injection.routerIdentities": ["nobody"]},
    {"injection.routerIdentities": [""]},
    {"injection.routerIdentities": ["spiffe://cluster.local/ns/a/sandbox/b/pod/c"]},
    {"injection.routerIdentities": ["spiffe://cluster.local/ns/-a/sa/b"]},
    {"injection.routerIdentities": ["spiffe://cluster.local/ns/a/sa/b-"]},
    {"injection.routerIdentities": ["spiffe://elsewhere/ns/a/sa/b"]},
    {"injection.acceptedRouterIdentities": ["nobody"]},
    {"injection.acceptedRouterIdentities": ["spiffe://elsewhere/ns/a/sa/b"]},
    {"router.serviceAccount.name": "No Name"},
    {"injector.serviceAccount.name": "No Name"},
    {"injector.serviceAccount.name": "sandbox-router"},
    {"injection.acceptedImages": ["a b"]},
    {"injection.acceptedImages": ["-a"]},
    {"injection.acceptedImages": ["a" * 513]},
    {"imageRegistry": "https://mirror.example/a b"},
    {"injection.image.repository": "not an image"},
    {"injection.image.tag": "$(X)"},
    {"injection.resources": {"limits": {"memory": "64Mib"}}},
    {"injection.resources": {"limits": {"memory": "1.5Gi"}}},
    {"injection.resources": {"limits": {"memory": 67108864.0}}},
    {"injection.resources": {"limits": {"cpu": "0.0001"}}},
    {"injection.resources": {"limits": {"cpu": 0.0005}}},
    {"injection.resources": {"requests": {"cpu": "-1"}}},
    {"injection.resources": {"requests": {"cpu": "1M"}}},
    # Requests above limits.
    {"injection.resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "999m"}}},
    {"injection.resources": {"requests": {"cpu": 0.5}, "limits": {"cpu": 0.499}}},
    {"injection.resources": {"requests": {"cpu": "0.05"}, "limits": {"cpu": "49m"}}},
    {"injection.resources": {"requests": {"memory": "65Mi"}}},
    {"injection.resources": {"limits": {"memory": "15Mi"}}},
    {"injection.resources": {"requests": {"memory": "1Ki"}, "limits": {"memory": "1k"}}},
    {"injection.resources": {"requests": {"memory": "1G"}, "limits": {"memory": "999999999"}}},
]


@cache
def injector():
    """The program, as it is now."""
    build = ["cargo", "build", "--locked", "--quiet", "--package", "sandbox-injector", "--message-format=json"]
    done = subprocess.run(build, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    programs = [json.loads(line).get("executable") for line in done.stdout.splitlines()]
    return next(program for program in programs if program)


def the_schema_refuses_what_the_program_refuses(chart):
    for values in TAKEN:
        done = explained(chart.objects(*arguments(values)))
        assert done.returncode == 0, f"{values}: {done.stderr}"
    # Without its checks and its schema, the chart renders whatever it is given.
    unchecked = Path(tempfile.mkdtemp(dir=chart.folder.name)) / "sandgate"
    shutil.copytree(CHART, unchecked)
    (unchecked / "templates" / "checks.yaml").unlink()
    (unchecked / "values.schema.json").unlink()
    for values in REFUSED:
        assert chart.refusal(*arguments(values)), values
        done = explained(chart.objects(*arguments(values), chart=unchecked))
        assert done.returncode == BAD_CONFIGURATION, f"{values}: the program takes it: {done.stdout}{done.stderr}"


def arguments(values):
    pairs = {"router.auth.mode": "allow-all", **values}.items()
    return [argument for path, value in pairs for argument in ("--set-json", f"{path}={json.dumps(value)}")]


def explained(objects):
    """What the program says to the flags that the release's test gives it."""
    flags = next(found for found in objects if found["kind"] == "Pod")["spec"]["containers"][0]["args"]
    return run([flag if not flag.startswith("--filename=") else "--filename=-" for flag in flags])


def run(flags):
    return subprocess.run([injector(), *flags], input=POD, capture_output=True, text=True, check=False, env={})


def the_printed_command_can_be_pasted(chart):
    """`kubectl exec` starts a program of the image in the environment of its container: so does this."""
    values = {
        "injection.lockdown": "enabled",
        "injection.lockdownRuntimeClasses": ["kata"],
        "injection.acceptedImages": ["a@sha256:00ff"],
        "injection.resources": {"limits": {"cpu": 0.5}},
        "injection.allowOptOut": True,
    }
    done = chart.run("install", "sandgate", CHART, "-n", NAMESPACE, "--dry-run=client", *arguments(values))
    assert done.returncode == 0, done.stderr
    command = re.search(r"^  (kubectl exec .*?)  < sandbox\.yaml$", done.stdout, re.MULTILINE | re.DOTALL)
    assert command, done.stdout.split("NOTES:")[-1]
    words = shlex.split(command[1].replace("\\\n", " "))
    assert words[:7] == ["kubectl", "exec", "-i", "-n", NAMESPACE, "deploy/sandgate-injector", "--"], words
    entry_point = re.search(r'^ENTRYPOINT \["(.*)"\]', (REPOSITORY / "Dockerfile.injector").read_text(), re.MULTILINE)
    assert words[7] == entry_point[1], (words, entry_point[1])
    with tempfile.TemporaryDirectory() as files:
        sandbox = Path(files) / "sandbox.yaml"
        sandbox.write_text(POD)
        pasted = command[0].replace(" ".join(words[:8]), shlex.quote(injector()))
        assert injector() in pasted, pasted
        environment = {"PATH": os.environ["PATH"], "POD_NAMESPACE": NAMESPACE}
        done = subprocess.run(["sh", "-c", pasted], cwd=files, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "inject" in done.stdout, f"{done.stdout}{done.stderr}"
    deployments = {found["metadata"]["name"]: found for found in chart.objects(*arguments(values)) if found["kind"] == "Deployment"}
    served = deployments["sandgate-injector"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[8:11] == ["explain", "-f", "-"] and set(words[11:]) <= set(served), set(words[11:]) - set(served)


TESTS = [
    the_schema_refuses_what_the_program_refuses,
    the_printed_command_can_be_pasted,
]
