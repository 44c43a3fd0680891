import json
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


def test_the_finer_resnet_is_the_recipe_in_configs(monkeypatch):
    monkeypatch.chdir(Path(race.__file__).parent.parent)
    lines = Path("configs/best_small.cfg").read_text().splitlines()
    ((_, own),) = race.ROWS["finer-se-resnet34-muon"]
    assert [line for line in lines if line.startswith("--")] == [f"--flagfile={race.BASE}", *own]


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


EERS = {"a/t.txt": 0.03, "b/u.txt": 0.05, "elsewhere/a/t.txt": 0.07}  # what the tests in `ran` come to


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """What race would have run, as (module, flags that name files and speeds); what it reads is written."""
    flags = {
        "steps": 100, "output": str(tmp_path), "noise": None, "reverberation": None, "common": [], "corpus": "c",
        "corpus_root": None, "trials": ["a/t.txt"], "trials_roots": ["r"],
    }  # fmt: skip
    monkeypatch.setattr(race, "FLAGS", type("Flags", (), flags))
    monkeypatch.chdir(Path(race.__file__).parent.parent)
    ran = []

    def run(module, *given):
        shown = ("--run=", "--encoder", "--output=", *(["--speeds="] if module == "tools.fuse_encoders" else []))
        ran.append((module, [flag for flag in given if flag.startswith(shown)]))
        if module == "vggvox_tf.train":  # ten epochs of ten steps
            (stage := Path(ran[-1][1][-1].split("=")[1])).mkdir(parents=True, exist_ok=True)
            (stage / "flags.cfg").write_text("--epochs=10\n--steps_per_epoch=10\n--batch_size=64\n")
        elif module == "vggvox_tf.evaluate":
            (output := Path(ran[-1][1][-1].split("=")[1])).mkdir(parents=True, exist_ok=True)
            (trials,) = [flag.split("=")[1] for flag in given if flag.startswith("--trials=")]
            entry = {"trial_list": trials, "systems": [{"eer": EERS[trials]}]}
            (output / "metrics.json").write_text(json.dumps({"lists": [entry]}))

    monkeypatch.setattr(race, "run", run)
    return ran


@pytest.mark.parametrize("heard, speeds", [("", "1"), ("-heard-at-five-speeds", "0.8,0.9,1,1.1,1.2")])
def test_a_fused_row_trains_its_parts_and_tests_what_the_tool_makes_of_them(ran, tmp_path, heard, speeds):
    assert race.race(f"vggm-and-thin-se-resnet34{heard}", 0) == {"eers": {"a/t.txt": 0.03}, "utterances": 2 * 6400}
    vggm, thin = f"{tmp_path}/vggm-100steps-seed0/stage1", f"{tmp_path}/thin-se-resnet34-100steps-seed0/stage1"
    parts = f"{vggm}/encoder.keras,{thin}/encoder.keras"
    together = f"{tmp_path}/vggm-and-thin-se-resnet34{heard}-100steps-seed0"
    assert ran == [
        ("vggvox_tf.train", ["--encoder=vggm", f"--run={vggm}"]),
        ("vggvox_tf.train", ["--encoder=resnet34", f"--run={thin}"]),
        ("tools.fuse_encoders", [f"--encoders={parts}", f"--speeds={speeds}", f"--output={together}/fused"]),
        ("vggvox_tf.evaluate", [f"--encoder={together}/fused/encoder.keras", f"--output={together}/test-a-t"]),
    ]
    assert all(part in race.ROWS for parts, _ in race.FUSED.values() for part in parts)


def test_a_row_that_is_fused_with_itself_is_trained_with_the_next_seed(ran, tmp_path):
    race.race("two-thin-se-resnet34-heard-at-five-speeds", "2")
    stages = [f"{tmp_path}/thin-se-resnet34-100steps-seed{seed}/stage1" for seed in (2, 3)]
    assert [given[-1] for module, given in ran if module == "vggvox_tf.train"] == [f"--run={stage}" for stage in stages]
    assert ran[2][1][0] == f"--encoders={stages[0]}/encoder.keras,{stages[1]}/encoder.keras"


def test_a_list_is_tested_once_and_another_of_its_name_again(ran, monkeypatch):
    for lists in (["a/t.txt"], ["b/u.txt", "a/t.txt"], ["elsewhere/a/t.txt"]):
        monkeypatch.setattr(race.FLAGS, "trials", lists)
        monkeypatch.setattr(race.FLAGS, "trials_roots", ["r"] * len(lists))
        assert race.race("vggm", 0)["eers"] == {trials: EERS[trials] for trials in lists}
    outputs = [Path(given[-1].split("=")[1]).name for module, given in ran if module == "vggvox_tf.evaluate"]
    assert outputs == ["test-a-t", "test-b-u", "test-a-t"]


def test_a_table_keeps_the_rows_that_another_core_adds_meanwhile(monkeypatch, tmp_path):
    flags = {
        "output": str(tmp_path), "rows": ["vggm"], "seeds": ["0"], "common": [], "trials": ["a/b.txt"],
        "trials_roots": ["a"],
    }  # fmt: skip
    monkeypatch.setattr(race, "FLAGS", type("Flags", (), flags))
    row = {"eers": {"a/b.txt": 0.03}, "utterances": 64}

    def while_the_other_core_finishes(name, seed):
        (tmp_path / "race.json").write_text(json.dumps({"softmax": {"0": row}}))
        return row

    drawn = []
    monkeypatch.setattr(race, "race", while_the_other_core_finishes)
    monkeypatch.setattr(race.plots, "eers", lambda *given: drawn.append(given[:3]))
    race.main(["race"])
    assert json.loads((tmp_path / "race.json").read_text()) == {"softmax": {"0": row}, "vggm": {"0": row}}
    assert drawn == [({"softmax": [(0.03,)], "vggm": [(0.03,)]}, ["a/b"], tmp_path / "race.png")]


@pytest.mark.parametrize(
    "common, error",
    [
        ("--gain=3,--speeds=0.9,1", "--common: expected flags, .* in quotes.*; found 1$"),
        ('--gain=3,"--speeds=0.9,1"', "--trials_roots must have"),  # the next thing that is wrong
    ],
)
def test_common_flags_with_commas_need_quotes(monkeypatch, common, error):
    values = absl.flags.FlagValues()
    absl.flags.DEFINE_list("common", [], "", flag_values=values)
    values(["race", f"--common={common}"])
    flags = {"rows": ["vggm"], "common": values.common, "trials": ["t"], "trials_roots": []}
    monkeypatch.setattr(race, "FLAGS", type("Flags", (), flags))
    with pytest.raises(race.app.UsageError, match=error):
        race.main(["race"])


def test_names_of_flags():
    names = [race.name_of(flag) for flag in ("--loss=aam", "--nospeeds_are_speakers", "--noise=x", "--noise_share=1")]
    assert names == ["loss", "speeds_are_speakers", "noise", "noise_share"]


def test_table_by_hand(monkeypatch):
    """Two seeds of 4 and 6 %: mean 5; the better row comes first, what lacks a list is left out."""

    def run(vox1, libri, utterances):
        return {"eers": {"b/libri.txt": libri, "a/vox1.txt": vox1}, "utterances": utterances}

    monkeypatch.setattr(race, "FLAGS", type("Flags", (), {"trials": ["a/vox1.txt", "b/libri.txt"]}))
    results = {
        "worse": {"0": run(0.08, 0.1, 100)},
        "better": {"0": run(0.04, 0.2, 64), "1": run(0.06, 0.2, 64)},
        "tested-on-one-list": {"0": {"eers": {"a/vox1.txt": 0.01}, "utterances": 64}},
    }
    assert list(race.eers_of(results).items()) == [
        ("better", [(0.04, 0.06), (0.2, 0.2)]),
        ("worse", [(0.08,), (0.1,)]),
    ]
    assert race.markdown(results).splitlines() == [
        "| row | a/vox1 EER % | b/libri EER % | seeds | utterances |",
        "|---|---|---|---|---|",
        "| better | 5.00 (4.00–6.00) | 20.00 (20.00–20.00) | 2 | 64 |",
        "| worse | 8.00 | 10.00 | 1 | 100 |",
    ]
