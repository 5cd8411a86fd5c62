"""Checks the chart as an operator would use it; see `run`."""

import argparse
import itertools
import json
import re
import sys

import generate
import jsonschema
import kubernetes_validate
import program_test
import refusals_test
import tls_test
import values_test
import yaml
from rendered import CHART, DECIDED, NAMESPACE, REPOSITORY, Chart, sets

INSTALL = REPOSITORY / "docs" / "install.md"
RIGHTS = REPOSITORY / "docs" / "rbac.md"
MANIFESTS = REPOSITORY / "deploy" / "manifests" / "sandgate.yaml"
DASHBOARDS = REPOSITORY / "deploy" / "dashboards"
# The ConfigMap that the injector fills.
ROOTS = "sandgate-roots"
VERSIONS = [f"1.{minor}" for minor in range(29, 38)]

# Without the chart's own router, gates must be told of others.
ROUTERS = "injection.routerIdentities={spiffe://cluster.local/ns/a/sa/b}"
MATRIX = {
    "router": [[], sets("router.enabled=false", ROUTERS), sets("router.autoscaling.enabled=true", "router.mesh.mode=off"), [*sets("router.mesh.certificate.source=secret"), *tls_test.MUTUAL]],
    "auth": [
        DECIDED,
        sets("router.auth.mode=token", "router.auth.existingSecret=token"),
        sets("router.auth.mode=tokenreview", "router.auth.accessReview=true"),
        sets("router.auth.mode=oidc", "router.auth.oidc.issuerURL=https://issuer.example", "router.auth.oidc.audiences={a,b}", "router.auth.oidc.caConfigMap=issuer"),
        sets("router.auth.mode=scoped-token", "router.auth.existingSecret=keys", "router.auth.scopedToken.secretKey=secret"),
    ],
    "injection": [
        [],
        sets("injection.lockdown=enabled", "injection.lockdownRuntimeClasses={runc}", "injection.restrictConnect=true"),
        sets("injection.allowOptOut=true", "injection.networkPolicy=false", "injection.image.digest=sha256:" + "0" * 64),
    ],
    "certificate": [
        [],
        sets("injector.webhook.certificate.source=secret", "injector.webhook.certificate.caBundle=Zm9v"),
    ],
    "policy": [[], sets("admissionPolicy.enabled=false", "admissionPolicy.networkPolicies.enabled=false")],
}


def combinations():
    for choice in itertools.product(*MATRIX.values()):
        yield list(itertools.chain(*choice))


def lint(chart):
    for arguments in (DECIDED, [*DECIDED, "-f", CHART / "values-ha.yaml"]):
        done = chart.run("lint", "--strict", CHART, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def nobody_loses_pods_by_the_documented_high_availability(chart):
    """Where `replicas` isn't rendered, an API server puts 1 in its place."""
    objects = chart.objects(*DECIDED, "-f", CHART / "values-ha.yaml")
    replicas = {o["metadata"]["name"]: o["spec"].get("replicas") for o in objects if o["kind"] == "Deployment"}
    assert replicas == {"sandbox-router": 3, "sandgate-injector": 3}, replicas


def what_is_rendered_as_documented_can_be_applied_twice(chart):
    """A test's pod can't: its fields are there for good."""
    command = re.search(r"^helm template sandgate charts/sandgate (.*) -f my-values\.yaml > ", INSTALL.read_text(), re.MULTILINE)
    done = chart.run("template", "sandgate", CHART, *command[1].split(), *DECIDED)
    objects = [found for found in yaml.safe_load_all(done.stdout) if found]
    assert len(objects) > 20 and not [o for o in objects if "helm.sh/hook" in o["metadata"].get("annotations", {})], done.stderr


def every_combination_fits_strict_schemas(chart):
    number = 0
    for arguments in combinations():
        for found in chart.objects(*arguments):
            strict(found, "1.37")
        number += 1
    for version in VERSIONS:
        for found in chart.objects(*DECIDED, "-f", CHART / "values-ha.yaml", version=f"{version}.0"):
            strict(found, version)
            number += 1
    print(f"    {number} renderings and objects")


def strict(found, version):
    name = f"{found['kind']} {found['metadata']['name']}"
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        raise AssertionError(f"{name} for {version}: {error.message}") from error
    except kubernetes_validate.SchemaNotFoundError as error:
        group = found["apiVersion"].split("/")[0]
        known = {"monitoring.coreos.com", "gateway.networking.k8s.io", "cert-manager.io"}
        old_policy = found["kind"].startswith("ValidatingAdmissionPolicy") and version == "1.29"
        assert group in known or old_policy, f"{name} for {version}: {error}"


def on_1_29_there_is_no_admission_policy(chart):
    kinds = {found["kind"] for found in chart.objects(*DECIDED, version="1.29.0")}
    assert not any(kind.startswith("ValidatingAdmissionPolicy") for kind in kinds), kinds
    assert "ValidatingWebhookConfiguration" in kinds


def optional_objects_are_there_when_asked_for(chart):
    arguments = sets(
        "monitoring.podMonitor.enabled=true",
        "monitoring.prometheusRule.enabled=true",
        "monitoring.dashboard.enabled=true",
        "router.httpRoute.enabled=true",
        "router.httpRoute.parentRefs[0].name=gateway",
        "injector.webhook.certificate.source=cert-manager",
        "injector.webhook.certificate.issuerRef.name=issuer",
        "extraObjects[0].apiVersion=v1",
        "extraObjects[0].kind=ConfigMap",
        "extraObjects[0].metadata.name=more",
    )
    counts = {"PodMonitor": 3, "PrometheusRule": 1, "HTTPRoute": 1, "Certificate": 1, "ConfigMap": 2}
    # That with the roots for routers is always there.
    kinds = [found["kind"] for found in chart.objects(*DECIDED, *arguments, "--skip-tests") if found["metadata"]["name"] != ROOTS]
    for kind, count in counts.items():
        assert kinds.count(kind) == count, (kind, kinds)
    plain = {found["kind"] for found in chart.objects(*DECIDED, "--skip-tests") if found["metadata"]["name"] != ROOTS}
    assert not plain & {*counts, "HorizontalPodAutoscaler"}, plain


def dashboards_and_alerts_ask_for_metrics_that_exist(chart):
    sources = "".join(path.read_text() for folder in ("router", "injector") for path in (REPOSITORY / folder).rglob("*.rs"))
    arguments = sets("monitoring.prometheusRule.enabled=true", "monitoring.dashboard.enabled=true")
    asked = set()
    for found in chart.objects(*DECIDED, *arguments, "--skip-tests"):
        if found["kind"] == "PrometheusRule":
            asked |= {word for group in found["spec"]["groups"] for rule in group["rules"] for word in metrics(rule["expr"])}
        if found["kind"] == "ConfigMap" and found["metadata"]["name"] != ROOTS:
            panels = json.loads(found["data"]["sandgate.json"])["panels"]
            asked |= {word for panel in panels for target in panel["targets"] for word in metrics(target["expr"])}
    assert len(asked) > 10, asked
    missing = [name for name in asked if f'"{name}"' not in sources]
    assert not missing, missing


def whoever_puts_a_gateway_in_front_is_told_of_its_addresses(chart):
    gateway = sets("router.httpRoute.enabled=true", "router.httpRoute.parentRefs[0].name=gateway")
    trusted = sets("router.trustedProxyCIDRs={10.0.8.14/32}")
    for arguments, told in (([], False), (gateway, True), ([*gateway, *trusted], False)):
        done = chart.run("install", "sandgate", CHART, "-n", NAMESPACE, "--dry-run=client", *DECIDED, *arguments)
        assert done.returncode == 0, done.stderr
        notes = done.stdout.split("NOTES:")[-1]
        assert ("Set router.trustedProxyCIDRs to the Gateway's own addresses" in notes) == told, (arguments, notes)


def metrics(expression):
    return (word.removesuffix("_bucket") for word in re.findall(r"\b(?:sandgate|sandbox_router)_\w+", expression))


def the_rights_of_each_program_are_those_that_the_documentation_gives_reasons_for(chart):
    for component, program in (("injector", "sandbox-injector"), ("router", "sandbox-router")):
        documented = set()
        for group, resources, names, verbs in documented_rights(program):
            documented |= {(group, resource, names, verb) for resource in resources for verb in verbs}
        rendered = set()
        everything = sets("injector.signPodCertificates=true", "router.auth.mode=tokenreview", "router.auth.accessReview=true")
        for found in chart.objects(*everything):
            is_of = found["metadata"]["labels"].get("app.kubernetes.io/component") == component
            for rule in found["rules"] if is_of and found["kind"] in ("ClusterRole", "Role") else []:
                names = bool(rule.get("resourceNames"))
                rendered |= {(rule["apiGroups"][0], resource, names, verb) for resource in rule["resources"] for verb in rule["verbs"]}
                assert len(rule["apiGroups"]) == 1 and "*" not in rule["resources"] + rule["verbs"], rule
        assert documented and documented == rendered, (program, documented ^ rendered)


def documented_rights(program):
    """(group, resources, whether they are named, verbs) of each row about a program."""
    text = RIGHTS.read_text().split(f"## {program}\n")[1].split("\n## ")[0]
    before = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or cells[0] in ("group", "---"):
            continue
        resources = before if cells[1] == "the same" else re.findall(r"`([\w/]+)`", cells[1])
        before = resources
        yield cells[0].strip("`"), resources, bool(cells[2]), re.findall(r"`(\w+)`", cells[3])


def our_own_pods_meet_the_restricted_level(chart):
    for found in chart.objects(*DECIDED):
        spec = found.get("spec", {})
        pod = spec if found["kind"] == "Pod" else spec.get("template", {}).get("spec")
        if not pod or "containers" not in pod:
            continue
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["seccompProfile"]["type"] == "RuntimeDefault", found["metadata"]
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["capabilities"]["drop"] == ["ALL"]
            assert context["readOnlyRootFilesystem"] is True and container["resources"]["limits"]["memory"]


def the_test_of_a_release_is_a_hook_and_is_checked_with_the_rest(chart):
    hooks = {o["kind"]: o for o in chart.objects(*DECIDED) if o["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"}
    assert hooks.keys() == {"ConfigMap", "Pod"}, hooks.keys()
    policies = {o["metadata"]["annotations"]["helm.sh/hook-delete-policy"] for o in hooks.values()}
    assert policies == {"before-hook-creation,hook-succeeded"}, policies
    assert not [o for o in chart.objects(*DECIDED, "--skip-tests") if "helm.sh/hook" in o["metadata"].get("annotations", {})]


def only_router_pods_have_upstreams_label_and_the_service_name_is_upstreams(chart):
    objects = chart.objects(*DECIDED)
    labelled = [o["metadata"]["name"] for o in objects if o["kind"] == "Deployment" and o["spec"]["template"]["metadata"]["labels"].get("app")]
    assert labelled == ["sandbox-router"], labelled
    services = {o["metadata"]["name"]: o for o in objects if o["kind"] == "Service"}
    port = services["sandbox-router-svc"]["spec"]["ports"][0]
    assert port["port"] == 8080 and port["targetPort"] == "http"
    for service in services.values():
        assert "app.kubernetes.io/component" in service["spec"]["selector"]


def no_image_is_pulled_from_elsewhere_when_a_registry_is_given(chart):
    text = chart.render(*DECIDED, "--set", "imageRegistry=mirror.example:5000/x")
    objects = [found for found in yaml.safe_load_all(text) if found]
    specs = [o["spec"] if o["kind"] == "Pod" else o["spec"].get("template", {}).get("spec", {}) for o in objects if "spec" in o]
    images = [container["image"] for spec in specs for container in spec.get("containers", [])]
    images += re.findall(r"--sidecar-image=(.*)", text)
    assert len(images) >= 5 and all(image.startswith("mirror.example:5000/x/sandgate/") for image in images), images


def every_value_has_a_description_and_a_place_in_the_schema(chart):
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    described = {path for path, _ in generate.described(text)}
    missing = [path for path in leaves(values) if path not in described]
    assert not missing, missing
    schema = generate.schema(values)
    jsonschema.Draft7Validator.check_schema(schema)
    # An empty choice is how the default says that none was made.
    jsonschema.Draft7Validator(schema).validate(values)


def every_value_changes_something(chart):
    """A value that no template reads is a promise that nobody keeps."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    unread = values_test.unread(chart, [(path, at(values, path)) for path in leaves(values)])
    assert not unread, unread


def at(values, path):
    for key in path.split("."):
        values = values[key]
    return values


def leaves(value, path=""):
    if isinstance(value, dict) and value and path not in generate.WHOLE:
        for key, entry in value.items():
            yield from leaves(entry, f"{path}.{key}".lstrip("."))
    else:
        yield path


def generated(chart):
    text = (CHART / "values.yaml").read_text()
    header = "# Made from the chart by `tests/chart/run --write`, for those who do without Helm. Callers need the Secret `sandbox-router-token`.\n"
    arguments = sets("router.auth.mode=token", "router.auth.existingSecret=sandbox-router-token")
    plain = chart.render(*arguments, "--skip-tests")
    plain = "\n".join(line for line in plain.splitlines() if not line.startswith("# Source:") and "managed-by" not in line and "helm.sh/" not in line)
    return {
        CHART / "values.schema.json": generate.schema_text(yaml.safe_load(text)),
        CHART / "README.md": generate.readme_text(yaml.safe_load((CHART / "Chart.yaml").read_text()), text),
        MANIFESTS: header + plain.lstrip("-\n") + "\n",
        **dashboards(chart),
    }


def dashboards(chart):
    """The dashboard and the alerts as Grafana and Prometheus take them, with the chart's defaults."""
    arguments = sets("monitoring.prometheusRule.enabled=true", "monitoring.dashboard.enabled=true")
    objects = chart.objects(*DECIDED, *arguments, "--skip-tests")
    rules = next(o["spec"] for o in objects if o["kind"] == "PrometheusRule")
    dashboard = next(o["data"]["sandgate.json"] for o in objects if o["metadata"]["name"].endswith("-dashboard"))
    header = "# A rule file of Prometheus, made from the chart by `tests/chart/run --write`. docs/metrics.md says what each alert means.\n"
    return {
        DASHBOARDS / "sandgate.json": dashboard.rstrip("\n") + "\n",
        DASHBOARDS / "alerts.yaml": header + yaml.safe_dump(rules, sort_keys=False, width=1000),
    }


def generated_files_are_current(chart):
    for path, text in generated(chart).items():
        current = path.exists() and path.read_text() == text
        assert current, f"{path.relative_to(REPOSITORY)} is not current: run tests/chart/run --write"


TESTS = [
    lint,
    every_value_has_a_description_and_a_place_in_the_schema,
    every_value_changes_something,
    nobody_loses_pods_by_the_documented_high_availability,
    what_is_rendered_as_documented_can_be_applied_twice,
    every_combination_fits_strict_schemas,
    on_1_29_there_is_no_admission_policy,
    optional_objects_are_there_when_asked_for,
    dashboards_and_alerts_ask_for_metrics_that_exist,
    whoever_puts_a_gateway_in_front_is_told_of_its_addresses,
    the_rights_of_each_program_are_those_that_the_documentation_gives_reasons_for,
    our_own_pods_meet_the_restricted_level,
    the_test_of_a_release_is_a_hook_and_is_checked_with_the_rest,
    only_router_pods_have_upstreams_label_and_the_service_name_is_upstreams,
    no_image_is_pulled_from_elsewhere_when_a_registry_is_given,
    generated_files_are_current,
    *refusals_test.TESTS,
    *tls_test.TESTS,
    *program_test.TESTS,
]


def main():
    parser = argparse.ArgumentParser(prog="tests/chart/run", description=__doc__)
    parser.add_argument("--helm", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="renew the generated files")
    parser.add_argument("tests", nargs="*", help="names of tests; all if none is given")
    options = parser.parse_args()
    chart = Chart(options.helm)
    if options.write:
        # The schema first: it is part of what renders the rest.
        (CHART / "values.schema.json").write_text(generate.schema_text(yaml.safe_load((CHART / "values.yaml").read_text())))
        for path, text in generated(chart).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"written: {path.relative_to(REPOSITORY)}")
    unknown = set(options.tests) - {test.__name__ for test in TESTS}
    if unknown:
        parser.error(f"no such test: {', '.join(sorted(unknown))}")
    chosen = [test for test in TESTS if not options.tests or test.__name__ in options.tests]
    failed = 0
    for test in chosen:
        try:
            test(chart)
            print(f"ok      {test.__name__}")
        except AssertionError as error:
            failed += 1
            print(f"FAILED  {test.__name__}: {error}")
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
