"""The files that are made from the chart: values.schema.json, README.md and the plain manifests."""

import json
import re

import yaml

ENUMS = {
    "router.image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "injector.image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "injection.image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "router.auth.mode": ["", "token", "scoped-token", "tokenreview", "oidc", "allow-all"],
    "router.tls.certificate.source": ["secret", "cert-manager"],
    "router.tls.mtlsMode": ["off", "optional", "required"],
    "router.mesh.mode": ["required", "auto", "off"],
    "router.mesh.certificate.source": ["enrolled", "secret"],
    "router.service.type": ["ClusterIP", "LoadBalancer", "NodePort"],
    "injector.defaultPolicy": ["deny", "authenticated", "anonymous"],
    "injector.webhook.certificate.source": ["self", "cert-manager", "secret"],
    "injector.authority.source": ["self", "secret"],
    "injection.identitySource": ["enrolment", "pod-certificates"],
    "injection.lockdown": ["enabled", "disabled"],
    "injection.logLevel": ["error", "warn", "info", "debug", "trace"],
}
# A name as Kubernetes takes it: labels with dots between them.
LABEL = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
SUBDOMAIN = rf"{LABEL}(\.{LABEL})*"
TRUST_DOMAIN = "[a-z0-9._-]{1,255}"
REPOSITORY = "^[A-Za-z0-9][A-Za-z0-9._/:-]*$"
TAG = "^[A-Za-z0-9_.-]*$"
DIGEST = "^(sha256:[0-9a-f]{64})?$"
# What the programs take for the flags that these become; program_test.py asks the injector's.
PATTERNS = {
    "imageRegistry": "^([A-Za-z0-9][A-Za-z0-9._/:-]*)?$",
    "trustDomain": f"^{TRUST_DOMAIN}$",
    "injector.gateCertificateLifetime": r"^([0-9]+(s|m|h))+$",
    # Above nothing.
    "router.auth.tokenReview.ttl": r"^[1-9][0-9]*(ms|s|m|h)([0-9]+(ms|s|m|h))*$",
    "router.proxyTimeout": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$",
    # Whole units: the pod's own grace period is computed from it.
    "router.shutdownTimeout": r"^([0-9]+(s|m|h))+$",
    "injector.authority.rotateAfter": r"^([0-9]+(s|m|h))+$",
    "injector.authority.routersFollowWithin": r"^([0-9]+(s|m|h))*$",
    # A key of a Secret.
    "router.auth.scopedToken.secretKey": "^[A-Za-z0-9._-]{0,253}$",
    "router.auth.scopedToken.publicKeysKey": "^[A-Za-z0-9._-]{0,253}$",
    "router.tls.certificate.secretName": f"^({SUBDOMAIN})?$",
    "router.tls.clientCA.configMap": f"^({SUBDOMAIN})?$",
    "router.tls.clientCA.secretName": f"^({SUBDOMAIN})?$",
    "router.tls.clientCA.key": "^[A-Za-z0-9._-]{1,253}$",
    "router.auth.oidc.issuerURL": r"^(https://[^\s?#@]+)?$",
    "router.auth.oidc.caConfigMap": f"^({SUBDOMAIN})?$",
    # Part of the identity that gates believe.
    "router.serviceAccount.name": f"^{SUBDOMAIN}$",
    "injector.serviceAccount.name": f"^{SUBDOMAIN}$",
}
for image in ("router.image", "injector.image", "injection.image"):
    PATTERNS |= {f"{image}.repository": REPOSITORY, f"{image}.tag": TAG, f"{image}.digest": DIGEST}
# Of the entries of a list.
ENTRY_PATTERNS = {
    # They become one flag, with commas between them.
    "router.auth.tokenReview.audiences": r"^[^,\s]+$",
    "router.auth.oidc.audiences": r"^[^,\s]+$",
    "router.auth.oidc.requiredClaims": "^[^=]+=",
    "router.auth.oidc.signingAlgs": "^((RS|PS)(256|384|512)|ES(256|384)|EdDSA)$",
    "injection.acceptedImages": "^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}$",
    "injection.routerIdentities": f"^spiffe://{TRUST_DOMAIN}/ns/{LABEL}/sa/{SUBDOMAIN}$",
    "injection.acceptedRouterIdentities": f"^spiffe://{TRUST_DOMAIN}/ns/{LABEL}/sa/{SUBDOMAIN}$",
    "injection.lockdownRuntimeClasses": f"^{SUBDOMAIN}$",
    # With its length, as a NetworkPolicy wants it.
    "injector.networkPolicy.apiServerCIDRs": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$",
}
MINIMA = {"router.replicas": 0, "injector.replicas": 1, "router.service.port": 1}
MAXIMA = {"injector.webhook.timeoutSeconds": 30, "router.service.port": 65535, "router.service.httpsPort": 65535}
STRING_LISTS = {
    "router.tls.certificate.dnsNames",
    "router.auth.tokenReview.audiences",
    "router.auth.oidc.audiences",
    "router.auth.oidc.requiredClaims",
    "router.auth.oidc.signingAlgs",
    "imagePullSecrets",
    "router.trustedProxyCIDRs",
    "router.extraArgs",
    "router.httpRoute.hostnames",
    "injector.networkPolicy.apiServerCIDRs",
    "injector.extraArgs",
    "injection.acceptedImages",
    "injection.routerIdentities",
    "injection.acceptedRouterIdentities",
    "injection.lockdownRuntimeClasses",
    "admissionPolicy.networkPolicies.exceptions",
    "admissionPolicy.networkPolicies.allowedUsers",
    "admissionPolicy.gateTokens.allowedUsers",
    "admissionPolicy.podAddresses.allowedUsers",
}
# Maps whose keys are the user's own, although the default has some.
FREE_MAPS = {"router.resources", "injector.resources", "monitoring.dashboard.labels"}
# Each becomes a flag, so there are no others. A number of bytes would reach it as 6.7108864e+07.
AMOUNTS = {
    "cpu": {
        "type": ["string", "number"],
        "pattern": r"^[0-9]{1,15}(m|\.[0-9]{1,3})?$",
        "minimum": 0,
        "maximum": 10000,
        "multipleOf": 0.001,
    },
    "memory": {"type": "string", "pattern": "^([0-9]{1,9}(k|M|G|Ki|Mi|Gi)|[0-9]{1,18})$"},
}


def amounts(*required):
    return {"type": "object", "additionalProperties": False, "properties": AMOUNTS, "required": [*required]}


SCHEMAS = {
    "injection.resources": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"requests": amounts("cpu", "memory"), "limits": amounts("memory")},
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
        entry = {"type": "string"} if path in STRING_LISTS else {"type": "object"}
        if path in ENTRY_PATTERNS:
            entry["pattern"] = ENTRY_PATTERNS[path]
        return {"type": "array", "items": entry}
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
```

**Don't label a namespace whose sandboxes are in use.** In a namespace labelled `sandgate.dev/inject=enabled` every sandbox pod
that is created gets a gate, and every gate has one and the same policy, `injector.defaultPolicy`, which refuses everybody by
default. `helm get notes sandgate -n agent-sandbox-system` prints a command that tells what would be done to a sandbox.

[docs/install.md](../../docs/install.md) says more: upgrades, certificates, uninstalling, life without Helm.
`values-ha.yaml` beside this file is a starting point for three of each. A key that doesn't exist is refused, not ignored.

## Values

| key | default | what |
|---|---|---|
{table}

The table is made from `values.yaml` by `tests/chart/run --write`.
"""
