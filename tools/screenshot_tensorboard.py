"""Opens a log folder in a real TensorBoard and a real browser, and saves what a person would see.

    python -m tools.screenshot_tensorboard --logdir=runs/x --output=docs/projector.png
    python -m tools.screenshot_tensorboard --logdir=runs --page=timeseries --tags='epoch_eer|distance' --output=eer.png

Of the projector it also checks what it sees: the page shows as many points as the tensor file has rows, the points are
coloured by the chosen column, and pixels of those colours are on the canvas. Without WebGL the projector draws nothing
and reports nothing, so a picture alone would prove nothing.

Needs Chromium with its driver (`apt-get install chromium chromium-driver`) and selenium (requirements-dev.txt).
"""

import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

from absl import app, flags

from tools import browser
from vggvox_tf.projector import MAX_ROWS, NEWEST

FLAGS = flags.FLAGS


def define_flags():
    flags.DEFINE_string("logdir", None, "Folder that TensorBoard opens: a run, or a folder of runs.", required=True)
    flags.DEFINE_string("output", "tensorboard.png", "The PNG to write, 1400 × 900 pixels.")
    flags.DEFINE_enum("page", "projector", ["projector", "timeseries", "hparams"], "Which of TensorBoard's pages.")
    flags.DEFINE_string("tags", "", "With --page=timeseries: regular expression of the tags to show.")
    flags.DEFINE_string("run", None, "With the projector: run to show; its first if not given.")
    flags.DEFINE_string("tensor", None, "Title of the tensor to show, or its beginning; the newest if not given.")
    flags.DEFINE_string("color_by", "speaker", "Column of the metadata that colours the points.")
    flags.DEFINE_enum("dimensions", "2", ["2", "3"], "Dimensions of the layout; the projector itself opens with 3.")
    flags.DEFINE_integer("tsne_iterations", 0, "Iterations of t-SNE before the picture; 0 shows the PCA.", 0)
    flags.DEFINE_float("timeout", 120, "Seconds that each step may take.", 1)


def choose(what, wanted, names):
    """The name that is, or begins with, what was asked for; the first if nothing was."""
    for name in names:
        if wanted is None or name.removeprefix(NEWEST).startswith(wanted):
            return name
    raise browser.BrowserError(f"Expected --{what} to be one of: {', '.join(names)}. Received {wanted!r}.")


def show_projector(driver, address, logdir):
    """Opens the projector as the flags say and checks it; returns a sentence on what it shows."""
    projector = browser.Projector(driver, address, FLAGS.timeout)
    run = choose("run", FLAGS.run, projector.runs())
    projector.select_run(run)
    tensor = choose("tensor", FLAGS.tensor, projector.tensors())
    points, rows = projector.select_tensor(tensor), projector.rows(logdir, run, tensor)
    if points != str(min(rows, MAX_ROWS)):
        raise browser.BrowserError(f"Expected {rows} points, the rows of {tensor!r}. The projector shows {points}.")
    legend = projector.color_by(FLAGS.color_by)
    projector.ask("projections.pcaIs3d = projections.tSNEis3d = arguments[0]", FLAGS.dimensions == "3")
    if FLAGS.tsne_iterations:
        projector.ask("projections.shadowRoot.querySelector('#tsne-tab').click()")
        done = "return +projections.shadowRoot.querySelector('.run-tsne-iter').innerText >= arguments[0]"
        browser.wait("t-SNE", FLAGS.timeout, lambda: projector.ask(done, FLAGS.tsne_iterations))
        projector.ask("projections.shadowRoot.querySelector('.pause-tsne').click()")
    projector.settle()
    found = browser.pixels(projector.canvas(), legend)
    seen = [color for color, pixels in found.items() if pixels >= 4]
    # Points hide one another, so a colour may be missing; most may not.
    if 2 * len(seen) <= len(found):
        raise browser.BrowserError(
            f"Expected points in {len(found)} colours on the canvas and found {len(seen)}: it drew nothing, or hardly "
            "anything."
        )
    return f"{tensor!r} of run {run!r}, {points} points in {len(seen)} of {len(found)} colours"


def show_page(driver, address):
    """Opens another page and gives it time to load its data; returns what was asked for."""
    query = f"?tagFilter={urllib.parse.quote(FLAGS.tags)}" if FLAGS.tags else ""
    driver.get(f"{address}{query}#{FLAGS.page}")
    time.sleep(10)
    return f"{FLAGS.page} {FLAGS.tags}"


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    logdir = Path(FLAGS.logdir)
    if not logdir.is_dir():
        sys.exit(f"No screenshot: expected --logdir to be a folder. Received {logdir}, which is none.")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        try:
            # Chromium first: it is the quicker one to be found missing.
            with browser.chromium(scratch) as driver, browser.tensorboard(logdir.resolve(), scratch) as address:
                if FLAGS.page == "projector":
                    shown = show_projector(driver, address, logdir)
                else:
                    shown = show_page(driver, address)
                browser.save_screenshot(driver, Path(FLAGS.output))
        except browser.BrowserError as error:
            sys.exit(f"No screenshot: {error}")
    print(f"{FLAGS.output}: {shown}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
