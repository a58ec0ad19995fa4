"""Debian's chromium without a display, for tests of the pages.

::

    with browser(tmp_path) as page:
        page.open(site.cartd.url)
        page.wait_for("the button", lambda: page.one("a.download"))
        page.check_accessibility()

Every request that a page has sent is recorded: :meth:`Browser.origins`.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.running_cartd import DEADLINE

SCREENSHOTS = Path(__file__).parents[2] / ".screenshots"
AXE = Path(__file__).with_name("axe") / "axe.min.js"
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE, NARROW = 1280, 360
LIGHT, DARK = "light", "dark"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Browser:
    """One window."""

    driver: Chrome
    downloads: Path

    def open(self, url: str) -> None:
        self.driver.get(url)

    def emulate(self, width: int = WIDE, scheme: str = LIGHT, *, script: bool = True) -> None:
        """Set the width of the window, and what the user prefers."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},  # colours change at once
        ]
        self._send("Emulation.setDeviceMetricsOverride", **size)
        self._send("Emulation.setEmulatedMedia", features=features)
        self._send("Emulation.setScriptExecutionDisabled", value=not script)

    def all(self, selector: str) -> Sequence[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """Return the only element; fail if there is none, or more than one."""
        found = self.all(selector)
        assert len(found) == 1, (selector, len(found), self.text())
        return found[0]

    def text(self, selector: str = "main") -> str:
        """Return the visible text of the first element; empty if there is none."""
        found = "document.querySelector(arguments[0])"
        return str(self.driver.execute_script(f"return {found}?.innerText ?? ''", selector))

    def attribute(self, selector: str, name: str) -> str | None:
        """Return an attribute of the first element; None if there is none of them."""
        found = "document.querySelector(arguments[0])"
        script = f"return {found}?.getAttribute(arguments[1]) ?? null"
        value: str | None = self.driver.execute_script(script, selector, name)
        return value

    def wait_for(self, what: str, there: Callable[[], T]) -> T:
        """Wait until ``there()`` is true; return its value.

        It is called again if the page has replaced an element meanwhile.
        """
        waiting = WebDriverWait(
            self.driver, DEADLINE, 0.05, ignored_exceptions=[StaleElementReferenceException]
        )
        return waiting.until(lambda _: there(), f"{what}: {self.driver.current_url}")

    def wait_for_text(self, text: str, selector: str = "main") -> None:
        self.wait_for(text, lambda: text in self.text(selector))

    def press(self, *keys: str) -> None:
        """Press keys in the element that has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def tab_to(self, text: str) -> None:
        """Press the tabulator until the element with this text has the focus."""
        for _ in range(30):
            self.press(Keys.TAB)
            if self.driver.switch_to.active_element.text == text:
                return
        raise AssertionError(f"the tabulator does not lead to {text}")

    def fits(self) -> bool:
        """Return whether nothing must be scrolled sideways."""
        width = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        return bool(self.driver.execute_script(f"return {width}"))

    def violations(self) -> list[str]:
        """Return what axe-core finds."""
        self.driver.execute_script(AXE.read_text("utf-8"))
        found = self.driver.execute_async_script(
            "const done = arguments[0];"
            "axe.run(document, {resultTypes: ['violations']}).then((all) => done(all.violations))"
        )
        return [
            f"{one['id']}: {node['html']}: {node['failureSummary']}"
            for one in found
            for node in one["nodes"]
        ]

    def screenshot(self, name: str) -> None:
        """Write the whole page to ``.screenshots/NAME.png``."""
        SCREENSHOTS.mkdir(exist_ok=True)
        (SCREENSHOTS / f"{name}.png").write_bytes(self.picture())

    def picture(self, height: int | None = None) -> bytes:
        """Return the page as PNG; if ``height`` is given, only so much from its top."""
        size = self._send("Page.getLayoutMetrics")["cssContentSize"]
        shown = {"width": size["width"], "height": height or size["height"]}
        clip = {"x": 0, "y": 0, "scale": 1, **shown}
        taken = self._send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(taken["data"])

    def review(self, name: str, *, script: bool = True) -> None:
        """Check the page as it is in two widths and two schemes, and take its pictures."""
        for width, scheme in ((WIDE, LIGHT), (NARROW, DARK)):
            self.emulate(width, scheme, script=script)
            assert self.fits(), (name, width)
            violations = self.violations()
            assert not violations, (name, width, scheme, violations)
            self.screenshot(f"{name}-{width}-{scheme}")
        self.emulate(script=script)

    def origins(self) -> set[str]:
        """Return the origins of all requests since the last call."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = urlsplit(message["params"]["request"]["url"])
                found.add(f"{url.scheme}://{re.sub('^.*@', '', url.netloc)}")
        return found

    def errors(self) -> list[str]:
        """Return errors of scripts and violations of the policy since the last call."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if "Failed to load resource" not in entry["message"]
        ]

    def _send(self, command: str, **arguments: object) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)


@contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """Start chromium; files are downloaded to ``directory``."""
    options = ChromeOptions()
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.binary_location = _path("chromium")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(directory)})
    # With the path of the driver, selenium looks for none on the internet.
    driver = Chrome(options, Service(_path("chromedriver")))
    try:
        driver.set_page_load_timeout(DEADLINE)
        driver.set_script_timeout(DEADLINE)
        yield Browser(driver, directory)
    finally:
        driver.quit()


def _path(program: str) -> str:
    found = shutil.which(program)
    assert found, f"{program} is not installed: make test installs it, or says how"
    return found
