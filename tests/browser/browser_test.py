"""Real web apps in headless Chromium, through sandgate-local. Started by `tests/browser/run`, which says how."""

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A proxy of the environment has no business with loopback.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from page import Page, browser
from world import DOMAIN, Server, Witness, World, started

KERNEL = """
    const [base, query] = given;
    const started = await fetch(`${base}/api/kernels${query}`, {method: "POST", body: "{}"});
    const kernel = await started.json();
    const socket = new WebSocket(`ws://${location.host}${base}/api/kernels/${kernel.id}/channels`);
    const text = await new Promise((resolve, reject) => {
        socket.onerror = () => reject("the WebSocket failed");
        socket.onclose = event => reject(`closed: ${event.code}`);
        socket.onopen = () => socket.send(JSON.stringify({
            channel: "shell", parent_header: {}, metadata: {}, buffers: [],
            header: {msg_id: "1", msg_type: "execute_request", session: "s", username: "", version: "5.3"},
            content: {code: "print('answer', 6 * 7)", silent: false, store_history: false, user_expressions: {},
                      allow_stdin: false, stop_on_error: true},
        }));
        socket.onmessage = event => {
            const message = JSON.parse(event.data);
            if (message.header.msg_type === "stream") resolve(message.content.text);
        };
    });
    socket.onclose = null;
    socket.close();
    return {status: started.status, text};
"""

OPEN_SOCKET = """
    const socket = new WebSocket(given[0]);
    return new Promise(resolve => {
        socket.onopen = () => resolve("open");
        socket.onerror = () => resolve("failed");
    });
"""

FETCH = """
    const answer = await fetch(given[0], {credentials: "include", ...given[1]});
    return {type: answer.type, status: answer.status, text: await answer.text()};
"""

def equal(found: Any, expected: Any) -> None:
    assert found == expected, f"expected {expected!r}, found {found!r}"


def open_lab(world: World, page: Page, path: str = "/lab?reset") -> None:
    """JupyterLab on a host of its own, without what was open before, with a login where it asks for one."""
    page.open(f"http://{world.host(world.jupyter)}{path}")
    page.wait("a page", lambda: page.path() in ("/login", "/lab"))
    if page.path() == "/login":
        page.find("#password_input").send_keys(world.token)
        page.click("#login_submit")
    page.find(".jp-Launcher")


def launch(page: Page, name: str) -> None:
    page.click(".jp-LauncherCard", name)


def cookies(page: Page, domain: str, path: str) -> dict[str, dict[str, Any]]:
    """What the browser keeps for exactly this domain and path, by name."""
    kept = page.driver.execute_cdp_cmd("Network.getAllCookies", {})["cookies"]
    return {cookie["name"]: cookie for cookie in kept if (cookie["domain"], cookie["path"]) == (domain, path)}


def check_by_host_jupyterlab_logs_in_and_loads_whole(world: World, page: Page) -> None:
    page.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    open_lab(world, page, "/")
    equal(page.path(), "/lab")
    redirects = [e["redirectResponse"] for e in page.events("Network.requestWillBeSent") if "redirectResponse" in e]
    assert any(redirect["url"].endswith("/") for redirect in redirects), "`/` was no redirect"
    equal(page.failures(), [])
    kept = cookies(page, world.host(world.jupyter).split(":")[0], "/")
    [session] = [cookie for name, cookie in kept.items() if name.startswith("username-")]
    assert session["httpOnly"], "scripts may read the session"
    assert "_xsrf" in kept, "no cookie against forged requests"


def check_by_host_a_terminal_runs_a_command(world: World, page: Page) -> None:
    open_lab(world, page)
    launch(page, "Terminal")
    page.find(".jp-Terminal .xterm-screen")
    page.wait("a prompt", lambda: "stdout" in page.received("/terminals/websocket/"))
    ActionChains(page.driver).send_keys("echo in the terminal: $((6 * 7))", Keys.ENTER).perform()
    page.wait("the command's output", lambda: "in the terminal: 42" in page.received("/terminals/websocket/"))
    equal(page.failures(), [])


def check_by_host_a_notebook_runs_code(world: World, page: Page) -> None:
    open_lab(world, page)
    launch(page, "Python 3")
    # It says idle before it has a kernel, and then runs nothing.
    page.wait("a word of the kernel", lambda: page.received("/channels"))
    page.find(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    page.click(".jp-Notebook .jp-Cell .cm-content")
    code = "import sys; print('in the notebook:', 6 * 7); print('and its errors', file=sys.stderr)"
    ActionChains(page.driver).send_keys(code).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
    page.find(".jp-OutputArea-output", "in the notebook: 42")
    page.find(".jp-OutputArea-output", "and its errors")
    equal(page.failures(), [])


def check_by_host_a_file_goes_up_and_down(world: World, page: Page) -> None:
    open_lab(world, page)
    content = random.Random(1).randbytes(3 << 20)
    name = "three MiB & more %41.bin"
    local = page.downloads.parent / name
    local.write_bytes(content)
    page.choose(".jp-FileBrowser [data-jp-item-name=uploader] jp-button", local)
    uploaded = world.files / name
    page.wait("the upload", lambda: uploaded.exists() and uploaded.stat().st_size == len(content))
    assert uploaded.read_bytes() == content, "the upload changed the bytes"
    ActionChains(page.driver).context_click(page.find(".jp-DirListing-item", name)).perform()
    page.click(".lm-Menu-item", "Download")
    downloaded = page.downloads / name
    page.wait("the download", downloaded.exists)
    assert downloaded.read_bytes() == content, "the download changed the bytes"
    equal(page.failures(), [])


def check_by_path_a_terminal_runs_a_command(world: World, page: Page) -> None:
    page.open(f"http://localhost:{world.router}{world.path(world.ttyd)}/")
    page.find(".xterm-rows", "$")
    ActionChains(page.driver).send_keys("echo in the terminal: $((6 * 7))", Keys.ENTER).perform()
    page.find(".xterm-rows", "in the terminal: 42")
    equal(page.sockets("/ws"), [f"ws://localhost:{world.router}{world.path(world.ttyd)}/ws"])
    equal(page.failures(), [])


def check_by_path_a_kernel_runs_code(world: World, page: Page) -> None:
    page.open(f"http://localhost:{world.router}{world.path(world.witness)}/")
    base = world.path(world.jupyter)
    equal(page.run(KERNEL, base, f"?token={world.token}"), {"status": 201, "text": "answer 42\n"})
    # The WebSocket had no token: the cookie that came with the first answer leads to this app only.
    names = [name for name in cookies(page, "localhost", f"{base}/") if name.startswith("username-")]
    equal(len(names), 1)
    world.witness.take()


def urls(world: World, app: Server | Witness, scheme: str) -> list[str]:
    """The app by host and by path."""
    return [f"{scheme}://{world.host(app)}", f"{scheme}://localhost:{world.router}{world.path(app)}"]


def check_a_neighbours_page_opens_no_websocket(world: World, page: Page) -> None:
    open_lab(world, page)
    for url in urls(world, world.witness, "ws"):
        page.open(url.replace("ws://", "http://") + "/")
        world.witness.take()
        # It knows no WebSockets; but its own page's request for one gets there.
        equal(page.run(OPEN_SOCKET, url + "/socket"), "failed")
        equal([(seen.path, seen.headers["upgrade"]) for seen in world.witness.take()], [("/socket", "websocket")])
    page.open(f"http://{world.host(world.evil, 'evil')}/")
    targets = [url + "/socket" for url in urls(world, world.witness, "ws")]
    targets += [url + "/ws" for url in urls(world, world.ttyd, "ws")]
    targets += [url + "/api/events/subscribe" for url in urls(world, world.jupyter, "ws")]
    for target in targets:
        equal(page.run(OPEN_SOCKET, target), "failed")
    refusals = [event["errorMessage"] for event in page.events("Network.webSocketFrameError")]
    equal(refusals, ["Error during WebSocket handshake: Unexpected response code: 403"] * len(targets))
    equal(world.witness.take(), [])


def check_a_neighbours_page_reads_nothing_and_changes_nothing(world: World, page: Page) -> None:
    open_lab(world, page)
    kernels = "return (await (await fetch('/api/kernels')).json()).map(kernel => kernel.id)"
    before = page.run(kernels)
    page.open(f"http://{world.host(world.evil, 'evil')}/")
    world.witness.take()
    equal(page.run("return document.cookie"), "")
    # It may set, for the domain above, the cookie with which Jupyter compares a token against forged requests.
    page.run(f"document.cookie = '_xsrf=known; path=/; domain={DOMAIN}'")
    equal(list(cookies(page, f".{DOMAIN}", "/")), ["_xsrf"])
    blocked = {"error": "TypeError: Failed to fetch"}
    for url in urls(world, world.jupyter, "http"):
        for target in ("/api/contents", "/api/kernels", "/lab"):
            equal(page.run(FETCH, url + target, {}), blocked)
        forged = {"method": "POST", "body": "{}", "mode": "no-cors"}
        page.run(FETCH, f"{url}/api/kernels?_xsrf=known", forged)
    for url in urls(world, world.witness, "http"):
        for header in ({"X-Sandbox-ID": "dev"}, {"Content-Type": "application/json"}):
            equal(page.run(FETCH, f"{url}/write", {"method": "POST", "headers": header}), blocked)
        for options in ({"method": "PUT"}, {"method": "DELETE"}):
            equal(page.run(FETCH, f"{url}/write", options), blocked)
    # The browser asked whether it may, and heard no yes.
    equal({seen.method for seen in world.witness.take()}, {"OPTIONS"})
    # What needs no leave arrives, as everywhere in the web, with the name of whose page it was: the app may judge.
    page.run(FETCH, f"http://{world.host(world.witness)}/simple", {"method": "POST", "mode": "no-cors"})
    [seen] = world.witness.take()
    equal(seen.headers["origin"], f"http://{world.host(world.evil, 'evil')}")
    page.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    open_lab(world, page)
    equal(page.run(kernels), before)
    # It got there, and was Jupyter's to refuse: that it can, takes the neighbour's name.
    refused = "Blocking Cross Origin API request for /api/kernels" in world.jupyter.log.read_text()
    assert refused, "no forged request reached Jupyter"


def pictures() -> Path:
    """Where what the browser showed is kept, for whoever looks for the reason."""
    folder = Path(os.environ["SANDGATE_PICTURES"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def judge(world: World, page: Page, check: Callable[[World, Page], None]) -> bool:
    """Runs one check and prints its line."""
    name = check.__name__.removeprefix("check_").replace("_", " ")
    began = time.monotonic()
    try:
        check(world, page)
    except Exception as error:
        print(f"FAIL  {name}: {error}", flush=True)
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        print("\n".join([*page.show(pictures() / f"{name}.png"), *world.tails()]), file=sys.stderr, flush=True)
        return False
    print(f"PASS  {name} ({time.monotonic() - began:.1f} s)", flush=True)
    return True


def judge_all(binary: str, checks: list[Callable[[World, Page], None]]) -> list[bool]:
    with tempfile.TemporaryDirectory(prefix="sandgate-browser-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            with started(folder, binary) as world, browser(folder) as page:
                return [judge(world, page, check) for check in checks]
        except Exception as error:
            traceback.print_exc()
            print(f"FAIL  the apps, the gate and the browser start: {error}", flush=True)
            return [False]


def main() -> int:
    binary = os.environ.get("SANDGATE_LOCAL")
    if not binary:
        print("SANDGATE_LOCAL names no sandgate-local; start this through tests/browser/run", file=sys.stderr)
        return 2
    # When the time is up `run` sends SIGTERM: leave through every `finally`, so that nothing is left running.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    checks = [check for name, check in globals().items() if name.startswith("check_") and wanted in name]
    verdicts = judge_all(binary, checks)
    passed = sum(verdicts)
    print(f"{passed} passed, {len(verdicts) - passed} failed")
    return 0 if verdicts and all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
