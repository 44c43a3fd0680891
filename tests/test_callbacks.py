from types import SimpleNamespace

import numpy as np
import pytest

from vggvox_tf import callbacks, metrics, projector
from vggvox_tf.run import Run
from vggvox_tf.trials import read_trials


@pytest.fixture
def trials(tmp_path):
    """Trials 0.wav–1.wav and 2.wav–3.wav of one speaker, 0.wav–2.wav and 1.wav–3.wav of two."""
    lines = ["1 ann/x/0.wav ann/x/1.wav", "1 bob/2.wav bob/3.wav", "0 ann/x/0.wav bob/2.wav", "0 ann/x/1.wav bob/3.wav"]
    (tmp_path / "trials.txt").write_text("\n".join(lines))
    return read_trials(tmp_path / "trials.txt")


def test_trial_evaluation_by_hand(trials, monkeypatch):
    """Directions 0°, 60°, 90° and 90°: cosines ½, 1 | 0, √¾, so target distances² are 1, 0 and non-target 2, 2 − √3.

    With margin 1 the non-targets cost 0 and (1 − √(2 − √3))² = 0.2327; the loss is (½·(1 + 0) + ½·0.2327) / 2. The
    target at ½ lies below the non-target at 0.866, the other target above: the EER is ½.
    """
    angles = np.radians([0, 60, 90, 90])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    encoder = SimpleNamespace(embed_files=lambda *_, **__: 3 * vectors)
    monkeypatch.setattr(callbacks, "SpeakerEncoder", lambda model: encoder)
    evaluation = callbacks.TrialEvaluation(None, trials, margin=1.0)
    logs = {"loss": 1.0}
    evaluation.on_epoch_end(0, logs)
    assert logs["val_loss"] == pytest.approx((0.5 + 0.2327 / 2) / 2, abs=1e-4)
    assert logs["val_eer"] == pytest.approx(0.5)
    assert logs["val_auc"] == metrics.auc([0.5, 1, 0, 0.866], [1, 1, 0, 0]) == 0.75


def test_projector_shows_the_same_recordings_every_epoch(trials, tmp_path, monkeypatch):
    monkeypatch.setattr(projector, "MAX_ROWS", 3)
    evaluation = SimpleNamespace(trials=trials, embeddings=np.arange(8.0).reshape(4, 2).astype(np.float32))
    export = callbacks.ProjectorExport(evaluation, tmp_path / "run", seed=1)
    assert len(export.rows) == 3 and (np.diff(export.rows) > 0).all()
    assert callbacks.ProjectorExport(evaluation, tmp_path / "run", seed=1).rows.tolist() == export.rows.tolist()
    for epoch in range(2):
        export.on_epoch_end(epoch, {"val_eer": 0.25})
    metadata = (tmp_path / "run" / "metadata.tsv").read_text().splitlines()
    expected = [f"{path.split('/')[0]}\t{path}" for path in trials.paths[export.rows]]
    assert metadata == ["speaker\tutterance", *expected]
    config = (tmp_path / "run" / "projector_config.pbtxt").read_text()
    assert "epoch 01 (EER 25.0 %)" in config and "epoch-0002.tsv" in config


def test_throughput_counts_utterances(monkeypatch):
    """Three batches of 8, the last of them done two seconds after the epoch began: 12 a second."""
    clock = iter([100.0, 100.5, 101.0, 102.0])
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    throughput = callbacks.Throughput(batch_size=8)
    throughput.on_epoch_begin(0)
    for batch in range(3):
        throughput.on_train_batch_end(batch)
    logs = {}
    throughput.on_epoch_end(0, logs)
    assert logs == {"utterances_per_second": 12.0}


def test_a_loss_that_is_no_number_is_not_saved(tmp_path):
    run = Run(tmp_path / "run", {})
    encoder = SimpleNamespace(save=lambda path: path.write_text("encoder"))
    checkpoints = callbacks.Checkpoints(run, encoder)
    checkpoints.set_model(SimpleNamespace(save_weights=lambda path: path.write_text("state")))
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 3.*--learning_rate"):
        checkpoints.on_epoch_end(2, {"loss": float("nan")})
    assert not run.checkpoint
    checkpoints.on_epoch_end(3, {"loss": 1.0, "val_eer": 0.2})
    assert run.checkpoint.read_text() == "state" and (run.folder / "encoder_best.keras").exists()
    (run.folder / "encoder_best.keras").unlink()
    checkpoints.on_epoch_end(4, {"loss": 1.0, "val_eer": 0.3})  # not the best
    assert not (run.folder / "encoder_best.keras").exists()
