"""The browser: what is on its page, and what it sent and got."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.remote.webelement import WebElement

from world import PATIENCE, until

OPTIONS = [
    "--headless=new",
    # Root's browser has no sandbox of its own; it shows nothing but our own apps.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--window-size=1400,1000",
    # A proxy of the environment has no business with loopback.
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


class Page:
    """One browser, one tab."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads
        self._events: list[dict[str, Any]] = []
        driver.set_page_load_timeout(PATIENCE)
        driver.set_script_timeout(PATIENCE)
        allow = {"behavior": "allow", "downloadPath": str(downloads)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", allow)

    def open(self, url: str) -> None:
        """Opens a page; what was noted of earlier ones is forgotten."""
        self.driver.get("about:blank")
        self.events()
        self._events.clear()
        self.driver.get_log("browser")
        self.driver.get(url)

    def path(self) -> str:
        """The path of the page that is shown."""
        return urlsplit(self.driver.current_url).path

    def wait(self, what: str, look: Callable[[], Any], patience: float = PATIENCE) -> Any:
        """What `look` finds. A page that changes below it is looked at again."""

        def once() -> Any:
            try:
                return look()
            except StaleElementReferenceException:
                return None

        return until(what, once, patience)

    def find(self, selector: str, text: str = "") -> WebElement:
        """The first element that is shown and holds `text`."""

        def look() -> WebElement | None:
            found = self.driver.find_elements("css selector", selector)
            return next((element for element in found if element.is_displayed() and text in element.text), None)

        return self.wait(f"{selector} with {text!r}", look)

    def click(self, selector: str, text: str = "") -> None:
        """Clicks on it, once nothing lies over it."""

        def attempt() -> bool:
            element = self.find(selector, text)
            try:
                element.click()
            except WebDriverException:
                return False
            return True

        self.wait(f"a click on {selector} with {text!r}", attempt)

    def run(self, script: str, *arguments: Any) -> Any:
        """What an async function body returns, run as a script of the page's own."""
        done = "const done = arguments[arguments.length - 1], given = [...arguments].slice(0, -1);"
        body = f"(async (...given) => {{ {script} }})(...given).then(done, error => done({{error: String(error)}}));"
        return self.driver.execute_async_script(done + body, *arguments)

    def events(self, method: str = "") -> list[dict[str, Any]]:
        """What of this kind happened since the page was opened, in the words of the DevTools protocol."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"].startswith(("Network.", "Page.fileChooser")):
                self._events.append(message)
        return [event["params"] for event in self._events if event["method"] == method]

    def failures(self) -> list[str]:
        """Requests that failed since the page was opened, and errors on its console."""
        answers = [event["response"] for event in self.events("Network.responseReceived")]
        failed = [f"{answer['status']} {answer['url']}" for answer in answers if answer["status"] >= 400]
        lost = [event for event in self.events("Network.loadingFailed") if not event.get("canceled")]
        failed += [f"{event['errorText']} {event['requestId']}" for event in lost]
        failed += [f"WebSocket: {event['errorMessage']}" for event in self.events("Network.webSocketFrameError")]
        return failed + [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def sockets(self, part: str) -> list[str]:
        """The URLs with `part` in them to which WebSockets were opened."""
        return [event["url"] for event in self.events("Network.webSocketCreated") if part in event["url"]]

    def received(self, part: str) -> str:
        """What came over WebSockets with `part` in their URLs: text as it is, bytes in base64."""
        ids = {event["requestId"] for event in self.events("Network.webSocketCreated") if part in event["url"]}
        frames = [event for event in self.events("Network.webSocketFrameReceived") if event["requestId"] in ids]
        return "".join(frame["response"]["payloadData"] for frame in frames)

    def choose(self, selector: str, file: Path) -> None:
        """Clicks on what lets the user choose a file, and chooses this one."""
        self.driver.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": True})
        self.click(selector)
        opened = self.wait("a file chooser", lambda: self.events("Page.fileChooserOpened"))
        chosen = {"files": [str(file)], "backendNodeId": opened[-1]["backendNodeId"]}
        self.driver.execute_cdp_cmd("DOM.setFileInputFiles", chosen)

    def show(self, picture: Path) -> Iterator[str]:
        """What there is to say after a failure; what is on the screen goes to `picture`."""
        try:
            log = [f"{entry['level']} {entry['message']}" for entry in self.driver.get_log("browser")]
            self.driver.save_screenshot(str(picture))
            yield f"--- the browser shows {self.driver.current_url}, see {picture}:"
            yield self.driver.find_element("css selector", "body").text[:2000]
            yield from ["--- its log:", *log[-20:], *self.failures()[-20:]]
        except WebDriverException as error:
            yield f"--- the browser says nothing: {error.msg}"


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Headless Chromium with a profile of its own, ended whatever happens."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for option in [*OPTIONS, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    downloads = folder / "downloads"
    downloads.mkdir()
    home = folder / "browser"
    home.mkdir()
    service = webdriver.ChromeService(
        "/usr/bin/chromedriver", log_output=subprocess.DEVNULL, env=os.environ | {"HOME": str(home)}
    )
    driver = webdriver.Chrome(options, service)
    try:
        yield Page(driver, downloads)
    finally:
        driver.quit()
