from pathlib import Path

import absl.flags
import pytest
from absl.testing import flagsaver

from tools import race
from vggvox_tf import train


@pytest.mark.parametrize("row", race.ROWS)
def test_every_row_is_valid_flags_of_its_own(row, monkeypatch):
    monkeypatch.chdir(Path(race.__file__).parent.parent)
    stages = race.ROWS[row]
    assert sum(share for share, _ in stages) == 1
    for number, (_, own) in enumerate(stages):
        given = race.stage_flags(own, first=number == 0)
        assert set(own) - {"--speeds=", "--nospeeds_are_speakers", "--mel_bands=0"} <= set(given)
        init = ["--init_from=x"] if number else []
        with flagsaver.flagsaver():
            absl.flags.FLAGS(["train", *given, *init, "--corpus=c", "--run=r", "--trials=t", "--time_budget=1"])
            train.check_flags()


def test_rows_differ():
    commands = {tuple(tuple(own) for _, own in stages) for stages in race.ROWS.values()}
    assert len(commands) == len(race.ROWS)


def test_rows_share_the_run_they_begin_with(monkeypatch):
    """Trained once: the classifier before every pair loss, by the first row that has it."""
    monkeypatch.setattr(race, "FLAGS", type("Flags", (), {"steps": None, "minutes": 20.0, "output": "out"}))
    owner, other = (race.stages_of(f"softmax-then-{name}", seed=1) for name in ("contrastive-hard", "msml"))
    assert [str(path) for path in owner] == [
        "out/softmax-then-contrastive-hard-20min-seed1/stage1",
        "out/softmax-then-contrastive-hard-20min-seed1/stage2",
    ]
    assert other[0] == owner[0] and str(other[1]) == "out/softmax-then-msml-20min-seed1/stage2"
    assert race.stages_of("softmax", seed=1) == [Path("out/softmax-20min-seed1/stage1")]  # all of the time, not 3/4


def test_names_of_flags():
    names = [race.name_of(flag) for flag in ("--loss=aam", "--nospeeds_are_speakers", "--noise=x", "--noise_share=1")]
    assert names == ["loss", "speeds_are_speakers", "noise", "noise_share"]


def test_table_by_hand(monkeypatch):
    """Two seeds of 4 and 6 %: mean 5; the better row comes first."""
    monkeypatch.setattr(race, "FLAGS", type("Flags", (), {"trials": ["a/vox1.txt", "b/libri.txt"]}))
    results = {
        "worse": {"0": {"eers": [0.08, 0.1], "utterances": 100}},
        "better": {"0": {"eers": [0.04, 0.2], "utterances": 64}, "1": {"eers": [0.06, 0.2], "utterances": 64}},
    }
    assert race.markdown(results).splitlines() == [
        "| row | a/vox1 EER % | b/libri EER % | seeds | utterances |",
        "|---|---|---|---|---|",
        "| better | 5.00 (4.00–6.00) | 20.00 (20.00–20.00) | 2 | 64 |",
        "| worse | 8.00 | 10.00 | 1 | 100 |",
    ]
