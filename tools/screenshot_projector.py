"""Opens the projector of a log folder in a real TensorBoard and a real browser, and saves what a person would
see.

    python -m tools.screenshot_projector --logdir=runs/x --output=docs/projector.png

It also checks what it sees: the page shows as many points as the tensor file has rows, the points are
coloured by the chosen column, and pixels of those colours are on the canvas. Without WebGL the projector
draws nothing and reports nothing, so a picture alone would prove nothing.

Needs Chromium with its driver (`apt-get install chromium chromium-driver`) and selenium
(requirements-dev.txt)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from vggvox_tf.projector import MAX_ROWS, NEWEST

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


class ScreenshotError(Exception):
    """The projector could not be shown; the message says why, in a sentence for the user."""


def _wait(what: str, seconds: float, probe: Callable[[], Any]) -> Any:
    """The first true value of `probe`, called twice a second; ScreenshotError that names `what` after
    `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > end:
            raise ScreenshotError(f"Waited {seconds:.0f} s in vain for {what}.")
        time.sleep(0.5)


@contextlib.contextmanager
def _tensorboard(logdir: Path, scratch: Path) -> Iterator[str]:
    """A TensorBoard on a free port of the local host; its address, ending in a slash."""
    log = scratch / "tensorboard.log"
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--host=127.0.0.1", "--port=0"]
    with open(log, "wb") as file:
        process = subprocess.Popen([*command, "--load_fast=false"], stdout=file, stderr=subprocess.STDOUT)

    def address() -> str | None:
        text = log.read_text(errors="replace")
        if process.poll() is not None:
            raise ScreenshotError(f"TensorBoard stopped with status {process.returncode}:\n{text[-2000:]}")
        found = re.search(r"TensorBoard \S+ at (http://\S+)", text)
        return found and found[1]

    try:
        yield _wait("TensorBoard to start", 90, address)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


@contextlib.contextmanager
def _chromium(scratch: Path) -> Iterator[webdriver.Chrome]:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not browser or not driver:
        missing = "chromedriver" if browser else "Chromium"
        raise ScreenshotError(f"{missing} is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={scratch / 'chromium'}"):
        options.add_argument(flag)
    try:
        chromium = webdriver.Chrome(options=options, service=Service(driver))
    except WebDriverException as error:
        raise ScreenshotError(f"Chromium ({browser}) did not start: {error.msg}") from error
    try:
        # The window's size counts a frame that a headless window does not have; this one is the page's alone.
        metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield chromium
    finally:
        chromium.quit()


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def _choose(what: str, wanted: str | None, names: list[str], default: str) -> str:
    if wanted is None:
        return default
    for name in names:
        if wanted in (name, name.removeprefix(NEWEST)):
            return name
    raise ScreenshotError(f"Expected --{what} to be one of: {', '.join(names)}. Received {wanted!r}.")


def _rows(logdir: Path, address: str, run: str, tensor: str) -> int:
    """Rows of the tensor's file, counted by ourselves and not by TensorBoard."""
    info = _get(f"{address}data/plugin/projector/info?run={urllib.request.quote(run)}")
    path = next(entry["tensorPath"] for entry in info["embeddings"] if entry["tensorName"] == tensor)
    with open(logdir / run / path, "rb") as file:
        return sum(1 for line in file if line.strip())


def _pixels(png: bytes, colors: list[str]) -> dict[str, int]:
    """How many pixels of a picture have each of the colours "#rrggbb", up to a rounding of the renderer."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.int16).reshape(-1, 3)
    wanted = {color: np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.int16) for color in colors}
    return {color: int((abs(pixels - rgb).max(axis=1) <= 4).sum()) for color, rgb in wanted.items()}


def screenshot(
    logdir: Path,
    output: Path,
    run: str | None = None,
    tensor: str | None = None,
    color_by: str = "speaker",
    dimensions: int = 2,
    labels: bool = False,
    tsne_iterations: int = 0,
    timeout: float = 120,
) -> str:
    """Saves the projector of `logdir` as a PNG of 1400 × 900 pixels and returns a sentence on what it shows.

    Raises ScreenshotError where TensorBoard, Chromium or the projector does not do its part within `timeout`
    seconds (a step each), or where what is shown is not what the files hold."""
    if not logdir.is_dir():
        raise ScreenshotError(f"Expected --logdir to be a folder. Received {logdir}, which is none.")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        # Chromium first: it is the quicker one to be found missing.
        chromium = stack.enter_context(_chromium(Path(folder)))
        address = stack.enter_context(_tensorboard(logdir.resolve(), Path(folder)))

        def ask(script: str, *arguments: Any) -> Any:
            return chromium.execute_script(_ELEMENTS + script, *arguments)

        # TensorBoard looks for embeddings in the background; a page that loads before it found them shows the
        # projector among the inactive plugins.
        _wait(
            f"TensorBoard to find embeddings in {logdir} (a projector_config.pbtxt beside an event file)",
            timeout,
            lambda: _get(f"{address}data/plugins_listing")["projector"]["enabled"],
        )
        chromium.get(f"{address}#projector")
        for _ in range(2):  # TensorBoard's frame for any plugin, and the projector's own
            frames = _wait("the projector's page", timeout, lambda: chromium.find_elements(By.TAG_NAME, "iframe"))
            chromium.switch_to.frame(frames[0])

        if not ask("return ['webgl2', 'webgl'].some(k => document.createElement('canvas').getContext(k))"):
            raise ScreenshotError(
                "This Chromium has no WebGL, without which the projector draws nothing; it should have it by "
                "software through --enable-unsafe-swiftshader."
            )

        loaded = """
            const error = page?.querySelector('#notify-msgs .error');
            return error ? 'an error: ' + error.innerText : projector?.dataSet && !projector.dataSet.isOld
                && projector.projection && data.colorOptions.length > 1
                && page.querySelector('span.numDataPoints').innerText"""

        def switch(attribute: str, value: str) -> str:
            """Sets the run or the tensor and returns the number of points then shown."""
            # The page goes on to show the old points until the new ones have come: so mark those.
            change = f"if (data.{attribute} !== arguments[0])"
            ask(change + f"{{ projector.dataSet.isOld = true; data.{attribute} = arguments[0]; }}", value)
            return _wait(f"the points of {value!r}", timeout, lambda: ask(loaded))

        _wait("the first points", timeout, lambda: ask(loaded))
        run = _choose("run", run, *ask("return [data.runNames, data.selectedRun]"))
        switch("selectedRun", run)
        tensors = ask("return data.tensorNames.map(tensor => tensor.name)")
        tensor = _choose("tensor", tensor, tensors, tensors[0])
        points = switch("selectedTensor", tensor)
        rows = _rows(logdir, address, run, tensor)
        if points != str(min(rows, MAX_ROWS)):
            raise ScreenshotError(f"Expected {rows} points, the rows of {tensor!r}. The projector shows {points}.")

        columns = ask("return data.colorOptions.filter(o => o.items?.length).map(o => o.name)")
        if color_by not in columns:
            raise ScreenshotError(
                f"Expected --color_by to be one of {columns}. Received {color_by!r}: there is no such "
                "column, or it has more than 50 values, for which the projector has no colours."
            )
        ask("data.selectedColorOptionName = arguments[0]", color_by)
        if labels:
            ask("page.querySelector('#labels3DMode').click()")

        ask("projections.pcaIs3d = projections.tSNEis3d = arguments[0] === 3", dimensions)
        if tsne_iterations:
            ask("projections.shadowRoot.querySelector('#tsne-tab').click()")
            done = "return +projections.shadowRoot.querySelector('.run-tsne-iter').innerText >= arguments[0]"
            _wait(f"{tsne_iterations} iterations of t-SNE", timeout, lambda: ask(done, tsne_iterations))
            ask("projections.shadowRoot.querySelector('.pause-tsne').click()")
        # A view in three dimensions turns: back to where it started, so that two pictures can be compared.
        ask(
            "const plot = projector.projectorScatterPlotAdapter.scatterPlot;plot.resetZoom(); plot.stopOrbitAnimation()"
        )
        chromium.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(arguments[0], 1000)))"
        )

        legend = ask("return data.colorLegendRenderInfo.items.map(item => item.color)")
        found = _pixels(ask("return page.querySelector('#scatter')").screenshot_as_png, legend)
        seen = [color for color, pixels in found.items() if pixels >= 4]
        # Points hide one another, so a colour may be missing; most may not.
        if 2 * len(seen) <= len(found):
            raise ScreenshotError(
                f"Expected points in {len(found)} colours on the canvas and found {len(seen)}: "
                "it drew nothing, or hardly anything."
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
        temporary.write_bytes(chromium.get_screenshot_as_png())
        os.replace(temporary, output)
    return (
        f"{output}: {tensor!r} of run {run!r}, {points} points, {len(legend)} values of {color_by} in "
        f"{len(found)} colours, of which {len(seen)} are on the canvas in {sum(found.values()):,} pixels"
    )


def _define_flags() -> None:
    flags.DEFINE_string("logdir", None, "Folder that TensorBoard opens: a run, or a folder of runs.", required=True)
    flags.DEFINE_string("output", "projector.png", "The PNG to write, 1400 × 900 pixels.")
    flags.DEFINE_string("run", None, "Run to show; the projector's first if not given.")
    flags.DEFINE_string("tensor", None, "Title of the tensor to show; the newest if not given.")
    flags.DEFINE_string("color_by", "speaker", "Column of the metadata that colours the points.")
    flags.DEFINE_enum("dimensions", "2", ["2", "3"], "Dimensions of the layout; the projector itself opens with 3.")
    flags.DEFINE_bool("labels", False, "Write every point's label instead of a dot; for a hundred points or so.")
    flags.DEFINE_integer(
        "tsne_iterations", 0, "Iterations of t-SNE before the picture; 0 shows the PCA.", lower_bound=0
    )
    flags.DEFINE_float("timeout", 120, "Seconds that each step may take.", lower_bound=1)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    values = flags.FLAGS
    try:
        shown = screenshot(
            Path(values.logdir), Path(values.output), values.run, values.tensor, values.color_by,
            int(values.dimensions), values.labels, values.tsne_iterations, values.timeout,
        )  # fmt: skip
    except ScreenshotError as error:
        sys.exit(f"No screenshot: {error}")
    print(shown)


if __name__ == "__main__":
    _define_flags()
    app.run(main)
