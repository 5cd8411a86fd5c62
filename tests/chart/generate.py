"""The files that are made from the chart: values.schema.json, README.md and the plain manifests."""

import json
import re

import yaml

ENUMS = {
    "router.image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "injector.image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "injection.image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "router.auth.mode": ["", "token", "allow-all"],
    "router.mesh.mode": ["required", "off"],
    "router.service.type": ["ClusterIP", "LoadBalancer", "NodePort"],
    "injector.webhook.certificate.source": ["self", "cert-manager", "secret"],
    "injection.lockdown": ["enabled", "disabled"],
}
PATTERNS = {
    "router.proxyTimeout": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$",
    # Whole units: the pod's own grace period is computed from it.
    "router.shutdownTimeout": r"^([0-9]+(s|m|h))+$",
    "router.image.digest": r"^(sha256:[0-9a-f]{64})?$",
    "injector.image.digest": r"^(sha256:[0-9a-f]{64})?$",
    "injection.image.digest": r"^(sha256:[0-9a-f]{64})?$",
}
MINIMA = {"router.replicas": 0, "injector.replicas": 1, "router.service.port": 1}
MAXIMA = {"injector.webhook.timeoutSeconds": 30, "router.service.port": 65535}
STRING_LISTS = {
    "imagePullSecrets",
    "router.trustedProxyCIDRs",
    "router.extraArgs",
    "router.httpRoute.hostnames",
    "injector.extraArgs",
    "injection.acceptedImages",
    "injection.routerIdentities",
    "injection.lockdownRuntimeClasses",
    "admissionPolicy.networkPolicies.exceptions",
    "admissionPolicy.networkPolicies.allowedUsers",
}
# Maps whose keys are the user's own, although the default has some.
FREE_MAPS = {"router.resources", "injector.resources", "monitoring.dashboard.labels"}
# Each becomes a flag, so there are no others.
AMOUNTS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {name: {"type": ["string", "number"]} for name in ("cpu", "memory")},
}
SCHEMAS = {
    "injection.resources": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"requests": AMOUNTS, "limits": AMOUNTS},
    },
}
# Described as one value.
WHOLE = FREE_MAPS | set(SCHEMAS)


def schema(values):
    top = of(values, "")
    # Helm itself hands these to every chart.
    top["properties"]["global"] = {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart sandgate", **top}


def of(value, path):
    if path in SCHEMAS:
        return SCHEMAS[path]
    if isinstance(value, dict):
        if not value or path in FREE_MAPS:
            return {"type": "object"}
        inner = {key: of(entry, f"{path}.{key}".lstrip(".")) for key, entry in value.items()}
        return {"type": "object", "additionalProperties": False, "properties": inner}
    if isinstance(value, list):
        return {"type": "array", "items": {"type": "string"} if path in STRING_LISTS else {"type": "object"}}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        limits = {"minimum": MINIMA.get(path, 1)}
        if path in MAXIMA:
            limits["maximum"] = MAXIMA[path]
        return {"type": "integer", **limits}
    if path in ENUMS:
        return {"type": "string", "enum": ENUMS[path]}
    if path in PATTERNS:
        return {"type": "string", "pattern": PATTERNS[path]}
    return {"type": "string"}


def schema_text(values):
    return json.dumps(schema(values), indent=2) + "\n"


def described(text):
    """(path, description) of each value, from the comments that start with `# --`."""
    parents, description, found = [], None, []
    for line in text.splitlines():
        if match := re.match(r"\s*# -- (.*)", line):
            description = match[1]
        elif match := re.match(r"( *)([A-Za-z]+):", line):
            depth = len(match[1]) // 2
            parents = [*parents[:depth], match[2]]
            if description is not None:
                found.append((".".join(parents), description))
                description = None
    return found


def readme_text(chart, values_text):
    values = yaml.safe_load(values_text)
    rows = []
    for path, description in described(values_text):
        value = values
        for key in path.split("."):
            value = value[key]
        rows.append(f"| `{path}` | `{json.dumps(value)}` | {description} |".replace("||", "|"))
    table = "\n".join(rows)
    return f"""# {chart["name"]}

{chart["description"]}. Version {chart["version"]}, Kubernetes {chart["kubeVersion"].strip(">=").removesuffix("-0")} or later.

```sh
kubectl create namespace agent-sandbox-system
kubectl create secret generic sandbox-router-token -n agent-sandbox-system --from-literal=token=...
helm install sandgate charts/sandgate -n agent-sandbox-system \\
  --set router.auth.mode=token --set router.auth.existingSecret=sandbox-router-token
kubectl label namespace my-sandboxes sandgate.dev/inject=enabled
```

[docs/install.md](../../docs/install.md) says more: upgrades, certificates, uninstalling, life without Helm.
`values-ha.yaml` beside this file is a starting point for three of each. A key that doesn't exist is refused, not ignored.

## Values

| key | default | what |
|---|---|---|
{table}

The table is made from `values.yaml` by `tests/chart/run --write`.
"""
