"""Envoy configurations: one worker, HTTP/1.1 on both sides, keep-alive pool, access log off."""

from certificates import ROUTER_IDENTITY, SIDECAR_IDENTITY

EXTENSIONS = "type.googleapis.com/envoy.extensions"
TLS = f"{EXTENSIONS}.transport_sockets.tls.v3"


def plain_hop(port, app_port):
    return bootstrap(listener(port), cluster(app_port))


def mesh_client(port, mesh_port, certificates):
    """The first of two hops: plain in, mutual TLS out, only to the sidecar's identity."""
    context = {
        "@type": f"{TLS}.UpstreamTlsContext",
        "common_tls_context": tls_context(certificates.router, certificates.trust_bundle, SIDECAR_IDENTITY),
    }
    return bootstrap(listener(port), cluster(mesh_port, context))


def mesh_server(port, app_port, certificates):
    """The second of two hops: mutual TLS in, only from the router's identity, plain out to the app."""
    context = {
        "@type": f"{TLS}.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": tls_context(certificates.sidecar, certificates.trust_bundle, ROUTER_IDENTITY),
    }
    return bootstrap(listener(port, context), cluster(app_port))


def bootstrap(listener_, cluster_):
    return {"static_resources": {"listeners": [listener_], "clusters": [cluster_]}}


def listener(port, tls=None):
    chain = {"filters": [{"name": "http", "typed_config": connection_manager()}]}
    if tls:
        chain["transport_socket"] = {"name": "tls", "typed_config": tls}
    return {"name": "front", "address": address(port), "filter_chains": [chain]}


def connection_manager():
    everything = {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}
    return {
        "@type": f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "codec_type": "HTTP1",
        # Appends X-Forwarded-For, as every other candidate does.
        "use_remote_address": True,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [everything]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{EXTENSIONS}.filters.http.router.v3.Router"}}],
    }


def cluster(port, tls=None):
    endpoint = {"endpoint": {"address": address(port)}}
    options = f"{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"
    made = {
        "name": "app",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options,
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }
    if tls:
        made["transport_socket"] = {"name": "tls", "typed_config": tls}
    return made


def tls_context(leaf, trust_bundle, peer_identity):
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {"certificate_chain": {"filename": str(leaf.certificate)}, "private_key": {"filename": str(leaf.key)}}
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(trust_bundle)},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer_identity}}],
        },
    }


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
