"""Whether every value does what its description promises: it changes what is rendered."""

import json
from concurrent.futures import ThreadPoolExecutor

import generate
import yaml

TOKEN = {"router.auth.mode": "token", "router.auth.existingSecret": "token"}
REVIEWS = {"router.auth.mode": "tokenreview"}
SCOPED_TOKENS = {
    "router.auth.mode": "scoped-token",
    "router.auth.existingSecret": "keys",
    "router.auth.scopedToken.secretKey": "secret",
}
OIDC = {
    "router.auth.mode": "oidc",
    "router.auth.oidc.issuerURL": "https://issuer.example",
    "router.auth.oidc.audiences": ["sandboxes"],
    "router.auth.oidc.caConfigMap": "issuer",
    "router.auth.oidc.groupsClaim": "groups",
}
EVERYTHING_OPTIONAL = {
    "router.auth.mode": "allow-all",
    "router.autoscaling.enabled": True,
    "router.httpRoute.enabled": True,
    "router.httpRoute.parentRefs": [{"name": "gateway"}],
    "router.tls.enabled": True,
    "router.tls.certificate.source": "cert-manager",
    "router.tls.certificate.issuerRef": {"name": "issuer"},
    "router.tls.mtlsMode": "optional",
    "router.tls.clientCA.configMap": "clients",
    "injection.lockdown": "enabled",
    "injector.webhook.certificate.source": "cert-manager",
    "injector.webhook.certificate.issuerRef": {"name": "issuer"},
    "monitoring.podMonitor.enabled": True,
    "monitoring.prometheusRule.enabled": True,
    "monitoring.dashboard.enabled": True,
}
GIVEN_CERTIFICATE = {
    "router.auth.mode": "allow-all",
    "injector.webhook.certificate.source": "secret",
    "injector.webhook.certificate.caBundle": "Zm9v",
    "injection.routerIdentities": ["spiffe://cluster.local/ns/a/sa/b"],
    "router.mesh.certificate.source": "secret",
    "router.tls.enabled": True,
    "router.tls.mtlsMode": "optional",
    "router.tls.clientCA.secretName": "clients",
    "injector.authority.source": "secret",
}
# A value has to matter beside one of these.
BESIDE = [TOKEN, REVIEWS, SCOPED_TOKENS, OIDC, EVERYTHING_OPTIONAL, GIVEN_CERTIFICATE]
# What `changed` can't know.
OTHERS = {
    "router.auth.mode": "allow-all",
    "router.tls.certificate.source": "secret",
    "router.tls.mtlsMode": "required",
    "router.auth.tokenReview.ttl": "7s",
    "router.auth.oidc.issuerURL": "https://changed.example",
    "router.auth.oidc.requiredClaims": ["hd=changed"],
    "router.auth.oidc.signingAlgs": ["ES256"],
    "router.mesh.mode": "off",
    "router.mesh.certificate.source": "secret",
    "router.cache.namespace": "sandboxes",
    "router.service.type": "LoadBalancer",
    "router.proxyTimeout": "7s",
    "router.shutdownTimeout": "7s",
    "injector.defaultPolicy": "authenticated",
    "injector.gateCertificateLifetime": "7h",
    "injector.webhook.certificate.source": "self",
    "injector.authority.source": "secret",
    "injector.authority.rotateAfter": "7h",
    "injector.authority.routersFollowWithin": "7h",
    "injector.networkPolicy.apiServerCIDRs": ["10.0.0.0/8"],
    "injection.identitySource": "pod-certificates",
    "injection.lockdown": "enabled",
    "injection.lockdownRuntimeClasses": ["changed"],
    "injection.logLevel": "debug",
    "injection.resources": {"requests": {"cpu": "7m"}},
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more"}}],
}
# What can't stay as it is beside another value.
WITH = {"router.tls.certificate.source": {"router.tls.certificate.issuerRef": {}}}
OBJECT_LISTS = {"key": "changed"}


def changed(path, value):
    if path in OTHERS:
        return OTHERS[path]
    if path.endswith("pullPolicy"):
        return "Always"
    if path.endswith("digest"):
        return "sha256:" + "7" * 64
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 3
    if isinstance(value, list):
        return ["spiffe://cluster.local/ns/a/sa/changed"] if path in generate.STRING_LISTS else [OBJECT_LISTS]
    if isinstance(value, dict):
        return {**value, "changed": "changed"}
    return "changed"


def unread(chart, values):
    """The values that change nothing, whatever stands beside them."""
    plain = [rendered(chart, beside) for beside in BESIDE]
    with ThreadPoolExecutor(2) as pool:
        matters = list(pool.map(lambda leaf: any(differs(chart, *leaf, beside, text) for beside, text in zip(BESIDE, plain)), values))
    return [path for (path, _), matter in zip(values, matters) if not matter]


def differs(chart, path, value, beside, text):
    other = changed(path, beside.get(path, value))
    if beside.get(path) == other:
        return False
    try:
        return rendered(chart, {**beside, path: other, **WITH.get(path, {})}) != text
    except AssertionError:
        # It doesn't fit what stands beside it.
        return False


def rendered(chart, values):
    pairs = [argument for path, value in values.items() for argument in ("--set-json", f"{path}={json.dumps(value)}")]
    # As objects: a comment isn't what a value is for.
    return [found for found in yaml.load_all(chart.render(*pairs), yaml.CSafeLoader) if found]
