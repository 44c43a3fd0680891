"""Pictures of a test: whole PNG files, and that what they show is what was given."""

import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from vggvox_tf import metrics, plots


def random_trials(seed, trials=2000, separation=2.0):
    rng = np.random.default_rng(seed)
    labels = rng.random(trials) < 0.3
    return rng.normal(size=trials) + separation * labels, labels


PERFECT = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])


@pytest.fixture
def figures(monkeypatch):
    """The figures as they were when they were written."""
    written = []
    write = plots._write

    def spy(figure, legend, path):
        written.append(figure)
        write(figure, legend, path)

    monkeypatch.setattr(plots, "_write", spy)
    return written


def draw(kind, curves, path, title="a title"):
    if kind == "histogram":
        name, scores, labels = curves[0]
        plots.histogram(scores, labels, {f"EER of {name}": 0.5, "minDCF(0.01)": 0.7}, path, title, "cosine")
    else:
        getattr(plots, kind)(curves, path, title)


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("kind", ["roc", "det", "histogram"])
@pytest.mark.parametrize("trials", [30, 100_000])
def test_a_whole_png_and_nothing_else(tmp_path, kind, trials):
    draw(kind, [("veri_test", *random_trials(0, trials))], tmp_path / "new" / "picture.png")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["picture.png"]
    pixels = matplotlib.image.imread(tmp_path / "new" / "picture.png")
    assert pixels.shape[1] == 960
    assert pixels.std() > 0.05  # something is drawn on it


@pytest.mark.parametrize("kind", ["roc", "det", "histogram"])
def test_a_failure_keeps_the_old_file(tmp_path, kind, monkeypatch):
    (tmp_path / "picture.png").write_bytes(b"old")

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(plots.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        draw(kind, [("veri_test", *PERFECT)], tmp_path / "picture.png")
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
    assert (tmp_path / "picture.png").read_bytes() == b"old"


def test_deviates_by_hand():
    """The normal distribution has half its mass below 0 and 15.87 % below −1. No error in 10 trials is drawn as half
    an error, 5 %, at −1.645; ten errors as nine and a half."""
    np.testing.assert_allclose(plots.deviate(np.array([0.5, 0.158655]), 1000), [0, -1], atol=1e-5)
    np.testing.assert_allclose(plots.deviate(np.array([0.0, 1.0]), 10), [-1.644854, 1.644854], atol=1e-5)


@pytest.mark.parametrize(
    "trials",
    [PERFECT, (PERFECT[0], 1 - PERFECT[1]), (np.ones(9), np.arange(9) < 3), random_trials(1)],
    ids=["perfect", "reversed", "all equal", "random"],
)
def test_det_stays_finite_and_in_sight(tmp_path, figures, trials):
    plots.det([("veri_test", *trials)], tmp_path / "det.png", "a title")
    (axes,) = figures[0].axes
    assert all(np.isfinite(line.get_xydata()).all() for line in axes.lines)
    low, high = axes.get_xlim()
    assert (low, high) == axes.get_ylim()
    eer = axes.lines[1].get_xydata()
    assert ((eer > low) & (eer < high)).all()


def test_det_marks_the_eer_on_the_diagonal(tmp_path, figures):
    scores, labels = random_trials(2)
    plots.det([("veri_test", scores, labels)], tmp_path / "det.png", "a title")
    ((x, y),) = figures[0].axes[0].lines[1].get_xydata()
    assert x == y == plots.deviate(metrics.eer(scores, labels)[0], len(labels))
    ticks = [tick.get_text() for tick in figures[0].axes[0].get_xticklabels()]
    assert ticks[:5] == ["0.1", "0.2", "0.5", "1", "2"] and ticks[-1] == "40"


def test_roc_by_hand(tmp_path, figures):
    """Scores 4 to 1 of target, non-target, target, non-target: up, right, up, right, in steps of 50 %. After the
    second, P_miss = P_fa = 1/2."""
    plots.roc([("veri_test", np.array([4, 3, 2, 1]), np.array([1, 0, 1, 0]))], tmp_path / "roc.png", "a title")
    curve, eer = figures[0].axes[0].lines[:2]
    assert curve.get_xydata().tolist() == [[0, 0], [0, 50], [50, 50], [50, 100], [100, 100]]
    assert eer.get_xydata().tolist() == [[50, 50]]
    assert texts(figures[0]) == ["veri_test: EER 50.00 %", "chance"]


@pytest.mark.parametrize("kind", ["roc", "det"])
def test_many_curves_of_any_name_stay_apart(tmp_path, figures, kind):
    """A leading underscore hides a curve from matplotlib's legends, and a $ begins a formula."""
    names = [f"_list {i} $\\frac$" for i in range(15)]
    curves = [(name, *random_trials(i, separation=0.2 * i)) for i, name in enumerate(names)]
    draw(kind, curves, tmp_path / "picture.png", title="$\\oops$ " * 30)
    shown = texts(figures[0])
    assert [re.sub(r": EER \d+\.\d\d %$", "", text) for text in shown[:-1]] == names
    lines = [line for line in figures[0].axes[0].lines if len(line.get_xydata()) > 2]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 15


@pytest.mark.parametrize("kind", ["roc", "det"])
def test_few_points_of_many_and_both_ends(tmp_path, figures, kind):
    draw(kind, [("veri_test", *random_trials(3, 200_000))], tmp_path / "picture.png")
    points = figures[0].axes[0].lines[0].get_xydata()
    assert 1000 < len(points) <= plots.POINTS
    (low, high), quarter = figures[0].axes[0].get_xlim(), len(points) // 4
    # No stretch without points. (The ends of a DET curve are steps of single trials.)
    assert np.abs(np.diff(points[quarter:-quarter], axis=0)).max() <= (high - low) / 100
    if kind == "roc":
        assert points[[0, -1]].tolist() == [[0, 0], [100, 100]]


def test_histogram_shows_densities_and_thresholds(tmp_path, figures):
    """Each kind's bars have an area of 1, however few its trials are."""
    scores, labels = random_trials(4)
    plots.histogram(scores, labels, {"EER": 1.0, "chosen": -1.25}, tmp_path / "h.png", "a title", "cosine")
    (axes,) = figures[0].axes
    outlines = [patch.get_data() for patch in axes.patches]
    assert len(outlines) == 4  # filled and outlined
    assert [np.dot(data.values, np.diff(data.edges)) for data in outlines] == pytest.approx([1] * 4)
    assert [line.get_xdata()[0] for line in axes.lines] == [1.0, -1.25]
    targets = int(labels.sum())
    assert texts(figures[0]) == [
        f"targets ({targets:,})", f"non-targets ({2000 - targets:,})", "EER: 1.0000", "chosen: -1.2500"
    ]  # fmt: skip
    assert axes.get_xlabel() == "cosine"


def test_eers_are_dots_at_the_mean_of_the_seeds_and_lines_over_all_of_them(tmp_path, figures):
    rows = {"one_seed": [[0.02], [0.08]], "two": [[0.03, 0.05], [0.06, 0.06]]}
    plots.eers(rows, ["vox1", "libri"], tmp_path / "race.png", "a title")
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["one_seed", "two"]
    assert axes.get_ylim() == (1.5, -0.5)  # the first row on top
    assert texts(figures[0]) == ["vox1", "libri"]
    vox1, libri = axes.get_lines()
    np.testing.assert_allclose(vox1.get_xydata(), [[2, 0], [4, 1]])
    np.testing.assert_allclose(libri.get_xydata(), [[8, 0], [6, 1]])
    np.testing.assert_allclose(axes.collections[0].get_segments(), [[[2, 0], [2, 0]], [[3, 1], [5, 1]]])
    assert matplotlib.image.imread(tmp_path / "race.png").shape[1] == 1200


@pytest.mark.parametrize("kind", ["roc", "det", "histogram"])
def test_bad_trials_are_named_and_nothing_is_written(tmp_path, kind):
    with pytest.raises(ValueError, match="no non-target"):
        draw(kind, [("veri_test", np.array([1.0, 2.0]), np.array([1, 1]))], tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", [plots.roc, plots.det])
def test_no_curves(tmp_path, function):
    with pytest.raises(ValueError, match="at least one curve"):
        function([], tmp_path / "picture.png", "a title")


def test_import_stays_light():
    """matplotlib is imported by what draws."""
    code = "import sys, vggvox_tf.plots; print({'tensorflow', 'matplotlib'} & set(sys.modules))"
    root = Path(plots.__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root).strip() == "set()"
