"""The chart, as Helm renders it."""

import subprocess
import tempfile
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "sandgate"
NAMESPACE = "agent-sandbox-system"
# Callers must be decided about, or nothing is rendered.
DECIDED = ["--set", "router.auth.mode=allow-all"]
# What the chart asks a cluster for, of a cluster that has it.
KINDS = [f"certificates.k8s.io/v1/{kind}" for kind in ("PodCertificateRequest", "ClusterTrustBundle")]


class Chart:
    def __init__(self, helm):
        self.helm = helm
        self.folder = tempfile.TemporaryDirectory()

    def run(self, *arguments):
        home = self.folder.name
        environment = {"HOME": home, "HELM_CACHE_HOME": home, "HELM_CONFIG_HOME": home, "HELM_DATA_HOME": home}
        return subprocess.run([self.helm, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False)

    def render(self, *arguments, version="1.37", chart=CHART):
        kinds = ["--api-versions", ",".join(KINDS)] if version == "1.37" else []
        done = self.run("template", "sandgate", chart, "-n", NAMESPACE, "--kube-version", version, *kinds, *arguments)
        if done.returncode != 0:
            raise AssertionError(f"helm template {' '.join(map(str, arguments))}: {done.stderr}")
        return done.stdout

    def objects(self, *arguments, version="1.37", chart=CHART):
        text = self.render(*arguments, version=version, chart=chart)
        return [found for found in yaml.safe_load_all(text) if found is not None]

    def refusal(self, *arguments):
        done = self.run("template", "sandgate", CHART, "-n", NAMESPACE, *arguments)
        assert done.returncode != 0, f"{arguments} is rendered"
        return done.stderr


def sets(*pairs):
    return [argument for pair in pairs for argument in ("--set", pair)]
