import json

import pytest

from vggvox_tf.run import Run, RunError, training_speakers

FLAGS = {"stage": "softmax", "seed": 0, "learning_rate": 0.01}


def test_a_run_keeps_its_flags_and_what_it_ran_on(tmp_path):
    run = Run(tmp_path / "run", FLAGS)
    run.record_start(["ann", "bob"], "/device:CPU:0")
    assert (run.folder / "flags.cfg").read_text() == "--learning_rate=0.01\n--seed=0\n--stage=softmax\n"
    start = json.loads((run.folder / "starts.jsonl").read_text())
    assert start["packages"]["tensorflow"].startswith("2.") and start["python"].startswith("3.")
    assert training_speakers(run.folder / "encoder.keras") == {"ann", "bob"}
    assert training_speakers(tmp_path / "encoder.keras") is None


def test_going_on_with_other_flags_is_refused_by_name(tmp_path):
    Run(tmp_path / "run", FLAGS)
    Run(tmp_path / "run", dict(FLAGS))
    with pytest.raises(RunError, match=r"--seed was 0, is 1.*--flagfile=.*flags.cfg"):
        Run(tmp_path / "run", FLAGS | {"seed": 1})
    with pytest.raises(RunError, match=r"--width was not set, is 0\.5"):
        Run(tmp_path / "run", FLAGS | {"width": 0.5})


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is no run"):
        Run(tmp_path, FLAGS)


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    run = Run(tmp_path / "run", FLAGS)
    run.save(lambda path: path.write_text("first"), "encoder.keras")

    def half(path):
        path.write_text("sec")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save(half, "encoder.keras")
    assert (run.folder / "encoder.keras").read_text() == "first"
    assert sorted(path.name for path in run.folder.iterdir()) == ["encoder.keras", "flags.cfg"]


def test_history_is_rewound_to_the_checkpoint(tmp_path):
    run = Run(tmp_path / "run", FLAGS)
    run.rewind_history(0)
    assert run.lowest_eer() == float("inf")
    (run.folder / "history.csv").write_text("epoch,loss,val_eer\n0,3,0.2\n1,2,0.1\n2,1,0.05\n2,")
    run.rewind_history(2)
    assert run.lowest_eer() == 0.1
    assert (run.folder / "history.csv").read_text().split() == ["epoch,loss,val_eer", "0,3,0.2", "1,2,0.1"]


def test_history_of_a_run_that_an_update_gave_more_columns(tmp_path):
    run = Run(tmp_path / "run", FLAGS)
    (run.folder / "history.csv").write_text("epoch,loss,val_eer\n0,3,0.2\n")
    run.record_epoch(1, {"val_eer": 0.1, "gradient_norm": 5.0, "loss": 2.0})
    rows = (run.folder / "history.csv").read_text().split()
    assert rows == ["epoch,gradient_norm,loss,val_eer", "0,,3,0.2", "1,5.0,2.0,0.1"]
    run.rewind_history(1)
    assert run.lowest_eer() == 0.2


def test_early_stopping_by_hand(tmp_path):
    """EERs 5, 3, 4, 3 %: the best is the second, and two epochs have come since, the last of them only as good."""
    run = Run(tmp_path / "run", {})
    assert not run.has_stopped_early(1)
    for epoch, eer in enumerate([0.05, 0.03, 0.04, 0.03]):
        run.record_epoch(epoch, {"val_eer": eer})
    assert run.has_stopped_early(2) and not run.has_stopped_early(3) and not run.has_stopped_early(0)
