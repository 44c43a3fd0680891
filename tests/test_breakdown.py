"""Where errors lie: lists made by hand, and random ones against loops over trials."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vggvox_tf import metrics
from vggvox_tf.breakdown import breakdown
from vggvox_tf.trials import Trials, read_trials, speaker_of

# Two women, a man and somebody; a/1 and a/2 are two sessions of a. Decided at 0.5: two misses, two false alarms.
LIST = """\
1 a/1/x a/1/y
1 a/1/x a/2/z
1 b/1/x b/2/y
1 m/1/x m/2/y
0 a/1/x b/1/x
0 a/1/y b/2/y
0 a/1/x m/1/x
0 b/1/x m/2/y
0 m/1/x u/1/x
"""
SCORES = np.array([0.9, 0.4, 0.8, 0.3, 0.7, 0.2, 0.1, 0.35, 0.6])
GENDERS = {"a": "f", "b": "f", "m": "m", "somebody else": "m"}


def trials_of(text, folder):
    (folder / "trials.txt").write_text(text)
    return read_trials(folder / "trials.txt")


def break_down(text, folder, scores=SCORES, threshold=0.5, genders=GENDERS, seconds=math.nan):
    trials = trials_of(text, folder)
    lengths = np.broadcast_to(np.asarray(seconds, np.float32), trials.paths.shape)
    return breakdown(trials, scores, threshold, genders, lengths)


def group(name, targets, nontargets, eer, miss_rate, false_alarm_rate):
    return {
        "name": name,
        "targets": targets,
        "nontargets": nontargets,
        "eer": eer and pytest.approx(eer),
        "miss_rate": miss_rate and pytest.approx(miss_rate),
        "false_alarm_rate": false_alarm_rate and pytest.approx(false_alarm_rate),
    }


def test_gender_by_hand(tmp_path):
    """Targets, all of known gender: 0.9 0.8 0.4 0.3, of which 0.4 and 0.3 are missed.

    Same gender: non-targets 0.7 (accepted) and 0.2. Falling: 0.9 0.8 target, 0.7 non, 0.4 0.3 target: after 0.7
    P_miss = P_fa = 1/2. Cross gender: 0.1 and 0.35, none accepted; after 0.4 (1/4, 0), after 0.35 (1/4, 1/2): the
    crossing is at 1/4. Female: targets 0.9 0.4 0.8, non-targets 0.7 0.2; after 0.7 (1/3, 1/2): 1/3. Male: one target,
    missed. m and u: 0.6, accepted."""
    assert break_down(LIST, tmp_path)["gender"] == [
        group("same gender", 4, 2, 0.5, 0.5, 0.5),
        group("cross gender", 4, 2, 0.25, 0.5, 0.0),
        group("female", 3, 2, 1 / 3, 1 / 3, 0.5),
        group("male", 1, 0, None, 1.0, None),
        group("unknown gender", 0, 1, None, None, 1.0),
    ]


def test_sessions_by_hand(tmp_path):
    """Within a session: target 0.9, above all non-targets. Across: 0.8 0.4 0.3 against 0.7 0.6 0.35 0.2 0.1: after
    0.6 (2/3, 2/5), after 0.4 (1/3, 2/5): the crossing is at 2/5."""
    assert break_down(LIST, tmp_path)["session"] == [
        group("same session", 1, 5, 0.0, 0.0, 0.4),
        group("other session", 3, 5, 0.4, 2 / 3, 0.4),
    ]


def test_lengths_by_hand(tmp_path):
    """Sorted paths: a/1/x a/1/y a/2/z b/1/x b/2/y m/1/x m/2/y u/1/x, with 1 2 3 4.1 5 6 7 s and NaN. The shorter
    sides, in the order of the list, are 1 1 4.1 6 1 2 1 4.1 and unknown; their quartiles 1, 1.5 and 4.1. Nothing is
    under 1, so "under" begins at 1.5: of targets 0.9 0.4, of non-targets 0.7 0.1. From 4.1 on: 0.8, 0.3; 0.35."""
    found = break_down(LIST, tmp_path, seconds=[1, 2, 3, 4.1, 5, 6, 7, math.nan])["duration"]
    assert found == [
        group("under 1.5 s", 2, 2, 0.5, 0.5, 0.5),
        group("1.5–4.1 s", 0, 1, None, None, 0.0),
        group("over 4.1 s", 2, 1, 0.5, 0.5, 0.0),
        group("unknown length", 0, 1, None, None, 1.0),
    ]


def test_one_length_is_one_group(tmp_path):
    found = break_down(LIST, tmp_path, seconds=3)["duration"]
    assert [(g["name"], g["targets"], g["nontargets"]) for g in found] == [("all of known length", 4, 5)]


def test_worst_speakers_by_hand(tmp_path):
    """m: its target is missed; of its non-targets (0.1, 0.35, 0.6) one is accepted: mean (1 + 1/3) / 2 = 2/3.
    u: one non-target, accepted, and no targets: 1. a: 1 of 2 targets, 1 of 3 non-targets: 5/12. b: none of 1, and 1 of
    3: 1/6."""
    keys = ("speaker", "targets", "nontargets", "miss_rate", "false_alarm_rate")
    assert [tuple(s[key] for key in keys) for s in break_down(LIST, tmp_path)["worst_speakers"]] == [
        ("u", 0, 1, None, 1.0),
        ("m", 1, 3, 1.0, pytest.approx(1 / 3)),
        ("a", 2, 3, 0.5, pytest.approx(1 / 3)),
        ("b", 1, 3, 0.0, pytest.approx(1 / 3)),
    ]


def test_worst_trials_by_hand(tmp_path):
    found = break_down(LIST, tmp_path)
    assert found["missed_targets"] == [
        {"score": 0.3, "enrol": "m/1/x", "test": "m/2/y"},
        {"score": 0.4, "enrol": "a/1/x", "test": "a/2/z"},
    ]
    assert found["accepted_nontargets"] == [
        {"score": 0.7, "enrol": "a/1/x", "test": "b/1/x"},
        {"score": 0.6, "enrol": "m/1/x", "test": "u/1/x"},
    ]


def test_a_score_at_the_threshold_is_accepted(tmp_path):
    found = break_down("1 a/x a/y\n0 a/x b/x\n", tmp_path, np.array([0.5, 0.5]))
    assert found["missed_targets"] == []
    assert [trial["score"] for trial in found["accepted_nontargets"]] == [0.5]


def test_no_errors(tmp_path):
    found = break_down(LIST, tmp_path, np.array([2, 2, 2, 2, 1, 1, 1, 1, 1.0]), threshold=1.5)
    assert found["worst_speakers"] == found["missed_targets"] == found["accepted_nontargets"] == []
    assert {g["eer"] for g in found["session"]} == {0.0}


def test_nothing_known(tmp_path):
    """<speaker>/<file> names no session; one recording in a session does not make the others' known."""
    found = break_down("1 a/x a/y\n0 a/x b/x\n", tmp_path, np.array([1, 0]), genders={})
    assert found["gender"] == found["session"] == found["duration"] == []
    found = break_down("1 a/x a/y\n0 a/x b/1/x\n", tmp_path, np.array([1, 0]), genders={"b": "f"})
    assert [g["name"] for g in found["gender"]] == ["unknown gender"]
    assert found["session"] == [group("unknown session", 1, 1, 0.0, 0.0, 0.0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": SCORES[1:]}, r"9 finite scores.*\(8,\)"),
        ({"scores": np.where(SCORES > 0.8, np.nan, SCORES)}, "finite scores"),
        ({"threshold": math.nan}, "finite threshold"),
    ],
)
def test_bad_input_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        break_down(LIST, tmp_path, **change)


def test_bad_lengths_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"8 lengths.*\(9,\)"):
        breakdown(trials_of(LIST, tmp_path), SCORES, 0.5, GENDERS, np.ones(9))


# --- the same by loops -------------------------------------------------------------------------------------


def random_list(seed, count=600):
    rng = np.random.default_rng(seed)
    names = [f"top/s{s}/{'ab'[i % 2]}/{i}" if s % 5 else f"s{s}/{i}" for s in range(13) for i in range(6)]
    paths = np.array(sorted(names), object)
    enrol = rng.integers(len(paths), size=count)
    test = np.where(rng.random(count) < 0.5, rng.integers(len(paths), size=count), enrol // 6 * 6 + enrol % 5)
    labels = np.array([speaker_of(paths[e]) == speaker_of(paths[t]) for e, t in zip(enrol, test, strict=True)])
    scores = np.round(rng.normal(size=count) + labels, 1)  # with ties
    genders = {f"s{s}": "mf"[s % 2] for s in range(11)}
    seconds = rng.uniform(2, 9, size=len(paths)).astype(np.float32)
    seconds[::9] = math.nan
    return Trials(Path("."), paths, enrol.astype(np.int32), test.astype(np.int32), labels), scores, genders, seconds


def slow_group(name, chosen):
    """`chosen`: (label, score, accepted) of every trial of the group."""
    targets = [accepted for label, _, accepted in chosen if label]
    nontargets = [accepted for label, _, accepted in chosen if not label]
    labels, scores = [label for label, _, _ in chosen], [score for _, score, _ in chosen]
    return {
        "name": name,
        "targets": len(targets),
        "nontargets": len(nontargets),
        "eer": metrics.eer(scores, labels)[0] if targets and nontargets else None,
        "miss_rate": targets.count(False) / len(targets) if targets else None,
        "false_alarm_rate": nontargets.count(True) / len(nontargets) if nontargets else None,
    }


def slow_breakdown(trials, scores, threshold, genders, seconds):
    rows = []
    for e, t, label, score in zip(trials.enrol, trials.test, trials.labels, scores, strict=True):
        sides = [trials.paths[e], trials.paths[t]]
        pair = [genders.get(speaker_of(side), "?") for side in sides]
        sessions = [side.rsplit("/", 1)[0] if side.count("/") > 1 else None for side in sides]
        length = min(seconds[e], seconds[t]) if seconds[e] == seconds[e] and seconds[t] == seconds[t] else None
        decided = bool(label), float(score), bool(score >= threshold)
        rows.append((decided, pair, sessions, length and round(float(length), 3), sides))

    def groups(rules):
        found = [slow_group(name, [row[0] for row in rows if rule(*row)]) for name, rule in rules.items()]
        return [group(**g) for g in found if g["targets"] + g["nontargets"]]

    lengths = sorted(length for _, _, _, length, _ in rows if length)
    a, b, c = (round(float(np.quantile(lengths, q)), 1) for q in (0.25, 0.5, 0.75))
    speakers = []
    for name in sorted({speaker_of(path) for path in trials.paths}):
        own = slow_group(name, [row[0] for row in rows if name in map(speaker_of, row[4])])
        rates = [own[key] for key in ("miss_rate", "false_alarm_rate") if own[key] is not None]
        speakers.append((-sum(rates) / max(len(rates), 1), name))
    missed = [(score, sides) for (label, score, accepted), *_, sides in rows if label and not accepted]
    accepted = [(score, sides) for (label, score, accepted), *_, sides in rows if accepted and not label]
    return {
        "gender": groups(
            {
                "same gender": lambda d, g, s, n, p: "?" not in g and (d[0] or g[0] == g[1]),
                "cross gender": lambda d, g, s, n, p: "?" not in g and (d[0] or g[0] != g[1]),
                "female": lambda d, g, s, n, p: g == ["f", "f"],
                "male": lambda d, g, s, n, p: g == ["m", "m"],
                "unknown gender": lambda d, g, s, n, p: "?" in g,
            }
        ),
        "session": groups(
            {
                "same session": lambda d, g, s, n, p: not d[0] or (None not in s and s[0] == s[1]),
                "other session": lambda d, g, s, n, p: not d[0] or (None not in s and s[0] != s[1]),
                "unknown session": lambda d, g, s, n, p: not d[0] or None in s,
            }
        ),
        "duration": groups(
            {
                f"under {a:.1f} s": lambda d, g, s, n, p: n is not None and n < a,
                f"{a:.1f}–{b:.1f} s": lambda d, g, s, n, p: n is not None and a <= n < b,
                f"{b:.1f}–{c:.1f} s": lambda d, g, s, n, p: n is not None and b <= n < c,
                f"over {c:.1f} s": lambda d, g, s, n, p: n is not None and c <= n,
                "unknown length": lambda d, g, s, n, p: n is None,
            }
        ),
        "speakers": [name for rate, name in sorted(speakers) if rate < 0][:10],
        "missed": sorted(missed, key=lambda item: item[0])[:10],
        "accepted": sorted(accepted, key=lambda item: -item[0])[:10],
    }


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_loops_over_trials(seed):
    trials, scores, genders, seconds = random_list(seed)
    threshold = metrics.eer(scores, trials.labels)[1]
    found = breakdown(trials, scores, threshold, genders, seconds)
    expected = slow_breakdown(trials, scores, threshold, genders, seconds)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["threshold"] == threshold
    for key in ("gender", "session", "duration"):
        assert found[key] == expected[key], key
    assert [speaker["speaker"] for speaker in found["worst_speakers"]] == expected["speakers"]
    for key, name in (("missed", "missed_targets"), ("accepted", "accepted_nontargets")):
        assert [(t["score"], [t["enrol"], t["test"]]) for t in found[name]] == expected[key]
