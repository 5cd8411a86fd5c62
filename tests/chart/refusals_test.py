"""What the chart refuses to render, and what it lets in."""

from rendered import DECIDED, KINDS, sets


def a_misspelt_key_and_a_bad_value_are_refused(chart):
    for bad in ("router.replica=3", "injection.lockdwon=enabled", "nosuch=1", "injection.lockdown=on", "router.replicas=-1"):
        text = chart.refusal(*DECIDED, "--set", bad)
        assert "values don't meet the specifications of the schema" in text or "schema" in text, text


def nothing_is_rendered_without_a_decision_about_callers(chart):
    assert "decide who may call" in chart.refusal()
    assert "existingSecret" in chart.refusal("--set", "router.auth.mode=token")


def keys_of_scoped_tokens_are_refused_by_halves(chart):
    mode, secret = "router.auth.mode=scoped-token", "router.auth.existingSecret=keys"
    v1, v2 = "router.auth.scopedToken.secretKey=a", "router.auth.scopedToken.publicKeysKey=b"
    text = chart.refusal("--set", mode)
    assert "name the Secret with the keys of scoped tokens" in text and "secretKey" in text and "publicKeysKey" in text, text
    assert "existingSecret" in chart.refusal(*sets(mode, v1))
    assert "secretKey" in chart.refusal(*sets(mode, secret))
    assert "are the same" in chart.refusal(*sets(mode, secret, v1, "router.auth.scopedToken.publicKeysKey=a"))
    assert "for the mode `scoped-token` only" in chart.refusal(*DECIDED, *sets(v2))
    assert "schema" in chart.refusal(*sets(mode, secret, "router.auth.scopedToken.secretKey=a/b"))


def keys_of_scoped_tokens_are_files_of_the_router_and_in_no_environment(chart):
    place = "/etc/sandgate/scoped-tokens"
    v1, v2 = "--authz-scoped-token-secret-file", "--authz-scoped-token-public-keys-file"
    keys = {"router.auth.scopedToken.secretKey": (v1, "secret"), "router.auth.scopedToken.publicKeysKey": (v2, "public-keys")}
    for chosen in ([*keys][:1], [*keys][1:], [*keys]):
        for mesh in ("required", "off"):
            values = [f"{key}={number}.k" for number, key in enumerate(chosen)]
            rendered = chart.objects(*sets("router.auth.mode=scoped-token", "router.auth.existingSecret=keys", f"router.mesh.mode={mesh}", *values))
            pod = next(o for o in rendered if o["kind"] == "Deployment" and o["metadata"]["name"] == "sandbox-router")["spec"]["template"]["spec"]
            router = pod["containers"][0]
            flags = [flag for flag in router["args"] if flag.startswith("--authz")]
            assert flags == ["--authz-mode=scoped-token", *(f"{keys[key][0]}={place}/{keys[key][1]}" for key in chosen)], flags
            volume = next(volume for volume in pod["volumes"] if volume["name"] == "scoped-tokens")["secret"]
            items = [{"key": f"{number}.k", "path": keys[key][1]} for number, key in enumerate(chosen)]
            assert volume == {"secretName": "keys", "items": items}, volume
            mounts = {mount["mountPath"]: mount for mount in router["volumeMounts"]}
            assert mounts[place] == {"name": "scoped-tokens", "mountPath": place, "readOnly": True}, mounts
            assert all("secretKeyRef" not in variable.get("valueFrom", {}) for variable in router.get("env", [])), router["env"]


def an_oidc_issuer_is_refused_by_halves(chart):
    mode, url = "router.auth.mode=oidc", "router.auth.oidc.issuerURL=https://issuer.example"
    audience, roots = "router.auth.oidc.audiences={a}", "router.auth.oidc.caConfigMap=issuer"
    whole = (mode, url, audience, roots)
    for missing in (url, audience, roots):
        assert "say whose tokens are taken" in chart.refusal(*sets(*(value for value in whole if value != missing))), missing
    for bad, told in (
        ("router.auth.oidc.usernamePrefix=", "usernamePrefix are needed"),
        ("router.auth.oidc.signingAlgs=null", "signingAlgs"),
        ("router.auth.oidc.signingAlgs={HS256}", "schema"),
        ("router.auth.oidc.issuerURL=http://issuer.example", "schema"),
        ("router.auth.oidc.requiredClaims={hd}", "schema"),
    ):
        assert told in chart.refusal(*sets(*whole, bad)), bad
    assert "groupsPrefix" in chart.refusal(*sets(*whole, "router.auth.oidc.groupsClaim=groups", "router.auth.oidc.groupsPrefix="))
    for value in (url, audience, roots):
        assert "for the mode `oidc` only" in chart.refusal(*DECIDED, *sets(value)), value


def what_an_oidc_issuers_tokens_mean_reaches_the_router_as_it_is_written(chart):
    values = ["router.auth.mode=oidc", "router.auth.oidc.issuerURL=https://issuer.example/a", "router.auth.oidc.audiences={a,b}", "router.auth.oidc.caConfigMap=issuer"]
    values += ["router.auth.oidc.groupsClaim=groups", "router.auth.oidc.requiredClaims={hd=x: y}", "router.auth.oidc.signingAlgs={ES256,EdDSA}"]
    for mesh in ("required", "off"):
        rendered = chart.objects(*sets(*values, f"router.mesh.mode={mesh}"))
        pod = next(o for o in rendered if o["kind"] == "Deployment" and o["metadata"]["name"] == "sandbox-router")["spec"]["template"]["spec"]
        router = pod["containers"][0]
        flags = [flag for flag in router["args"] if flag.startswith("--authz")]
        expected = ["mode=oidc", "oidc-issuer-url=https://issuer.example/a", "oidc-audiences=a,b", "oidc-ca-file=/etc/sandgate/oidc/ca.crt"]
        expected += ["oidc-username-claim=sub", "oidc-username-prefix=oidc:", "oidc-groups-claim=groups", "oidc-groups-prefix=oidc:"]
        expected += ["oidc-required-claim=hd=x: y", "oidc-signing-algs=ES256,EdDSA"]
        assert flags == [f"--authz-{flag}" for flag in expected], flags
        volume = next(volume for volume in pod["volumes"] if volume["name"] == "oidc")
        assert volume["configMap"] == {"name": "issuer", "items": [{"key": "ca.crt", "path": "ca.crt"}]}, volume
        mounts = {mount["name"]: mount for mount in router["volumeMounts"]}
        assert mounts["oidc"] == {"name": "oidc", "mountPath": "/etc/sandgate/oidc", "readOnly": True}, mounts


def half_a_choice_is_refused_and_everything_that_is_missing_is_named(chart):
    certificate = "injector.webhook.certificate"
    for values, told in (
        ("router.enabled=false", "injection.routerIdentities"),
        ("router.httpRoute.enabled=true", "router.httpRoute.parentRefs"),
        ("router.mesh.mode=auto,router.cache.enabled=false", "router.mesh.mode"),
        # X-Sandbox-Pod-IP would lead to other sandboxes.
        ("router.auth.accessReview=true,router.mesh.mode=off,router.cache.enabled=false", "router.auth.accessReview"),
        ("router.cache.namespace=a,router.cache.enabled=false", "router.cache.namespace"),
        # The injector would sign for nobody that gates don't know.
        ("injection.routerIdentities={spiffe://cluster.local/ns/a/sa/b}", "router.mesh.certificate.source"),
        (f"{certificate}.source=secret", f"{certificate}.caBundle"),
        (f"{certificate}.source=cert-manager", f"{certificate}.issuerRef"),
        (f"{certificate}.source=cert-manager,{certificate}.issuerRef.kind=Issuer", f"{certificate}.issuerRef"),
        ("injector.authority.source=secret,injector.authority.secretName=", "injector.authority.secretName"),
        # The injector would read what it has written.
        ("injector.authority.source=secret,injector.authority.secretName=sandgate-authority", "injector.authority.secretName"),
        # Two would write the same field.
        (f"{certificate}.caBundle=Zm9v", f"{certificate}.caBundle"),
        (f"{certificate}.source=cert-manager,{certificate}.issuerRef.name=a,{certificate}.caBundle=Zm9v", f"{certificate}.caBundle"),
    ):
        assert told in chart.refusal(*DECIDED, "--set", values), values
    text = chart.refusal("--set", f"router.httpRoute.enabled=true,{certificate}.source=secret")
    assert all(told in text for told in ("router.auth.mode", "parentRefs", "caBundle")), text


def pod_certificates_are_refused_where_the_cluster_has_none(chart):
    for value in ("injection.identitySource=pod-certificates", "injector.signPodCertificates=true"):
        text = chart.refusal(*DECIDED, "--set", value)
        assert "this cluster has no Pod Certificates and Cluster Trust Bundles" in text, text
        for kind in KINDS:
            assert "this cluster has no" in chart.refusal(*DECIDED, "--set", value, "--api-versions", kind), kind
        short = ("--api-versions", ",".join(KINDS), "--set", "injector.gateCertificateLifetime=59m")
        assert "at least 1h with Pod Certificates" in chart.refusal(*DECIDED, "--set", value, *short)


def who_signs_pod_certificates_may_and_nobody_else(chart):
    def rights(*arguments):
        roles = [o for o in chart.objects(*DECIDED, *arguments) if o["kind"] == "ClusterRole"]
        rules = [rule for o in roles for rule in o["rules"] if rule["apiGroups"] == ["certificates.k8s.io"]]
        return {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}

    assert rights() == set(), rights()
    chosen = rights("--set", "injection.identitySource=pod-certificates")
    assert ("signers", "sign") in chosen and ("podcertificaterequests/status", "patch") in chosen, chosen
    assert chosen == rights("--set", "injector.signPodCertificates=true")
    assert not any(verb in ("delete", "update", "*") for _, verb in chosen), chosen


def a_router_may_review_callers_where_it_is_to_and_nowhere_else(chart):
    def router(*values):
        objects = chart.objects(*DECIDED, *sets(*values))
        roles = [o for o in objects if o["kind"] == "ClusterRole" and o["metadata"]["name"].startswith("sandgate-router")]
        rights = {(resource, *rule["verbs"]) for o in roles for rule in o["rules"] for resource in rule["resources"] if "review" in resource}
        bound = {o["roleRef"]["name"] for o in objects if o["kind"] == "ClusterRoleBinding"}
        assert {o["metadata"]["name"] for o in roles} <= bound, bound
        (deployment,) = (o for o in objects if o["kind"] == "Deployment" and o["metadata"]["name"] == "sandbox-router")
        pod = deployment["spec"]["template"]["spec"]
        flags = {flag.split("=")[0] for flag in pod["containers"][0]["args"] if flag.startswith("--authz")}
        return rights, flags - {"--authz-mode"}, pod["automountServiceAccountToken"]

    tokens, access = ("tokenreviews", "create"), ("subjectaccessreviews", "create")
    flags = {"--authz-tokenreview-ttl", "--authz-tokenreview-require-token"}
    mode, off = "router.auth.mode=tokenreview", "router.cache.enabled=false"
    assert router() == (set(), set(), True), router()
    assert router(off) == (set(), set(), False), router(off)
    assert router(mode) == ({tokens}, flags, True), router(mode)
    assert router(mode, off) == ({tokens}, flags, True), router(mode, off)
    assert router("router.auth.accessReview=true", off) == ({access}, {"--authz-subject-access-review"}, True)
    everything = router(mode, "router.auth.accessReview=true", "router.auth.tokenReview.audiences={a,b}")
    assert everything == ({tokens, access}, flags | {"--authz-tokenreview-audiences", "--authz-subject-access-review"}, True), everything


def labels_that_selectors_need_are_the_charts_own(chart):
    for place in ("commonLabels", "router.podLabels", "injector.podLabels"):
        for label in ("app", r"app\.kubernetes\.io/name", r"app\.kubernetes\.io/component", r"helm\.sh/chart"):
            text = chart.refusal(*DECIDED, "--set", f"{place}.{label}=other")
            assert f"{place}: {label.replace(chr(92), '')} is" in text, text
        text = chart.render(*DECIDED, "--set", rf"{place}.app\.kubernetes\.io/part-of=ours")
        assert "app.kubernetes.io/part-of: ours" in text, place


def only_a_given_certificate_comes_with_its_root(chart):
    """The other sources have somebody who writes the field; an API server refuses one that two own."""
    certificate = "injector.webhook.certificate"
    given = sets(f"{certificate}.source=secret", f"{certificate}.caBundle=Zm9v")
    issued = sets(f"{certificate}.source=cert-manager", f"{certificate}.issuerRef.name=issuer")
    for arguments, bundles in ((given, {"Zm9v"}), (issued, {None}), ([], {None})):
        configurations = [o for o in chart.objects(*DECIDED, *arguments) if o["kind"].endswith("WebhookConfiguration")]
        found = {webhook["clientConfig"].get("caBundle") for o in configurations for webhook in o["webhooks"]}
        assert len(configurations) == 2 and found == bundles, found


def nobody_but_an_injector_that_issues_its_certificate_may_write_ca_bundles(chart):
    """Old replicas would put their own root back into the bundles of a release that has another source. The root of gates is
    the injector's own in any case."""
    certificate = "injector.webhook.certificate"
    given = sets(f"{certificate}.source=secret", f"{certificate}.caBundle=Zm9v")
    issued = sets(f"{certificate}.source=cert-manager", f"{certificate}.issuerRef.name=issuer")

    def written(*arguments):
        roles = [o for o in chart.objects(*DECIDED, *arguments) if o["kind"] in ("Role", "ClusterRole")]
        rights = [(resource, verb) for o in roles for rule in o["rules"] for resource in rule["resources"] for verb in rule["verbs"]]
        bundles = {verb for resource, verb in rights if resource.endswith("webhookconfigurations")} - {"get", "list", "watch"}
        return bundles, {verb for resource, verb in rights if resource == "secrets"}

    assert written() == ({"patch"}, {"get", "update"}), written()
    for arguments in (given, issued):
        assert written(*arguments) == (set(), {"get", "update"}), written(*arguments)
        secrets = [o["metadata"]["name"] for o in chart.objects(*DECIDED, *arguments) if o["kind"] == "Secret"]
        assert secrets == ["sandgate-authority"], secrets


def routers_and_the_control_plane_have_identities_of_their_own(chart):
    told = "is a router's identity, too"
    assert told in chart.refusal(*DECIDED, "--set", "injector.serviceAccount.name=sandbox-router")
    own = "spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-injector"
    assert told in chart.refusal(*DECIDED, "--set", f"injection.routerIdentities={{{own}}}")


def the_webhook_can_be_kept_for_the_networks_of_the_api_servers(chart):
    key = "injector.networkPolicy.apiServerCIDRs"

    def peers(*arguments):
        policies = [o for o in chart.objects(*DECIDED, *arguments) if o["kind"] == "NetworkPolicy"]
        (policy,) = (o for o in policies if o["metadata"]["name"] == "sandgate-injector")
        return {rule["ports"][0]["port"]: rule.get("from") for rule in policy["spec"]["ingress"]}

    assert peers() == {"webhook": None, "metrics": None}, peers()
    given = [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"ipBlock": {"cidr": "fd00::/64"}}]
    found = peers("--set", key + "={10.0.0.0/8,fd00::/64}")
    assert found == {"webhook": given, "metrics": None}, found
    assert "apiServerCIDRs" in chart.refusal(*DECIDED, "--set", key + "={10.0.0.1}")


def only_the_injector_reaches_the_mesh_port_of_routers_that_it_enrols(chart):
    source = "router.mesh.certificate.source"
    for arguments, enrolled in (([], True), (sets(f"{source}=secret"), False), (sets("router.mesh.mode=off"), False)):
        objects = {(o["kind"], o["metadata"]["name"]): o for o in chart.objects(*DECIDED, *arguments)}
        template = objects["Deployment", "sandbox-router"]["spec"]["template"]
        rules = objects["NetworkPolicy", "sandbox-router"]["spec"]["ingress"]
        opened = [rule.get("from") for rule in rules for port in rule["ports"] if port["port"] == "mesh"]
        (container,) = template["spec"]["containers"]
        assert ("mesh" in {port["name"] for port in container["ports"]}) == enrolled, arguments
        assert (template["metadata"]["labels"].get("sandgate.dev/enrol") == "enabled") == enrolled, arguments
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        assert volumes == {True: {"roots", "token", "state"}, False: {"identity"} if "secret" in str(arguments) else set()}[enrolled], volumes
        labels = objects["Deployment", "sandgate-injector"]["spec"]["selector"]["matchLabels"]
        assert opened == ([[{"podSelector": {"matchLabels": labels}}]] if enrolled else []), opened
        # Clients of the router have no way there.
        ports = [port["port"] for (kind, _), o in objects.items() if kind == "Service" for port in o["spec"]["ports"]]
        assert ports == [8080, 443] or ports == [443, 8080], ports


def the_roots_replacement_waits_for_a_word_where_routers_are_not_all_enrolled(chart):
    def within(*values):
        (injector,) = (o for o in chart.objects(*DECIDED, *sets(*values)) if o["kind"] == "Deployment" and o["metadata"]["name"] == "sandgate-injector")
        flags = injector["spec"]["template"]["spec"]["containers"][0]["args"]
        return [flag.split("=")[1] for flag in flags if flag.startswith("--routers-follow-within=")]

    given = "injector.authority.routersFollowWithin=1h"
    files, others = "router.mesh.certificate.source=secret", "injection.routerIdentities={spiffe://cluster.local/ns/agent-sandbox-system/sa/sandbox-router,spiffe://cluster.local/ns/a/sa/b}"
    assert within() == ["0s"], within()
    assert within(given) == ["1h"], within(given)
    # Gates still take these for routers, and may be served by them: with files.
    accepted = "injection.acceptedRouterIdentities={spiffe://cluster.local/ns/a/sa/b}"
    for values in ([files], [others], [accepted], ["router.mesh.mode=off"]):
        assert within(*values) == [], (values, within(*values))
        assert within(*values, given) == ["1h"], values


def an_authority_of_ones_own_is_mounted_and_known_no_age(chart):
    def injector(*values):
        (found,) = (o for o in chart.objects(*DECIDED, *sets(*values)) if o["kind"] == "Deployment" and o["metadata"]["name"] == "sandgate-injector")
        pod = found["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume["secret"]["secretName"] for volume in pod.get("volumes", [])}
        mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
        assert volumes.keys() == mounts.keys(), (volumes, mounts)
        flags = {flag.split("=")[0] for flag in container["args"]}
        return volumes, mounts, flags & {"--root-max-age", "--authority-certificate-file", "--authority-key-file"}

    given, webhook = "injector.authority.source=secret", ("injector.webhook.certificate.source=secret", "injector.webhook.certificate.caBundle=Zm9v")
    files = {"--authority-certificate-file", "--authority-key-file"}
    assert injector() == ({}, {}, {"--root-max-age"}), injector()
    assert injector(given) == ({"authority": "sandgate-ca"}, {"authority": "/etc/sandgate/authority"}, files), injector(given)
    volumes, _, flags = injector(given, "injector.authority.secretName=mine", *webhook)
    assert volumes == {"authority": "mine", "certificate": "sandgate-injector-tls"} and flags == files, (volumes, flags)


TESTS = [
    a_router_may_review_callers_where_it_is_to_and_nowhere_else,
    an_authority_of_ones_own_is_mounted_and_known_no_age,
    the_roots_replacement_waits_for_a_word_where_routers_are_not_all_enrolled,
    only_the_injector_reaches_the_mesh_port_of_routers_that_it_enrols,
    a_misspelt_key_and_a_bad_value_are_refused,
    nothing_is_rendered_without_a_decision_about_callers,
    keys_of_scoped_tokens_are_refused_by_halves,
    keys_of_scoped_tokens_are_files_of_the_router_and_in_no_environment,
    an_oidc_issuer_is_refused_by_halves,
    what_an_oidc_issuers_tokens_mean_reaches_the_router_as_it_is_written,
    half_a_choice_is_refused_and_everything_that_is_missing_is_named,
    pod_certificates_are_refused_where_the_cluster_has_none,
    who_signs_pod_certificates_may_and_nobody_else,
    labels_that_selectors_need_are_the_charts_own,
    only_a_given_certificate_comes_with_its_root,
    nobody_but_an_injector_that_issues_its_certificate_may_write_ca_bundles,
    routers_and_the_control_plane_have_identities_of_their_own,
    the_webhook_can_be_kept_for_the_networks_of_the_api_servers,
]
