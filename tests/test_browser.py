"""What a person sees in TensorBoard after training, in a real browser: `make browser-test`.

Not part of `make test`, since it needs Chromium and its driver (`apt-get install chromium chromium-driver`).
"""

import contextlib
import json
import subprocess
import sys
import urllib.request

import pytest

from tools import browser
from vggvox_tf.projector import NEWEST

pytestmark = pytest.mark.browser

SMALL = [
    "--loss=softmax", "--width=0.03", "--rows=257", "--compression=log", "--crop_seconds=1", "--batch_size=12",
    "--learning_rate=0.02", "--final_learning_rate=0.001", "--epochs=2", "--steps_per_epoch=20",
]  # fmt: skip


def run(module, *flags):
    command = [sys.executable, "-m", f"vggvox_tf.{module}", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def logdir(tiny_corpus, tmp_path_factory):
    """A trained run, and a run of `project` on its encoder with sprites."""
    folder = tmp_path_factory.mktemp("logdir")
    run("train", *SMALL, f"--corpus={tiny_corpus}", f"--trials={tiny_corpus}/trials.txt", f"--run={folder}/trained")
    encoder = folder / "trained" / "encoder.keras"
    run("project", f"--encoder={encoder}", f"--corpus={tiny_corpus}", f"--output={folder}/projected", "--sprites")
    return folder


@pytest.fixture(scope="module")
def address(logdir, tmp_path_factory):
    with browser.tensorboard(logdir, tmp_path_factory.mktemp("tensorboard")) as address:
        yield address


@pytest.fixture(scope="module")
def projector(address, tmp_path_factory):
    with browser.chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield browser.Projector(driver, address, timeout=120)


def test_projector_of_a_trained_run(projector, logdir):
    """36 recordings of six speakers, before training and after each of two epochs."""
    (name,) = [name for name in projector.runs() if name.startswith("trained")]
    assert projector.select_run(name) == "36"
    titles = projector.tensors()
    assert titles[0].startswith(f"{NEWEST}epoch 02 (EER ")
    assert any(title.startswith("before training") for title in titles)
    assert any(title.startswith("epoch 01 (EER ") for title in titles)
    for title in titles:
        assert projector.select_tensor(title) == str(projector.rows(logdir, name, title))
    projector.select_tensor(titles[0])
    assert {"speaker", "session", "gender", "seconds", "file"} <= set(projector.fields())
    assert projector.label() == "speaker"
    assert projector.sprite() is None

    legend = projector.color_by("speaker")
    assert len(legend) == len(set(legend)) == 6
    projector.settle()
    drawn = browser.pixels(projector.canvas(), legend)
    assert sum(count >= 4 for count in drawn.values()) >= 4  # points may hide one another

    neighbours = projector.select_point(0)
    assert len(neighbours) > 5 and all(label in {f"s{number}" for number in range(6)} for label, _ in neighbours)
    distances = [distance for _, distance in neighbours]
    assert distances == sorted(distances)


def test_sprites_and_centroids_of_project(projector):
    (name,) = [name for name in projector.runs() if name.startswith("projected")]
    assert projector.select_run(name) == "36"
    width, height = projector.sprite()
    assert 6 <= width <= 8192 and 6 <= height <= 8192
    (centroids,) = [title for title in projector.tensors() if title.startswith("speakers, ")]
    assert projector.select_tensor(centroids) == "6"


def scalars(address, tag):
    """Run -> number of points, of a scalar's tag."""
    found = browser.get(f"{address}data/plugin/scalars/tags")
    return {name: len(browser.get(f"{address}data/plugin/scalars/scalars?run={urllib.request.quote(name)}&tag={tag}"))
            for name, tags in found.items() if tag in tags}  # fmt: skip


def test_the_page_shows_the_eer(address, tmp_path):
    browser.wait("the scalars", 60, lambda: scalars(address, "epoch_eer"))
    assert scalars(address, "epoch_eer") == {"trained/validation": 3}  # before training and two epochs
    with browser.chromium(tmp_path) as driver:
        driver.get(f"{address}?tagFilter=epoch_eer#timeseries")
        browser.wait("a card of the EER", 60, lambda: "epoch_eer" in driver.find_element("tag name", "body").text)


def test_the_run_is_a_row_of_hparams(address, tmp_path):
    request = urllib.request.Request(
        f"{address}data/plugin/hparams/session_groups",
        json.dumps({"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "sliceSize": 10}).encode(),
        {"Content-Type": "application/json"},
    )
    with contextlib.closing(urllib.request.urlopen(request, timeout=60)) as answer:
        groups = json.load(answer)["sessionGroups"]
    (group,) = groups
    assert group["hparams"]["loss_function"] == "softmax" and group["hparams"]["width"] == pytest.approx(0.03)
    names = {value["name"].get("tag") for value in group["metricValues"]}
    assert "best_eer" in names
    # Of a single run TensorBoard shows the first five columns by name, --batch_size among them.
    with browser.chromium(tmp_path) as driver:
        driver.get(f"{address}#hparams")
        browser.wait("the row", 60, lambda: "12.000" in shown(driver))


def shown(driver):
    """The text of the page and of the frame in it."""
    text = driver.find_element("tag name", "body").text
    for frame in driver.find_elements("tag name", "iframe"):
        driver.switch_to.frame(frame)
        text += driver.execute_script(
            "const all = root => [...root.querySelectorAll('*')].map(node =>"
            "  (node.shadowRoot ? all(node.shadowRoot) : '') +"
            "  [...node.childNodes].filter(child => child.nodeType === 3).map(child => child.data)).join(' ');"
            "return all(document);"
        )
        driver.switch_to.default_content()
    return text
