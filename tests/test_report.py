"""The page on a test: complete, self-contained, and indifferent to what files and speakers are called."""

import base64
import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vggvox_tf import metrics, report
from vggvox_tf.breakdown import breakdown
from vggvox_tf.trials import Trials

HOSTILE = "<script>alert('1')</script> | _a_ `b` $c$ \udcff\x1b[31m\n# ../&amp;"
VOID = {"meta", "img"}


def trials_of(seed, prefix=""):
    """200 trials of six speakers with two sessions of three recordings each."""
    rng = np.random.default_rng(seed)
    names = [f"{prefix}s{s}/{session}/{i}.wav" for s in range(6) for session in "ab" for i in range(3)]
    enrol, test = rng.integers(36, size=(2, 200))
    test[:80] = enrol[:80] // 6 * 6 + test[:80] % 6
    paths = np.empty(36, object)
    paths[:] = names
    return Trials(Path("."), paths, enrol.astype(np.int32), test.astype(np.int32), enrol // 6 == test // 6)


def results_of(names=("veri_test",), systems=(("whole", "none"),), calibrated=True, prefix=""):
    """What evaluate.py would report, and the scores of it."""
    lists, curves = [], {}
    for seed, name in enumerate(names):
        trials = trials_of(seed, prefix)
        rng = np.random.default_rng(seed)
        entry = {"name": name, "trial_list": f"/data/{name}.txt", "recordings": 36, "speakers": 6, "note": ""}
        entry |= {"training_speakers_among_them": 0, "systems": []}
        for protocol, normalisation in systems:
            scores = rng.normal(size=200) + 2 * trials.labels
            curves[name, protocol, normalisation] = scores, trials.labels
            fitted = {"slope": 2.125, "offset": -1.375, "cllr": 0.4321, "threshold": 0.6471}
            fitted["actual_dcf"] = [{"p_target": 0.01, "dcf": 0.8765}, {"p_target": 0.05, "dcf": 0.7654}]
            entry["systems"].append(
                {"protocol": protocol, "normalisation": normalisation}
                | metrics.summary(scores, trials.labels, threshold=0.75)
                | {"eer_interval": [0.0123, 0.2345], "calibration": fitted if calibrated else None}
            )
        first = curves[(name, *systems[0])][0]
        genders = {f"s{s}": "mf"[s % 2] for s in range(6)}
        entry["breakdown"] = breakdown(trials, first, 0.9, genders, np.linspace(2, 8, 36))
        lists.append(entry)
    development = {"trial_list": "/data/dev.txt", "trials": 12345, "speakers": 67, "note": ""}
    return {
        "title": "best.keras on veri_test",
        "date": "2026-11-23",
        "revision": "ad0bcea0123",
        "command": "python -m vggvox_tf.evaluate --encoder=best.keras",
        "encoder": "runs/best.keras",
        "fingerprint": "0123456789abcdef" * 4,
        "training_speakers": 1211,
        "distance": "cosine",
        "cohort": {"source": "/data/cohort", "speakers": 890, "top": 234},
        "development": development if calibrated else None,
        "lists": lists,
    }, curves


class Page(html.parser.HTMLParser):
    """A page's text and tags; fails where a tag is not closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.rows, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if "style" not in self.open:
            self.text += data


def page_of(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def markdown_rows(folder):
    """Cells of every table row; an escaped bar is none between cells."""
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    return [re.split(r" (?<!\\)\| ", line[2:-2]) for line in lines if line.startswith("| ")]


def expected_texts(results):
    """Every number that the page shows, as it shows it."""
    texts = ["0123456789ab", "ad0bcea0123", "2026-11-23", "1,211", "runs/best.keras", results["command"]]
    for entry in results["lists"]:
        texts += [entry["trial_list"], "36", "6", f"{entry['breakdown']['threshold']:.4f}"]
        for system in entry["systems"]:
            texts += [f"{system[key]:,}" for key in ("trials", "targets", "nontargets")]
            texts += [f"{100 * system['eer']:.2f} %", "1.23–23.45 %", f"{system['auc']:.4f}"]
            texts += [f"{cost['min_dcf']:.4f}" for cost in system["detection_costs"]]
            texts += [f"{system['detection_costs'][0]['min_c_det']:.5f}"]
            for point in system["operating_points"].values():
                texts += [f"{point['threshold']:.4f}"]
                texts += [f"{point[kind]:,}" for kind in point if kind.startswith(("true", "false_p", "false_n"))]
                for share in ("accuracy", "precision", "recall", "miss_rate", "false_alarm_rate"):
                    texts += [f"{100 * point[share]:.2f} %"]
            if fitted := system["calibration"]:
                texts += [f"{fitted[key]:.4f}" for key in ("slope", "offset", "cllr", "threshold")]
                texts += [f"{system['min_cllr']:.4f}", *(f"{cost['dcf']:.4f}" for cost in fitted["actual_dcf"])]
        found = entry["breakdown"]
        for group in found["gender"] + found["session"] + found["duration"] + found["worst_speakers"]:
            texts += [group.get("name") or group["speaker"], str(group["targets"]), str(group["nontargets"])]
            for key in ("eer", "miss_rate", "false_alarm_rate"):
                texts += ["–" if (rate := group.get(key)) is None else f"{100 * rate:.2f} %"] if key in group else []
        for trial in found["missed_targets"] + found["accepted_nontargets"]:
            texts += [f"{trial['score']:.4f}", trial["enrol"], trial["test"]]
    return texts


def test_everything_is_written_and_every_number_shown(tmp_path):
    results, curves = results_of(("veri_test", "other"), [("whole", "none"), ("pairs", "as-norm")])
    report.write(tmp_path / "new", results, curves)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        "det.png", "histogram-other.png", "histogram-veri_test.png",
        "metrics.json", "report.html", "report.md", "roc.png",
    ]  # fmt: skip
    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == results
    page = page_of(tmp_path / "new").text
    markdown = (tmp_path / "new" / "report.md").read_text()
    for text in expected_texts(results):
        assert text in page and text in markdown, text
    for file in (tmp_path / "new").glob("*.png"):
        assert f"]({file.name})" in markdown


def test_main_table_by_hand(tmp_path):
    results, curves = results_of(systems=[("mean", "s-norm")], calibrated=False)
    costs = [
        {"p_target": 0.01, "min_dcf": 0.51234, "min_c_det": 0.0051234, "threshold": 1.5},
        {"p_target": 0.05, "min_dcf": 0.4, "min_c_det": 0.02, "threshold": 1.0},
    ]
    results["lists"][0]["systems"][0] |= {"eer": 0.05441, "auc": 0.98765, "detection_costs": costs}
    table = report.main_table(results)
    head, row = (re.split(r" {2,}", line) for line in table.splitlines())
    assert head[:6] == ["list", "protocol", "normalisation", "EER", "95 % interval", "minDCF(0.01)"]
    assert row[:6] == ["veri_test", "mean of ten 3 s crops", "s-norm", "5.44 %", "1.23–23.45 %", "0.5123"]
    assert head[6:] == ["minDCF(0.05)", "C_det(0.01)", "AUC"]
    assert row[6:] == ["0.4000", "0.00512", "0.9877"]
    assert len({len(line) for line in table.splitlines()}) == 1
    report.write(tmp_path, results, curves)
    for cells in (head, row):
        assert cells in page_of(tmp_path).rows
        assert cells in markdown_rows(tmp_path)


def test_calibrated_systems_have_two_more_columns():
    results, _ = results_of(systems=[("whole", "none"), ("whole", "z-norm")])
    results["lists"][0]["systems"][1]["calibration"] = None
    rows = [re.split(r" {2,}", line) for line in report.main_table(results).splitlines()]
    least = [f"{system['min_cllr']:.4f}" for system in results["lists"][0]["systems"]]
    assert [row[-2:] for row in rows] == [["C_llr", "min C_llr"], ["0.4321", least[0]], ["–", least[1]]]


def test_notes_stand_beside_the_eers(tmp_path):
    results, curves = results_of(("veri_test", "other"))
    results["lists"][1]["note"] = "3 of the 6 speakers of the trial list were trained on."
    results["development"]["note"] = "2 of its speakers are tested on."
    report.write(tmp_path, results, curves)
    page, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    for text in ("† other: 3 of the 6 speakers", "2 of its speakers are tested on."):
        assert text in report.main_table(results)
        assert re.search(f'class="note">[^<]*{text}', page)
        assert re.search(f"> \\*\\*Note\\*\\* .*{text}", markdown)
    marked = [line.split()[:2] for line in report.main_table(results).splitlines()[1:3]]
    assert [second == "†" for _, second in marked] == [False, True]


def test_unknown_training_speakers_mark_every_list():
    results, _ = results_of(("veri_test", "other"))
    results["training_speakers"] = None
    lines = report.main_table(results).splitlines()
    assert lines[1].startswith("veri_test †") and lines[2].startswith("other †")
    assert "not known which speakers" in lines[-1]


def test_the_page_refers_to_nothing_outside(tmp_path):
    results, curves = results_of()
    report.write(tmp_path, results, curves)
    page = page_of(tmp_path)
    pictures = [value for name, value in page.attributes if name == "src"]
    heads = [base64.b64decode(value.removeprefix("data:image/png;base64,")) for value in pictures]
    assert heads == [(tmp_path / f).read_bytes() for f in ("roc.png", "det.png", "histogram-veri_test.png")]
    assert {name for name, _ in page.attributes} <= {"lang", "charset", "name", "content", "class", "src", "alt"}
    assert not {"script", "link", "iframe", "object", "a"} & set(page.tags)
    source = re.sub(r"base64,[^\"]*", "", (tmp_path / "report.html").read_text())
    assert "http" not in source and "url(" not in source and "@import" not in source


def test_hostile_names_stay_text(tmp_path):
    results, curves = results_of((HOSTILE, "b"), prefix=HOSTILE.replace("/", "").replace("\n", "") + "/")
    for key in ("title", "encoder", "revision", "command"):
        results[key] = HOSTILE + "```"
    results["cohort"]["source"] = results["development"]["trial_list"] = HOSTILE
    results["lists"][0]["note"] = results["development"]["note"] = HOSTILE
    report.write(tmp_path, results, curves)
    shown = (
        "<script>alert('1')</script> | _a_ `b` $c$ \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31m # ../&amp;"
    )

    page = page_of(tmp_path)
    assert "script" not in page.tags
    assert shown in [row[0] for row in page.rows]
    assert page.text.count("alert('1')") > 20

    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    fence = re.search(r"^(`{3,})\n(.*?)\n\1$", markdown, re.DOTALL | re.MULTILINE)
    assert fence[1] == "````" and "<script>" in fence[2]  # longer than any in the command; nothing in it is read
    outside = markdown.replace(fence[0], "")
    assert "<script" not in outside and "\x1b" not in markdown
    assert not re.search(r"^# \.\.", outside, re.MULTILINE)
    rows = markdown_rows(tmp_path)
    assert {len(row) for row in rows} == {3, 5, 7, 8, 10, 11, 14}  # as many as the tables have columns
    assert re.sub(r"\\(.)", r"\1", rows[2][0]) == html.escape(shown, quote=False)

    assert "\x1b" not in report.main_table(results) and "\n#" not in report.main_table(results)
    report.main_table(results).encode()
    assert json.loads((tmp_path / "metrics.json").read_text()) == results
    assert {file.parent for file in tmp_path.rglob("*")} == {tmp_path}  # ../ in a list's name leads nowhere
    assert len(list(tmp_path.iterdir())) == 7


def test_lists_whose_file_names_fall_together(tmp_path):
    results, curves = results_of(("a b", "a/b"))
    report.write(tmp_path, results, curves)
    assert sorted(file.name for file in tmp_path.glob("h*")) == ["histogram-a_b-2.png", "histogram-a_b.png"]


@pytest.mark.parametrize(
    ("lists", "systems", "names"),
    [
        (("x",), [("whole", "none")], ["x"]),
        (("x",), [("whole", "none"), ("whole", "s-norm")], ["not normalised", "s-norm"]),
        (("x", "y"), [("whole", "none")], ["x", "y"]),
        (("x", "y"), [("pairs", "z-norm")] * 9, ["x"] * 8 + ["y"] * 7),
    ],
)
def test_legends_name_what_differs(tmp_path, monkeypatch, lists, systems, names):
    """Of 18 systems 15 are drawn: from each list the first ones."""
    drawn = []
    monkeypatch.setattr(report.plots, "det", lambda curves, path, title: drawn.extend(curves))
    results, curves = results_of(lists, systems)
    report._pictures(tmp_path, results, curves)
    assert [name for name, _, _ in drawn] == names


def test_nothing_known(tmp_path):
    """No revision, cohort or development list, no genders, sessions or lengths, and no errors."""
    results, curves = results_of(calibrated=False)
    results |= {"revision": None, "cohort": None, "training_speakers": None}
    empty = {key: [] for key in results["lists"][0]["breakdown"]} | {"threshold": 0.5}
    results["lists"][0]["breakdown"] = empty
    report.write(tmp_path, results, curves)
    text = page_of(tmp_path).text
    assert "revision not known" in text and "Speakers with the most errors" not in text and "Calibration" not in text


def test_bad_results_write_nothing(tmp_path):
    results, curves = results_of(("a", "b"))
    with pytest.raises(ValueError, match=r"scores of every system.*'b', 'whole', 'none'"):
        report.write(tmp_path / "new", results, {key: curves[key] for key in curves if key[0] == "a"})
    results["lists"][1]["name"] = "a"
    with pytest.raises(ValueError, match=r"different names.*a, a"):
        report.write(tmp_path / "new", results, curves)
    results, curves = results_of()
    results["lists"][0]["systems"][0]["auc"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        report.write(tmp_path / "new", results, curves)
    assert not (tmp_path / "new").exists()


def test_a_failure_keeps_the_old_report(tmp_path, monkeypatch):
    results, curves = results_of()
    report.write(tmp_path, results, curves)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    results["title"] = "another"
    monkeypatch.setattr(report, "_markdown", lambda blocks: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write(tmp_path, results, curves)
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name] and not name.endswith(".png")] == []


def test_import_stays_light():
    code = "import sys, vggvox_tf.report; print({'tensorflow', 'matplotlib'} & set(sys.modules))"
    root = Path(report.__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root).strip() == "set()"
