"""One page on a test: report.md, report.html that can be mailed, their pictures, and metrics.json.

The page is put together once, as a list of blocks, and written twice. A block is a tuple whose first element says what
it is:

    ("heading", level, text)   ("text", text)   ("note", text)   ("code", text)
    ("items", [(name, text)])                               a name and what is to be said about it
    ("table", align, head, rows)                            a sign per column: "<" left, ">" right (numbers)
    ("pictures", [(file name, caption)])                    files in the report's folder

All texts in it are plain; the two writers escape them. `results` is the dict that evaluate.py makes; its keys and
those of `metrics.summary`, of which a system has all, are what metrics.json holds.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np

from vggvox_tf import plots
from vggvox_tf.corpus import replacing
from vggvox_tf.scoring import PROTOCOLS

# More curves in one picture cannot be told apart.
CURVES_IN_PICTURE = 15

GLOSSARY = [
    (
        "Trial",
        "Two recordings and the question whether one person speaks in both: yes in a target trial, no in a non-target "
        "trial. The system gives a score and accepts the trial where it is at least the threshold. It errs by a miss "
        "(a target rejected) or a false alarm (a non-target accepted).",
    ),
    (
        "EER",
        "Equal error rate: the share of errors at the threshold at which misses and false alarms are equally frequent. "
        "0 % is perfect, 50 % is guessing; the threshold is found on the test itself.",
    ),
    (
        "95 % interval",
        "Other speakers like these would give another EER: this is the range to expect, found by drawing the test's "
        "speakers anew many times. It is wide where speakers are few; with ten or fewer it is itself too narrow.",
    ),
    (
        "minDCF(p), C_det(p)",
        "C_det = p · misses + (1 − p) · false alarms, at the threshold where it is least: the cost if a share p of the "
        "trials were targets. minDCF is the same over the cost of not listening: 0 is perfect, 1 useless.",
    ),
    (
        "AUC",
        "Area under the ROC: the probability that a target scores higher than a non-target. 1 is perfect, 0.5 is "
        "guessing.",
    ),
    (
        "C_llr, min C_llr",
        "What calibrated scores cost on average over all thresholds, in bits: 0 is perfect, 1 says nothing. min C_llr "
        "is what the best calibration would reach; the rest is lost to a calibration that does not fit.",
    ),
]

STYLE = """
body { max-width: 76rem; margin: 0 auto; padding: 1rem 1.25rem 3rem; background: #fff; color: #1b1f24;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid #d5dae0; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; overflow-wrap: anywhere; }
p, dd { max-width: 46rem; overflow-wrap: anywhere; }
.note { max-width: 46rem; margin: .7rem 0; padding: .6rem .9rem; background: #fff4dc; border-left: 4px solid #d58a00; }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #e3e7eb; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #9aa4af; vertical-align: bottom; }
td:not(.n) { min-width: 6rem; }
.n { text-align: right; }
td.n { white-space: nowrap; }
dl { display: grid; grid-template-columns: 10rem 1fr; gap: .3rem 1rem; }
dt { font-weight: 600; }
dd { margin: 0; }
@media (max-width: 40rem) { dl { display: block; } dd { margin-bottom: .5rem; } }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; max-width: 34rem; }
img { width: 100%; height: auto; }
figcaption { font-size: .875rem; color: #4a5460; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .7rem .9rem; background: #f3f5f7; font-size: .875rem; }
@page { size: landscape; margin: 12mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; }
  td:not(.n) { min-width: 4.8rem; overflow-wrap: anywhere; }
  .pictures { grid-template-columns: 1fr 1fr 1fr; }
  .note { print-color-adjust: exact; }
  figure, tr, dd, .note { break-inside: avoid; }
  h2, h3, dt { break-after: avoid; }
}
""".strip()


def write(
    folder: str | os.PathLike, results: Mapping, curves: Mapping[tuple[str, str, str], tuple[np.ndarray, np.ndarray]]
) -> None:
    """Writes metrics.json, roc.png, det.png, histogram-<list>.png per list, report.md and report.html, each of them
    whole or not at all.

    Args:
      folder: made if it is missing.
      results: what is reported, ready for json.dump; see the head of this file.
      curves: (list, protocol, normalisation) to scores (M,) and labels (M,), for every system in `results`.

    Raises:
      ValueError: two lists of one name, a system without scores, or a number in `results` that is not finite.
    """
    names = [entry["name"] for entry in results["lists"]]
    if len(set(names)) < len(names):
        raise ValueError(f"Expected lists of different names. Received {', '.join(names)}.")
    missing = [key for pair in _systems(results) if (key := _key(*pair)) not in curves]
    if missing:
        raise ValueError(f"Expected the scores of every system. Received none of {missing[0]}.")
    texts = {"metrics.json": json.dumps(results, indent=2, allow_nan=False) + "\n"}

    folder = Path(folder)
    blocks = _blocks(results, _pictures(folder, results, curves))
    texts |= {"report.md": _markdown(blocks), "report.html": _html(blocks, folder)}
    for name, text in texts.items():
        with replacing(folder / name) as file:
            file.write(text)


def main_table(results: Mapping) -> str:
    """The main table, with its notes below, as aligned plain text without a line break at its end."""
    _, align, head, rows = _main_table(results)
    rows = [[_clean(cell) for cell in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    ]
    notes = [_clean(text) for _, text in _notes(results)]
    return "\n".join([*lines, *([""] if notes else []), *notes])


# --- the page as blocks ------------------------------------------------------------------------------------


def _blocks(results: Mapping, pictures: list[tuple[str, str]]) -> list[tuple]:
    blocks = [
        ("heading", 1, results["title"]),
        ("items", _tested(results)),
        _lists_table(results),
        ("heading", 2, "Results"),
        *[("note", text) for _, text in _notes(results)],
        _main_table(results),
        ("heading", 2, "Pictures"),
        ("pictures", pictures),
        ("heading", 2, "Operating points"),
        ("text", "What is decided rightly and wrongly where trials are accepted from a threshold on."),
        _points_table(results),
    ]
    if any(system["calibration"] for _, system in _systems(results)):
        text = (
            "llr = slope · score + offset is the natural logarithm of how much likelier the recordings are from one "
            "speaker than from two. The threshold is the score of llr 0. actual DCF(p) is the detection cost of "
            "decisions by the llr alone, where a share p of the trials are targets: minDCF(p), plus what calibration "
            "loses."
        )
        blocks += [("heading", 2, "Calibration"), ("text", text), _calibration_table(results)]
    for entry in results["lists"]:
        blocks += _breakdown_blocks(entry)
    return [
        *blocks,
        ("heading", 2, "Glossary"),
        ("items", GLOSSARY),
        ("heading", 2, "Made by"),
        ("code", results["command"]),
    ]


def _tested(results: Mapping) -> list[tuple[str, str]]:
    trained = results["training_speakers"]
    items = [
        ("Encoder", f"{results['encoder']} (SHA-256 begins with {results['fingerprint'][:12]})"),
        ("Trained on", "speakers that are not known" if trained is None else f"{trained:,} speakers"),
        ("Score", _score_name(results)),
    ]
    if cohort := results["cohort"]:
        text = f"{cohort['speakers']:,} speakers of {cohort['source']}; as-norm takes the {cohort['top']:,} nearest"
        items.append(("Cohort", text))
    if development := results["development"]:
        size = f"{development['trials']:,} trials, {development['speakers']:,} speakers"
        items.append(("Calibration", f"fitted on {development['trial_list']} ({size})"))
    return [*items, ("Date", results["date"]), ("Code", results["revision"] or "revision not known")]


def _notes(results: Mapping) -> list[tuple[list[str], str]]:
    """What has to be read beside the EERs: names of the lists that it concerns, and a sentence."""
    notes = []
    if results["training_speakers"] is None:
        text = (
            "It is not known which speakers this encoder was trained on. If some of them are in the test, its EER is "
            "lower than that of strangers."
        )
        notes.append(([entry["name"] for entry in results["lists"]], "† " + text))
    for entry in results["lists"]:
        if entry["note"]:
            notes.append(([entry["name"]], f"† {entry['name']}: {entry['note']}"))
    if results["development"] and results["development"]["note"]:
        notes.append(([], f"Development list of the calibration: {results['development']['note']}"))
    return notes


def _systems(results: Mapping) -> list[tuple[Mapping, Mapping]]:
    """Of every system, in order, the list that it was tested on and its numbers."""
    return [(entry, system) for entry in results["lists"] for system in entry["systems"]]


def _key(entry: Mapping, system: Mapping) -> tuple[str, str, str]:
    return entry["name"], system["protocol"], system["normalisation"]


def _names(entry: Mapping, system: Mapping) -> list[str]:
    """The first three columns of tables that have a row per system."""
    return [entry["name"], PROTOCOLS[system["protocol"]], system["normalisation"]]


def _score_name(results: Mapping) -> str:
    return {"cosine": "cosine similarity", "euclidean": "minus the Euclidean distance"}[results["distance"]]


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.2f} %"


def _interval(ends: tuple[float, float] | None) -> str:
    return "–" if ends is None else f"{100 * ends[0]:.2f}–{100 * ends[1]:.2f} %"


def _four(number: float | None) -> str:
    return "–" if number is None else f"{number:.4f}"


def _lists_table(results: Mapping) -> tuple:
    unknown = results["training_speakers"] is None
    rows = [
        [
            entry["name"],
            *(f"{entry['systems'][0][key]:,}" for key in ("trials", "targets", "nontargets")),
            f"{entry['recordings']:,}",
            f"{entry['speakers']:,}",
            "–" if unknown else f"{entry['training_speakers_among_them']:,}",
            entry["trial_list"],
        ]
        for entry in results["lists"]
    ]
    head = ["list", "trials", "targets", "non-targets", "recordings", "speakers", "of them trained on", "trial list"]
    return "table", "<>>>>>><", head, rows


def _main_table(results: Mapping) -> tuple:
    systems = _systems(results)
    marked = {name for names, _ in _notes(results) for name in names}
    calibrated = any(system["calibration"] for _, system in systems)
    p_targets = [f"{cost['p_target']:g}" for cost in systems[0][1]["detection_costs"]]
    head = ["list", "protocol", "normalisation", "EER", "95 % interval", *(f"minDCF({p})" for p in p_targets)]
    head += [f"C_det({p_targets[0]})", "AUC", *(["C_llr", "min C_llr"] if calibrated else [])]
    rows = []
    for entry, system in systems:
        name, protocol, normalisation = _names(entry, system)
        costs = system["detection_costs"]
        row = [name + (" †" if name in marked else ""), protocol, normalisation, _percent(system["eer"])]
        row += [_interval(system["eer_interval"]), *(_four(cost["min_dcf"]) for cost in costs)]
        row += [f"{costs[0]['min_c_det']:.5f}", _four(system["auc"])]
        if calibrated:
            fitted = system["calibration"]
            row += [_four(fitted and fitted["cllr"]), _four(system["min_cllr"])]
        rows.append(row)
    return "table", "<<<" + ">" * (len(head) - 3), head, rows


def _point_name(name: str, system: Mapping) -> str:
    first = system["detection_costs"][0]["p_target"]  # whose threshold is the operating point "min_dcf"
    return {"eer": "EER", "min_dcf": f"minDCF({first:g})", "chosen": "chosen"}[name]


def _points_table(results: Mapping) -> tuple:
    shares = ("accuracy", "precision", "recall", "miss_rate", "false_alarm_rate")
    counts = ("true_positives", "false_positives", "true_negatives", "false_negatives")
    rows = [
        [
            *_names(entry, system),
            _point_name(name, system),
            _four(point["threshold"]),
            *(_percent(point[key]) for key in shares),
            *(f"{point[key]:,}" for key in counts),
        ]
        for entry, system in _systems(results)
        for name, point in system["operating_points"].items()
    ]
    head = ["list", "protocol", "normalisation", "threshold of", "threshold", "accuracy", "precision", "recall"]
    head += ["misses", "false alarms", "TP", "FP", "TN", "FN"]
    return "table", "<<<<" + ">" * (len(head) - 4), head, rows


def _calibration_table(results: Mapping) -> tuple:
    systems = [(entry, system, system["calibration"]) for entry, system in _systems(results) if system["calibration"]]
    rows = [
        [
            *_names(entry, system),
            *(_four(fitted[key]) for key in ("slope", "offset", "threshold", "cllr")),
            _four(system["min_cllr"]),
            *(_four(cost["dcf"]) for cost in fitted["actual_dcf"]),
        ]
        for entry, system, fitted in systems
    ]
    head = ["list", "protocol", "normalisation", "slope", "offset", "threshold", "C_llr", "min C_llr"]
    head += [f"actual DCF({cost['p_target']:g})" for cost in systems[0][2]["actual_dcf"]]
    return "table", "<<<" + ">" * (len(head) - 3), head, rows


def _breakdown_blocks(entry: Mapping) -> list[tuple]:
    found, system = entry["breakdown"], entry["systems"][0]
    kinds = {"gender": "gender", "session": "session", "duration": "shorter side"}
    groups = [(name, group) for key, name in kinds.items() for group in found[key]]
    _, protocol, normalisation = _names(entry, system)
    text = (
        f"Scores of {protocol}, normalisation {normalisation}. Trials are accepted from {_four(found['threshold'])} on."
    )
    blocks = [("heading", 2, f"Errors on {entry['name']}"), ("text", text)]
    if groups:
        text = (
            "An EER needs both kinds of trials. So non-targets of the same gender and across genders are each set "
            "against all targets of known gender, and targets of the same and of another session each against all "
            "non-targets."
        )
        rows = [[name, group["name"], *_rates(group, "eer")] for name, group in groups]
        head = ["by", "trials", "targets", "non-targets", "EER", "misses", "false alarms"]
        blocks += [("text", text), ("table", "<<>>>>>", head, rows)]
    if found["worst_speakers"]:
        rows = [[speaker["speaker"], *_rates(speaker)] for speaker in found["worst_speakers"]]
        head = ["speaker", "targets", "non-targets", "misses", "false alarms"]
        blocks += [("heading", 3, "Speakers with the most errors"), ("table", "<>>>>", head, rows)]
    listen = {
        "missed_targets": "Missed targets with the lowest scores, to listen to",
        "accepted_nontargets": "Accepted non-targets with the highest scores, to listen to",
    }
    for key, title in listen.items():
        if found[key]:
            rows = [[_four(trial["score"]), trial["enrol"], trial["test"]] for trial in found[key]]
            blocks += [("heading", 3, title), ("table", "><<", ["score", "enrol", "test"], rows)]
    return blocks


def _rates(group: Mapping, *more: str) -> list[str]:
    counts = [f"{group[key]:,}" for key in ("targets", "nontargets")]
    return counts + [_percent(group[key]) for key in (*more, "miss_rate", "false_alarm_rate")]


# --- the pictures ------------------------------------------------------------------------------------------


def _pictures(folder: Path, results: Mapping, curves: Mapping) -> list[tuple[str, str]]:
    """Draws them; (file name, caption) of each."""
    title = _clean(results["title"])
    shown = _shown(results)
    columns = [_names(entry, system) for entry, system in shown]
    columns = [[*names[:2], "not normalised" if names[2] == "none" else names[2]] for names in columns]
    # Of list, protocol and normalisation a legend names what differs, or the list if nothing does.
    telling = [i for i in range(3) if len({names[i] for names in columns}) > 1] or [0]
    drawn = [
        (_clean(", ".join(names[i] for i in telling)), *curves[_key(entry, system)])
        for names, (entry, system) in zip(columns, shown, strict=True)
    ]
    count = len(_systems(results))
    share = f" ({len(drawn)} of {count} systems)" if len(drawn) < count else ""
    plots.roc(drawn, folder / "roc.png", f"ROC: {title}")
    plots.det(drawn, folder / "det.png", f"DET: {title}")
    pictures = [
        ("roc.png", f"ROC{share}. The dots are the EERs."),
        ("det.png", f"DET{share}. Its axes magnify small error rates."),
    ]

    for entry in results["lists"]:
        system = entry["systems"][0]
        name, protocol, normalisation = _names(entry, system)
        thresholds = {"EER": system["eer_threshold"]}
        thresholds |= {f"minDCF({cost['p_target']:g})": cost["threshold"] for cost in system["detection_costs"]}
        if "chosen" in system["operating_points"]:
            thresholds["chosen"] = system["operating_points"]["chosen"]["threshold"]
        if system["calibration"]:
            thresholds["calibrated"] = system["calibration"]["threshold"]
        xlabel = _score_name(results) + ("" if normalisation == "none" else f" after {normalisation}")
        file = _histogram_file(name, [other for other, _ in pictures])
        caption = f"Scores on {name}, {protocol}, and thresholds."
        plots.histogram(*curves[_key(entry, system)], thresholds, folder / file, f"{_clean(name)}: {protocol}", xlabel)
        pictures.append((file, caption))
    return pictures


def _shown(results: Mapping) -> list[tuple[Mapping, Mapping]]:
    """The systems in ROC and DET: all; or if there are too many, of each list the first few."""
    ranks = [(rank, place) for place, entry in enumerate(results["lists"]) for rank in range(len(entry["systems"]))]
    chosen = sorted((place, rank) for rank, place in sorted(ranks)[:CURVES_IN_PICTURE])
    return [(results["lists"][place], results["lists"][place]["systems"][rank]) for place, rank in chosen]


def _histogram_file(name: str, taken: list[str]) -> str:
    """A file name for any list's name, whatever stands in that."""
    stem = "histogram-" + re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:80]
    number = 1
    while (file := f"{stem}.png" if number == 1 else f"{stem}-{number}.png") in taken:
        number += 1
    return file


# --- the two writers ---------------------------------------------------------------------------------------


def _clean(text: str) -> str:
    """Text on one line that every terminal, font and UTF-8 file can take: a file's name may hold anything."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _md(text: str) -> str:
    text = _clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"[\\`*\[\]|~$#]", r"\\\g<0>", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", text)  # inside a word an underscore is one


def _markdown(blocks: list[tuple]) -> str:
    return "\n\n".join(_markdown_block(*block) for block in blocks) + "\n"


def _markdown_block(kind: str, *content) -> str:
    if kind == "heading":
        level, text = content
        return f"{'#' * level} {_md(text)}"
    if kind == "text":
        return _md(content[0])
    if kind == "note":
        return f"> **Note** {_md(content[0])}"
    if kind == "code":
        text = "\n".join(map(_clean, content[0].splitlines()))
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        return f"{fence}\n{text}\n{fence}"
    if kind == "items":
        return "\n".join(f"- **{_md(name)}** {_md(text)}" for name, text in content[0])
    if kind == "pictures":
        return "\n\n".join(f"![{_md(caption)}]({quote(file)})" for file, caption in content[0])
    align, head, rows = content
    sides = [{"<": ":---", ">": "---:"}[side] for side in align]
    rows = [[_md(cell) for cell in row] for row in [head, *rows]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [rows[0], sides, *rows[1:]])


def _h(text: str) -> str:
    return html.escape(_clean(text))


def _html(blocks: list[tuple], folder: Path) -> str:
    body = "\n".join(_html_block(folder, *block) for block in blocks)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_h(blocks[0][2])}</title>
<style>
{STYLE}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def _html_block(folder: Path, kind: str, *content) -> str:
    if kind == "heading":
        level, text = content
        return f"<h{level}>{_h(text)}</h{level}>"
    if kind == "text":
        return f"<p>{_h(content[0])}</p>"
    if kind == "note":
        return f'<p class="note">{_h(content[0])}</p>'
    if kind == "code":
        return f"<pre>{chr(10).join(map(_h, content[0].splitlines()))}</pre>"
    if kind == "items":
        return "<dl>\n" + "\n".join(f"<dt>{_h(name)}</dt><dd>{_h(text)}</dd>" for name, text in content[0]) + "\n</dl>"
    if kind == "pictures":
        figures = []
        for file, caption in content[0]:
            data = base64.b64encode((folder / file).read_bytes()).decode()
            image = f'<img src="data:image/png;base64,{data}" alt="{_h(caption)}">'
            figures.append(f"<figure>{image}<figcaption>{_h(caption)}</figcaption></figure>")
        return '<div class="pictures">\n' + "\n".join(figures) + "\n</div>"
    align, head, rows = content
    sides = [' class="n"' if side == ">" else "" for side in align]
    lines = ["<tr>" + "".join(f"<th{side}>{_h(cell)}</th>" for side, cell in zip(sides, head, strict=True)) + "</tr>"]
    for row in rows:
        cells = "".join(f"<td{side}>{_h(cell)}</td>" for side, cell in zip(sides, row, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    table = f"<thead>\n{lines[0]}\n</thead>\n<tbody>\n" + "\n".join(lines[1:]) + "\n</tbody>"
    return f'<div class="scroll"><table>\n{table}\n</table></div>'
