"""One root and the leaves under it, made with openssl: ECDSA P-256, PKCS#8 keys, one URI SAN each."""

from dataclasses import dataclass
from pathlib import Path

import peers

TRUST_DOMAIN = "cluster.local"
ROUTER_IDENTITY = f"spiffe://{TRUST_DOMAIN}/ns/agent-sandbox-system/sa/sandbox-router"
POD_UID = "0000-bench"
# The sandbox that the rows ask, and the one that is beside it in the measurement of a noisy neighbour.
ALPHA, NOISY = "alpha", "noisy"


def sidecar_identity(sandbox):
    return f"spiffe://{TRUST_DOMAIN}/ns/bench/sandbox/{sandbox}/pod/{POD_UID}"


SIDECAR_IDENTITY = sidecar_identity(ALPHA)


@dataclass(frozen=True)
class Leaf:
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Certificates:
    trust_bundle: Path
    router: Leaf
    sidecar: Leaf
    noisy_sidecar: Leaf
    # Of the router's HTTPS listener.
    front: Leaf


def make_certificates(openssl, directory):
    directory.mkdir()
    root = Leaf(directory / "root.pem", directory / "root.key")
    make_key(openssl, root.key)
    subject = ["-subj", "/CN=sandgate bench root", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    request = [openssl, "req", "-x509", "-new", "-sha256", "-days", "2", "-key", root.key]
    peers.run([*request, *subject, "-out", root.certificate], "openssl req")
    return Certificates(
        trust_bundle=root.certificate,
        router=make_leaf(openssl, root, directory / "router", ROUTER_IDENTITY, "clientAuth"),
        sidecar=make_leaf(openssl, root, directory / "sidecar", SIDECAR_IDENTITY, "serverAuth"),
        noisy_sidecar=make_leaf(openssl, root, directory / "noisy-sidecar", sidecar_identity(NOISY), "serverAuth"),
        front=make_leaf(openssl, root, directory / "front", ROUTER_IDENTITY, "serverAuth"),
    )


def make_leaf(openssl, root, base, identity, usage):
    leaf = Leaf(base.with_suffix(".pem"), base.with_suffix(".key"))
    request, extensions = base.with_suffix(".csr"), base.with_suffix(".ext")
    make_key(openssl, leaf.key)
    peers.run(
        [openssl, "req", "-new", "-sha256", "-key", leaf.key, "-subj", f"/CN=bench {base.name}", "-out", request],
        "openssl req",
    )
    extensions.write_text(
        "basicConstraints=critical,CA:FALSE\n"
        "keyUsage=critical,digitalSignature\n"
        f"extendedKeyUsage={usage}\n"
        f"subjectAltName=URI:{identity}\n"
    )
    signing = ["-CA", root.certificate, "-CAkey", root.key, "-CAcreateserial", "-days", "1", "-sha256"]
    peers.run(
        [openssl, "x509", "-req", "-in", request, *signing, "-extfile", extensions, "-out", leaf.certificate],
        "openssl x509",
    )
    return leaf


def make_key(openssl, path):
    curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    peers.run([openssl, "genpkey", *curve, "-out", path], "openssl genpkey")
