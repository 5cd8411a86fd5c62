"""What stands around the router in the SDK's gateway mode: stand-ins for a cluster's API server and for a Gateway.

Neither is under test. The SDK asks the API server for the Gateway's address, and for the Sandbox before each call; then it
calls `http://ADDRESS/`, which is port 80 and no other, without a path of the Gateway's and without a credential.
"""

import asyncio
import json
import threading
from collections.abc import Coroutine
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
from aiohttp import web
from kubernetes import client
from yarl import URL

NAMESPACE = "gateways"
# Of a pod's network that isn't there: where a request goes that follows this, nobody answers.
POD_IP = "10.244.0.7"


class ApiServer:
    """Answers the two questions of the SDK as a kube-apiserver does: a watch of Gateways, and a Sandbox."""

    def __init__(self, addresses: dict[str, str]) -> None:
        self.asked: list[str] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                stand_in.asked.append(path)
                if path == f"/apis/gateway.networking.k8s.io/v1/namespaces/{NAMESPACE}/gateways":
                    (selector,) = parse_qs(urlsplit(self.path).query)["fieldSelector"]
                    name = selector.removeprefix("metadata.name=")
                    self.answer({"type": "ADDED", "object": gateway(name, addresses[name])})
                elif path.startswith("/apis/agents.x-k8s.io/v1beta1/namespaces/default/sandboxes/"):
                    self.answer({"status": {"podIPs": [{"ip": POD_IP}]}})
                else:
                    self.send_error(404)

            def answer(self, value: Any) -> None:
                body = json.dumps(value).encode() + b"\n"
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def client(self) -> client.ApiClient:
        """A client as `kubernetes.config` would make it of a kubeconfig for this server."""
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{self._server.server_address[1]}"
        return client.ApiClient(configuration)


def gateway(name: str, address: str) -> dict[str, Any]:
    """A Gateway that has its address."""
    about = {"name": name, "namespace": NAMESPACE}
    status = {"addresses": [{"type": "IPAddress", "value": address}]}
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": about, "status": status}


class Gateway:
    """Passes everything on to the router, as a Gateway does whose HTTPRoute has no matches and one filter: a
    RequestHeaderModifier that sets `Authorization`."""

    def __init__(self, address: str, router: str, authorization: str) -> None:
        self._router = router
        self._authorization = authorization
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._wait(self._start(address))

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self, address: str) -> None:
        self._upstream = aiohttp.ClientSession(auto_decompress=False)
        runner = web.ServerRunner(web.Server(self._pass_on))
        await runner.setup()
        await web.TCPSite(runner, address, 80).start()

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        # `Host` stays. The framing of both sides is each connection's own.
        headers = request.headers.copy()
        headers.pop("Transfer-Encoding", None)
        headers["Authorization"] = self._authorization
        headers.add("X-Forwarded-For", str(request.remote))
        url = URL(self._router + request.raw_path, encoded=True)
        body = request.content if request.can_read_body else None
        async with self._upstream.request(request.method, url, headers=headers, data=body, allow_redirects=False) as answer:
            passed = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in ("connection", "transfer-encoding"):
                    passed.headers.add(name, value)
            await passed.prepare(request)
            async for chunk in answer.content.iter_any():
                await passed.write(chunk)
            return passed
