"""A real TensorBoard in a real headless browser, for screenshots and for the tests of what a person sees.

Needs Chromium with its driver (`apt-get install chromium chromium-driver`) and selenium (requirements-dev.txt).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

WIDTH, HEIGHT = 1400, 900  # pixels

CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the sandbox does not start in most containers; only our own local page is opened
    "--enable-unsafe-swiftshader",  # WebGL by software, without which Chromium 144 and later draw nothing
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--window-size={WIDTH},{HEIGHT}",
)

# The projector is a Polymer element two shadow roots deep. Its elements' properties are the page's own state:
# setting one does what a click on its control does, and survives a change of the styling around it.
_ELEMENTS = """
    const dashboard = document.querySelector('vz-projector-dashboard');
    const projector = dashboard?.shadowRoot?.querySelector('#projector');
    const page = projector?.shadowRoot;
    const data = page?.querySelector('#data-panel');
    const projections = page?.querySelector('#projections-panel');
"""


class BrowserError(Exception):
    """TensorBoard or the browser did not do its part; the message says which, in a sentence for the user."""


def wait(what: str, seconds: float, probe: Callable[[], Any]) -> Any:
    """The first true value of `probe`, called twice a second; BrowserError that names `what` after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > end:
            raise BrowserError(f"Waited {seconds:.0f} s in vain for {what}.")
        time.sleep(0.5)


@contextlib.contextmanager
def tensorboard(logdir: Path, scratch: Path) -> Iterator[str]:
    """A TensorBoard on a free port of the local host; its address, ending in a slash."""
    log = scratch / "tensorboard.log"
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--host=127.0.0.1", "--port=0"]
    with open(log, "wb") as file:
        process = subprocess.Popen([*command, "--load_fast=false"], stdout=file, stderr=subprocess.STDOUT)

    def address() -> str | None:
        text = log.read_text(errors="replace")
        if process.poll() is not None:
            raise BrowserError(f"TensorBoard stopped with status {process.returncode}:\n{text[-2000:]}")
        found = re.search(r"TensorBoard \S+ at (http://\S+)", text)
        return found and found[1]

    try:
        yield wait("TensorBoard to start", 90, address)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


@contextlib.contextmanager
def chromium(scratch: Path) -> Iterator[webdriver.Chrome]:
    """A headless Chromium of WIDTH × HEIGHT pixels."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not browser or not driver:
        missing = "chromedriver" if browser else "Chromium"
        raise BrowserError(f"{missing} is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={scratch / 'chromium'}"):
        options.add_argument(flag)
    try:
        started = webdriver.Chrome(options=options, service=Service(driver))
    except WebDriverException as error:
        raise BrowserError(f"Chromium ({browser}) did not start: {error.msg}") from error
    try:
        # The window's size counts a frame that a headless window does not have; this one is the page's alone.
        metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        started.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield started
    finally:
        started.quit()


def get(url: str) -> Any:
    """The JSON at an address."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def save_screenshot(driver: webdriver.Chrome, output: Path) -> None:
    """Writes what the browser shows as a PNG, whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    temporary.write_bytes(driver.get_screenshot_as_png())
    os.replace(temporary, output)


def pixels(png: bytes, colors: list[str]) -> dict[str, int]:
    """How many pixels of a picture have each of the colours "#rrggbb", up to a rounding of the renderer."""
    found = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.int16).reshape(-1, 3)
    wanted = {color: np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.int16) for color in colors}
    return {color: int((abs(found - rgb).max(axis=1) <= 4).sum()) for color, rgb in wanted.items()}


class Projector:
    """TensorBoard's projector, opened in the browser.

    Args:
      driver: a browser.
      address: of a TensorBoard with embeddings.
      timeout: seconds that each step may take.
    """

    def __init__(self, driver: webdriver.Chrome, address: str, timeout: float):
        self.driver, self.address, self.timeout = driver, address, timeout
        # TensorBoard looks for embeddings in the background; a page that loads before it found them shows the
        # projector among the inactive plugins.
        wait(
            "TensorBoard to find embeddings (a projector_config.pbtxt beside an event file)",
            timeout,
            lambda: get(f"{address}data/plugins_listing")["projector"]["enabled"],
        )
        driver.get(f"{address}#projector")
        for _ in range(2):  # TensorBoard's frame for any plugin, and the projector's own
            frames = wait("the projector's page", timeout, lambda: driver.find_elements(By.TAG_NAME, "iframe"))
            driver.switch_to.frame(frames[0])
        if not self.ask("return ['webgl2', 'webgl'].some(k => document.createElement('canvas').getContext(k))"):
            raise BrowserError(
                "This Chromium has no WebGL, without which the projector draws nothing; it should have it by "
                "software through --enable-unsafe-swiftshader."
            )
        wait("the first points", timeout, self.points)

    def ask(self, script: str, *arguments: Any) -> Any:
        """What a script returns that may use dashboard, projector, page, data and projections."""
        return self.driver.execute_script(_ELEMENTS + script, *arguments)

    def points(self) -> str | None:
        """The number of points as the page shows it, once they are there; else the page's error, or None."""
        return self.ask("""
            const error = page?.querySelector('#notify-msgs .error');
            return error ? 'an error: ' + error.innerText : projector?.dataSet && !projector.dataSet.isOld
                && projector.projection && data.colorOptions.length > 1
                && page.querySelector('span.numDataPoints').innerText""")

    def _switch(self, attribute: str, value: str) -> str:
        # The page goes on to show the old points until the new ones have come: so mark those.
        change = f"if (data.{attribute} !== arguments[0])"
        self.ask(change + f"{{ projector.dataSet.isOld = true; data.{attribute} = arguments[0]; }}", value)
        return wait(f"the points of {value!r}", self.timeout, self.points)

    def runs(self) -> list[str]:
        return self.ask("return data.runNames")

    def select_run(self, run: str) -> str:
        """Shows a run; returns the number of points that the page shows then."""
        return self._switch("selectedRun", run)

    def tensors(self) -> list[str]:
        """Titles of the run's tensors."""
        return self.ask("return data.tensorNames.map(tensor => tensor.name)")

    def select_tensor(self, tensor: str) -> str:
        """Shows a tensor; returns the number of points that the page shows then."""
        return self._switch("selectedTensor", tensor)

    def rows(self, logdir: Path, run: str, tensor: str) -> int:
        """Rows of the tensor's file, counted by ourselves and not by TensorBoard."""
        info = get(f"{self.address}data/plugin/projector/info?run={urllib.parse.quote(run)}")
        path = next(entry["tensorPath"] for entry in info["embeddings"] if entry["tensorName"] == tensor)
        with open(logdir / run / path, "rb") as file:
            return sum(1 for line in file if line.strip())

    def columns(self) -> list[str]:
        """Columns of the metadata that can colour the points by category."""
        return self.ask("return data.colorOptions.filter(o => o.items?.length).map(o => o.name)")

    def color_by(self, column: str) -> list[str]:
        """Colours by a column; returns the legend's colours "#rrggbb"."""
        if column not in (columns := self.columns()):
            raise BrowserError(
                f"Expected a column of {columns} to colour by. Received {column!r}: there is no such column, or it has "
                "more than 50 values, for which the projector has no colours."
            )
        self.ask("data.selectedColorOptionName = arguments[0]", column)
        return self.ask("return data.colorLegendRenderInfo.items.map(item => item.color)")

    def fields(self) -> list[str]:
        """All columns of the metadata."""
        return self.ask("return projector.dataSet.spriteAndMetadataInfo.stats.map(column => column.name)")

    def label(self) -> str:
        """The column that points are labelled with."""
        return self.ask("return data.selectedLabelOption")

    def sprite(self) -> list[int] | None:
        """Width and height in pixels of the loaded picture of all thumbnails; None if there is none."""
        return self.ask("""
            const image = projector.dataSet.spriteAndMetadataInfo?.spriteImage;
            return image?.complete && image.naturalWidth ? [image.naturalWidth, image.naturalHeight] : null""")

    def select_point(self, index: int) -> list[tuple[str, float]]:
        """Selects a point; returns the nearest others as the page lists them: label and distance."""
        self.ask("projector.notifySelectionChanged([arguments[0]])", index)
        listed = """
            const panel = page.querySelector('#inspector-panel').shadowRoot;
            return [...panel.querySelectorAll('.nn-list .neighbor')].map(row =>
                [row.querySelector('.label').innerText, +row.querySelector('.value').innerText])"""
        return [tuple(row) for row in wait("the nearest neighbours", self.timeout, lambda: self.ask(listed))]

    def settle(self) -> None:
        """Stops the turning of a view in three dimensions, and lets the page draw."""
        self.ask(
            "const plot = projector.projectorScatterPlotAdapter.scatterPlot;plot.resetZoom(); plot.stopOrbitAnimation()"
        )
        self.driver.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(arguments[0], 1000)))"
        )

    def canvas(self) -> bytes:
        """The points as drawn, a PNG."""
        return self.ask("return page.querySelector('#scatter')").screenshot_as_png
