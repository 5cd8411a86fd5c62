"""HTTPS at the chart's router: what is rendered for it, and what is refused."""

from rendered import CHART, DECIDED, NAMESPACE, sets

HTTPS = sets("router.tls.enabled=true")
ISSUED = [*HTTPS, *sets("router.tls.certificate.source=cert-manager", "router.tls.certificate.issuerRef.name=issuer")]
MUTUAL = [*HTTPS, *sets("router.tls.mtlsMode=required", "router.tls.clientCA.configMap=clients")]


def parts(chart, *arguments):
    """The router's pod, its container, and the ports of its Service and of its NetworkPolicy."""
    objects = {(o["kind"], o["metadata"]["name"]): o for o in chart.objects(*DECIDED, *arguments)}
    pod = objects["Deployment", "sandbox-router"]["spec"]["template"]["spec"]
    service = objects["Service", "sandbox-router-svc"]["spec"]["ports"]
    clients = objects["NetworkPolicy", "sandbox-router"]["spec"]["ingress"][0]["ports"]
    return pod, pod["containers"][0], service, [port["port"] for port in clients]


def https_takes_the_place_of_plain_http_unless_both_are_asked_for(chart):
    http = {"name": "http", "port": 8080, "targetPort": "http", "appProtocol": "http"}
    https = {"name": "https", "port": 443, "targetPort": "https", "appProtocol": "https"}
    both = [*HTTPS, "--set", "router.tls.plainHTTP=true"]
    for arguments, ports in (([], [http]), (HTTPS, [https]), (both, [http, https])):
        _, router, service, clients = parts(chart, *arguments)
        assert service == ports, service
        assert clients == [port["name"] for port in ports], clients
        numbers = {port["name"]: port["containerPort"] for port in router["ports"]}
        assert {name: numbers.get(name) for name in ("http", "https")} == {
            "http": 8080 if http in ports else None,
            "https": 8443 if https in ports else None,
        }, numbers
        assert ("--http-bind-address=" in router["args"]) == (http not in ports), router["args"]
        # The kubelet knows no certificate: it asks on the port of probes, which stays as it is.
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert router[probe]["httpGet"]["port"] == "probes" and "scheme" not in router[probe]["httpGet"], router[probe]
        assert numbers["probes"] == 8081, numbers


def certificates_and_roots_are_files_that_the_router_can_follow(chart):
    for arguments, roots in (
        (HTTPS, None),
        (MUTUAL, {"configMap": {"name": "clients", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}),
        (
            [*HTTPS, *sets("router.tls.mtlsMode=optional", "router.tls.clientCA.secretName=s", "router.tls.clientCA.key=roots.pem")],
            {"secret": {"secretName": "s", "items": [{"key": "roots.pem", "path": "ca.crt"}]}},
        ),
    ):
        for mesh in ("required", "off"):
            pod, router, _, _ = parts(chart, *arguments, "--set", f"router.mesh.mode={mesh}")
            volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
            items = [{"key": key, "path": key} for key in ("tls.crt", "tls.key")]
            assert volumes["tls"] == {"secret": {"secretName": "sandbox-router-tls", "items": items}}, volumes
            assert volumes.get("client-ca") == roots, volumes
            mounts = {mount["name"]: mount for mount in router["volumeMounts"]}
            # The kubelet never changes what is mounted by subPath.
            assert mounts["tls"] == {"name": "tls", "mountPath": "/etc/sandgate/tls", "readOnly": True}, mounts
            assert ("client-ca" in mounts) == (roots is not None) and all("subPath" not in mount for mount in mounts.values()), mounts


def cert_manager_is_asked_for_the_names_of_the_service(chart):
    names = "router.tls.certificate.dnsNames={sandboxes.example.com}"
    (certificate,) = (o for o in chart.objects(*DECIDED, *ISSUED, "--set", names) if o["kind"] == "Certificate")
    own = f"sandbox-router-svc.{NAMESPACE}.svc"
    spec = certificate["spec"]
    assert spec["dnsNames"] == [own, f"{own}.cluster.local", "sandboxes.example.com"], spec
    assert (spec["secretName"], spec["issuerRef"]) == ("sandbox-router-tls", {"name": "issuer"}), spec
    assert not [o for o in chart.objects(*DECIDED, *HTTPS) if o["kind"] == "Certificate"]


def half_of_https_is_refused(chart):
    off, key = "set router.tls.enabled", "router.tls"
    for value in ("plainHTTP=true", "mtlsMode=required", "clientCA.configMap=a", "clientCA.secretName=a", "certificate.issuerRef.name=a", "certificate.dnsNames={a}"):
        assert off in chart.refusal(*DECIDED, "--set", f"{key}.{value}"), value
    for arguments, told in (
        (sets(f"{key}.mtlsMode=required"), "router.tls.clientCA: with mtlsMode `required`"),
        (sets(f"{key}.mtlsMode=optional"), "router.tls.clientCA: with mtlsMode `optional`"),
        (sets(f"{key}.clientCA.configMap=a"), "router.tls.mtlsMode: `off`"),
        (sets(f"{key}.mtlsMode=required", f"{key}.clientCA.configMap=a", f"{key}.clientCA.secretName=b"), "leave out configMap or secretName"),
        # Whoever has no certificate would go there.
        (sets(f"{key}.mtlsMode=required", f"{key}.clientCA.configMap=a", f"{key}.plainHTTP=true"), "router.tls.plainHTTP"),
        (sets(f"{key}.certificate.secretName="), "router.tls.certificate.secretName"),
        (sets(f"{key}.certificate.source=cert-manager"), "router.tls.certificate.issuerRef"),
        (sets(f"{key}.certificate.issuerRef.name=a"), "router.tls.certificate.source"),
        (sets(f"{key}.certificate.dnsNames={{a}}"), "router.tls.certificate.source"),
        (sets(f"{key}.plainHTTP=true", "router.service.httpsPort=8080"), "router.service.httpsPort"),
        (sets(f"{key}.mtlsMode=on"), "schema"),
        (sets(f"{key}.clientCA.key=a/b"), "schema"),
    ):
        assert told in chart.refusal(*DECIDED, *HTTPS, *arguments), arguments


def whoever_installs_is_told_who_finds_no_plain_http(chart):
    route = sets("router.httpRoute.enabled=true", "router.httpRoute.parentRefs[0].name=gateway")
    plain = sets("router.tls.plainHTTP=true")
    for arguments, silent, policy in ((HTTPS, True, False), ([*HTTPS, *plain, *route], False, False), ([*HTTPS, *route], True, True), (route, False, False)):
        done = chart.run("install", "sandgate", CHART, "-n", NAMESPACE, "--dry-run=client", *DECIDED, *arguments)
        assert done.returncode == 0, done.stderr
        notes = done.stdout.split("NOTES:")[-1]
        assert ("Nothing answers in plain HTTP" in notes) == silent and ("BackendTLSPolicy" in notes) == policy, notes
        backends = [o["spec"]["rules"][0]["backendRefs"] for o in chart.objects(*DECIDED, *arguments) if o["kind"] == "HTTPRoute"]
        expected = [[{"name": "sandbox-router-svc", "port": 443 if policy else 8080}]] if route[1] in arguments else []
        assert backends == expected, backends


TESTS = [
    https_takes_the_place_of_plain_http_unless_both_are_asked_for,
    certificates_and_roots_are_files_that_the_router_can_follow,
    cert_manager_is_asked_for_the_names_of_the_service,
    half_of_https_is_refused,
    whoever_installs_is_told_who_finds_no_plain_http,
]
