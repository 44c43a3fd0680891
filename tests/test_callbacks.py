import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorboard.backend.event_processing import plugin_event_multiplexer as event_multiplexer
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.hparams import backend_context, list_session_groups
from tensorboard.plugins.hparams.api_pb2 import (
    STATUS_RUNNING,
    STATUS_SUCCESS,
    STATUS_UNKNOWN,
    ColParams,
    ListSessionGroupsRequest,
)
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.util import tensor_util

from vggvox_tf import callbacks, clusters, encoders, metrics, projector, sampling, summaries
from vggvox_tf.audio import AudioError
from vggvox_tf.corpus import read_corpus
from vggvox_tf.run import Run
from vggvox_tf.training_model import TrainingModel
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
    # At the threshold, between 0.5 and 0.866, a target and a non-target are accepted, and one of each rejected.
    assert [logs[f"val_{name}_at_eer"] for name in ("accuracy", "precision", "recall")] == [0.5, 0.5, 0.5]
    assert evaluation.logs == {name: value for name, value in logs.items() if name != "loss"}
    assert evaluation.embeddings.shape == (4, 2) and evaluation.cosines[0] == pytest.approx(0.5)


@pytest.mark.parametrize("steps_done, evaluated", [(0, True), (25, False)])
def test_only_a_new_run_is_evaluated_before_training(trials, monkeypatch, steps_done, evaluated):
    vectors = np.eye(4, dtype=np.float32)
    monkeypatch.setattr(callbacks, "SpeakerEncoder", lambda _: SimpleNamespace(embed_files=lambda *_, **__: vectors))
    evaluation = callbacks.TrialEvaluation(None, trials, margin=1.0)
    evaluation.set_model(SimpleNamespace(steps_done=steps_done))
    evaluation.on_train_begin()
    assert (evaluation.embeddings is not None) == evaluated == ("val_eer" in evaluation.logs)


def test_trials_of_a_recording_that_vanishes_are_left_out(trials, monkeypatch):
    """Recording 3 is there at the first evaluation only; it keeps its place, and every trial of it is dropped."""
    first, second = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[::-1]
    rounds = iter([(first, {}), (second.copy(), {3: AudioError("c.wav", "No such file")})])

    def embed_files(paths, root, errors):
        vectors, found = next(rounds)
        errors.update(found)
        return vectors

    monkeypatch.setattr(callbacks, "SpeakerEncoder", lambda _: SimpleNamespace(embed_files=embed_files))
    evaluation = callbacks.TrialEvaluation(None, trials, margin=1.0)
    evaluation.on_epoch_end(0, {"loss": 1.0})
    evaluation.on_epoch_end(1, {"loss": 1.0})
    left = (trials.enrol != 3) & (trials.test != 3)
    assert 0 < left.sum() < len(trials)
    np.testing.assert_array_equal(evaluation.trials.labels, trials.labels[left])
    assert len(evaluation.cosines) == left.sum()
    np.testing.assert_array_equal(evaluation.embeddings, [second[0], second[1], second[2], first[3]])


def test_a_recording_that_is_bad_from_the_start_ends_the_run(trials, monkeypatch):
    def embed_files(paths, root, errors):
        errors[3] = AudioError("c.wav", "No such file")
        return np.zeros((4, 2), np.float32)

    monkeypatch.setattr(callbacks, "SpeakerEncoder", lambda _: SimpleNamespace(embed_files=embed_files))
    with pytest.raises(AudioError, match=r"c\.wav"):
        callbacks.TrialEvaluation(None, trials, margin=1.0).on_epoch_end(0, {"loss": 1.0})


def events_of(folder):
    """step -> tag -> value of all that was written into a folder's one event file."""
    (path,) = folder.glob("events.out.tfevents.*")
    found = {}
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            found.setdefault(event.step, {})[value.tag] = value
    return found


@pytest.fixture
def events(tmp_path):
    events = callbacks.EventFiles(tmp_path / "run")
    events.set_model(SimpleNamespace(optimizer=SimpleNamespace(learning_rate=0.5)))
    return events


def test_logs_become_scalars_of_training_and_validation(events):
    events.evaluation = SimpleNamespace(logs={"val_eer": 0.5})
    events.on_train_begin()
    events.on_epoch_end(0, {"loss": 2.0, "val_eer": 0.25})
    events.on_train_end()
    scalars = {
        folder: {
            step: {tag: tensor_util.make_ndarray(value.tensor) for tag, value in values.items()}
            for step, values in events_of(events.folder / folder).items()
        }
        for folder in ("train", "validation")
    }
    assert scalars["train"] == {0: {"epoch_loss": 2.0, "epoch_learning_rate": 0.5}}
    assert scalars["validation"] == {-1: {"epoch_eer": 0.5}, 0: {"epoch_eer": 0.25}}


def test_pictures_of_the_trials(events, trials, monkeypatch):
    """Cosines ½, 1 | 0, √¾: target distances 1 and 0, in the histogram's bins from 1 and from 0; non-targets √2 and
    √(2 − √3) = 0.518, in those from 1.4 and 0.5. Of the trials on the wrong side of 0.6, the non-target at 0.866 is by
    0.266 and the target at 0.5 by 0.1."""
    monkeypatch.setattr(summaries.audio, "load", lambda path: np.full(16_000, 0.1, np.float32))
    cosines = np.array([0.5, 1, 0, 0.75**0.5], np.float32)
    evaluation = SimpleNamespace(trials=trials, cosines=cosines, eer_threshold=0.6, logs={"val_eer": 0.5})
    pictures = callbacks.TrialPictures(evaluation, events, listen=2)
    pictures.on_train_begin()
    pictures.on_epoch_end(0)
    events.on_train_end()
    written = events_of(events.folder / "validation")
    assert written.keys() == {-1, 0}
    for kind, starts in (("targets", [0.0, 1.0]), ("non-targets", [0.5, 1.4])):
        bins = tensor_util.make_ndarray(written[0][f"trial_distance/{kind}"].tensor)
        assert bins.shape == (summaries.BINS, 3) and bins[:, 2].sum() == 2
        np.testing.assert_allclose(bins[bins[:, 2] > 0, 0], starts)
    # Rows: true and false positives, true and false negatives, precision, recall, over rising thresholds.
    curve = tensor_util.make_ndarray(written[0]["trials/pr_curves"].tensor)
    assert curve.shape == (6, summaries.PR_THRESHOLDS)
    assert curve[5, 0] == 1 and (np.diff(curve[5]) <= 0).all() and curve[4, 0] == 0.5
    for name in ("ROC", "DET", "distances"):
        width, height, png = written[0][f"trials/{name}"].tensor.string_val
        assert tf.io.decode_png(png).shape == (int(height), int(width), 3)
    descriptions = [written[0][f"hardest trials, epoch 01/{rank}"].metadata.summary_description for rank in (1, 2)]
    assert descriptions == [
        "Non-target, cosine 0.866, threshold 0.600: `ann/x/1.wav`, `bob/3.wav`",
        "Target, cosine 0.500, threshold 0.600: `ann/x/0.wav`, `ann/x/1.wav`",
    ]
    (clip,) = written[0]["hardest trials, epoch 01/1"].tensor.string_val
    assert tf.audio.decode_wav(clip).audio.shape == (2 * 16_000 + 8_000, 1)


def test_a_run_is_one_row_of_the_hparams_table(tmp_path):
    """Started, ended after an epoch, and continued: the EER of the last epoch and the best of both, in one row."""
    columns = [hparams.HParam("stage", hparams.Discrete(["softmax"])), hparams.HParam("margin")]
    for epoch, (best, eer) in enumerate([(float("inf"), 0.1), (0.1, 0.2)]):
        events = callbacks.EventFiles(tmp_path / "a run")
        row = callbacks.HParams(events, columns, {"stage": "softmax", "margin": 0.5}, best)
        row.on_train_begin()
        row.on_epoch_end(epoch, {"loss": 1.0, "val_eer": eer, "val_min_dcf": 0.9})
        row.on_train_end()
        events.on_train_end()
        time.sleep(1.1)  # the names of event files differ by the second
    events = event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    events.Reload()
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(events, str(tmp_path))))
    request = RequestContext()
    tags = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(request, "", True, tags, [])
    statuses = [STATUS_UNKNOWN, STATUS_SUCCESS, STATUS_RUNNING]
    columns = [ColParams(metric=info.name) for info in experiment.metric_infos]
    asked = ListSessionGroupsRequest(start_index=0, slice_size=9, allowed_statuses=statuses, col_params=columns)
    handler = list_session_groups.Handler(request, context, "", asked)
    (group,) = handler.run().session_groups
    assert group.name == "a run" and len(group.sessions) == 1
    assert group.hparams["stage"].string_value == "softmax" and group.hparams["margin"].number_value == 0.5
    values = {metric.name.tag: metric.value for metric in group.metric_values}
    assert values == pytest.approx({"best_eer": 0.1, "eer": 0.2, "min_dcf": 0.9, "loss": 1.0})


@pytest.fixture
def shown(trials, tmp_path):
    """An evaluation before training, and event files, such as ProjectorExport wants: 0°, 60°, 90° and 100°."""
    encoder = SimpleNamespace(lengths=lambda paths, root: np.full(len(paths), 24_000))
    angles = np.radians([0, 60, 90, 100])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    evaluation = SimpleNamespace(trials=trials, encoder=encoder, embeddings=vectors, logs={"val_eer": 0.25})
    events = SimpleNamespace(folder=tmp_path / "run", writer=lambda name: writers[name])
    writers = {"validation": tf.summary.create_file_writer(str(events.folder / "validation"))}
    return evaluation, events


def projector_titles(folder):
    config = text_format.Parse((folder / projector.CONFIG_NAME).read_text(), ProjectorConfig())
    return [entry.tensor_name for entry in config.embeddings]


def test_projector_before_training_every_second_epoch_and_at_the_end(shown):
    """Of ann's 0° and 60° and bob's 90° and 100°, 60° is nearest to 90°, the others to their own: ¾. Before training
    ann's are 0° and 90°, bob's 60° and 100°, and all are nearest to the other's: 0."""
    evaluation, events = shown
    export = callbacks.ProjectorExport(evaluation, events, seed=0, every=2)
    evaluation.embeddings = evaluation.embeddings[[0, 2, 1, 3]]
    export.on_train_begin()
    assert evaluation.logs["val_nearest_neighbour_share"] == 0
    evaluation.embeddings = evaluation.embeddings[[0, 2, 1, 3]]
    for epoch, eer in enumerate((0.2, 0.1, 0.05)):
        evaluation.logs = {"val_eer": eer}
        logs = {}
        export.on_epoch_end(epoch, logs)
        assert logs["val_nearest_neighbour_share"] == 0.75
        assert logs["val_silhouette"] == clusters.silhouette(evaluation.embeddings, [0, 0, 1, 1])
    folder = events.folder / "validation"
    assert projector_titles(folder) == [
        "speakers, epoch 02 (EER 10.0 %)",
        "(newest) epoch 02 (EER 10.0 %)",
        "before training (EER 25.0 %)",
    ]
    assert (folder / "metadata-epoch-0002.tsv").read_text().splitlines()[:2] == [
        "speaker\tsession\tgender\tseconds\tfile\tnearest other speaker",
        "ann\tx\t\t1.50\tann/x/0.wav\tbob",
    ]
    export.on_train_end()
    assert projector_titles(folder)[1] == "(newest) epoch 03 (EER 5.0 %)"
    assert "t-SNE" in (folder / "epoch-0003.bookmarks.json").read_text()
    assert (events.folder / "map.png").exists()


def test_projector_shows_the_same_recordings_every_time(shown, monkeypatch):
    monkeypatch.setattr(projector, "MAX_ROWS", 3)
    rows = callbacks.ProjectorExport(*shown, seed=1).rows
    assert len(rows) == 3 and (np.diff(rows) > 0).all()
    assert callbacks.ProjectorExport(*shown, seed=1).rows.tolist() == rows.tolist()
    rows = callbacks.ProjectorExport(*shown, seed=1, speakers=1).rows
    assert rows.tolist() in ([0, 1], [2, 3])


def test_a_resumed_run_has_no_tensor_before_training(shown):
    evaluation, events = shown
    evaluation.logs = {}
    callbacks.ProjectorExport(evaluation, events, seed=0).on_train_begin()
    assert not (events.folder / "validation" / projector.CONFIG_NAME).exists()


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
    assert logs == {"utterances_per_second": 12.0, "input_wait_share": 0.0}


def test_share_of_the_time_spent_waiting_for_batches(caplog):
    """A batch takes 50 ms to come and a step 50 ms to compute: half of the time, above the tenth worth a warning."""

    def slow(wait):
        def run(x):
            time.sleep(wait)
            return x

        return lambda x: tf.ensure_shape(tf.numpy_function(run, [x], tf.float32), x.shape)

    for wait, low, high in ((0.05, 0.3, 0.7), (0.0, 0.0, 0.1)):
        throughput = callbacks.Throughput(batch_size=2)
        ones = tf.data.Dataset.from_tensors(tf.ones([2, 1])).repeat()
        batches = tf.data.Dataset.zip(ones.map(slow(wait)), ones)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Lambda(slow(0.05)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", jit_compile=False)
        caplog.clear()
        timed = throughput.timed(batches)
        fitted = model.fit(timed, epochs=2, steps_per_epoch=10, shuffle=False, verbose=0, callbacks=[throughput])
        share = fitted.history["input_wait_share"][1]  # the first epoch's time has the compilation in it
        assert low <= share <= high
        assert ("of the time was spent waiting for recordings" in caplog.text) == (wait > 0)


def test_gradient_norm_by_hand():
    """y = w·x + b from x = (3, 4), w = b = 0, to 1 with the loss (y − 1)²: the gradient of w is 2·(0 − 1)·x = (−6, −8).

    Its norm is 10. The bias, whose gradient is −2, does not count. At a learning rate of 0.1 w becomes (0.6, 0.8).
    """
    inputs = keras.Input((2,))
    model = TrainingModel(inputs, keras.layers.Dense(1, kernel_initializer="zeros")(inputs))
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"], jit_compile=False)
    history = model.fit(np.array([[3.0, 4.0]]), np.array([[1.0]]), verbose=0).history
    assert history == {"loss": [1.0], "mae": [1.0], "gradient_norm": [pytest.approx(10.0)]}
    np.testing.assert_allclose(model.get_weights()[0], [[0.6], [0.8]], rtol=1e-6)


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_recordings(tmp_path, tiny_corpus):
    """Steps 40, 41, 42: the third has no finite loss any more, since the mean of an epoch does not get rid of a NaN."""
    corpus = read_corpus(tiny_corpus)
    sampler = sampling.UtteranceSampler(corpus, 2, seed=0)
    check = callbacks.FiniteLoss(Run(tmp_path / "run", {}), corpus, sampler, done=40)
    check.set_model(SimpleNamespace(optimizer=SimpleNamespace(learning_rate=0.25)))
    check.on_train_batch_end(0, {"loss": 1.0})
    check.on_train_batch_end(1, {"loss": 1.0})
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 42, with a learning rate of 0\.25;") as error:
        check.on_train_batch_end(2, {"loss": float("nan")})
    assert all(corpus.paths[index] in str(error.value) for index in sampler(42))


def test_checkpoints_keep_the_best(tmp_path):
    run = Run(tmp_path / "run", {})
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="classifier")])
    encoder = encoders.build_encoder("vggm", 0.01, 257)
    checkpoints = callbacks.Checkpoints(run, model, encoder, ["a", "b", "c"])
    checkpoints.set_model(SimpleNamespace(save_weights=lambda path: path.write_text("state")))
    checkpoints.on_epoch_end(3, {"loss": 1.0, "val_eer": 0.2})
    assert run.checkpoint.read_text() == "state" and (run.folder / "encoder_best.keras").exists()
    with np.load(run.folder / "classifier.npz") as kept:
        assert kept["names"].tolist() == ["a", "b", "c"]
        np.testing.assert_array_equal(kept["weight_0"], model.get_layer("classifier").kernel)
    (run.folder / "encoder_best.keras").unlink()
    checkpoints.on_epoch_end(4, {"loss": 1.0, "val_eer": 0.3})  # not the best
    assert not (run.folder / "encoder_best.keras").exists()


def test_within_an_epoch_the_state_is_saved_by_the_clock(tmp_path, monkeypatch):
    """Steps end at 400, 700, 1200 and 1400 s: the second comes after ten minutes; the last is left to the epoch's end.

    The averages are in the place of the weights while the state is saved, and not afterwards.
    """
    clock = iter([0.0, 400.0, 700.0, 700.0, 1200.0])
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(callbacks.signal, "signal", lambda *_: None)
    did = []
    average = SimpleNamespace(swap=lambda: did.append("swap"))
    checkpoints = callbacks.Checkpoints(Run(tmp_path / "run", {}), None, None)
    checkpoints.set_params({"steps": 4})
    checkpoints.set_model(
        SimpleNamespace(
            weight_average=average, save_weights=lambda path: (path.write_text("state"), did.append("save"))
        )
    )
    checkpoints.on_train_begin()
    for step, expected in enumerate(([], ["swap", "save", "swap"], [], [])):
        did.clear()
        checkpoints.on_train_batch_end(step)
        assert did == expected


def test_margin_warm_up_by_hand():
    """From 0 to 0.2 in four steps; a run that is continued at step 3 goes on there."""
    loss = SimpleNamespace(margin=tf.Variable(0.2))
    warmup = callbacks.MarginWarmUp(loss, 0.2, 4, done=0)
    margins = []
    for _ in range(6):
        warmup.on_train_batch_begin(0)
        margins.append(float(loss.margin))
    assert margins == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.2])
    callbacks.MarginWarmUp(loss, 0.2, 4, done=3).on_train_batch_begin(0)
    assert float(loss.margin) == pytest.approx(0.15)


def test_step_timer_by_hand(monkeypatch):
    """The first step ends after 5 s, the next ones take 1 s: measured from the fifth on, until 20 s are over."""
    clock = iter([0.0, 5.0, *(5.0 + n for n in range(1, 40))])
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    timer = callbacks.StepTimer()
    timer.set_model(SimpleNamespace(stop_training=False))
    timer.on_train_begin()
    steps = 0
    while not timer.model.stop_training and steps < timer.STEPS:
        timer.on_train_batch_end(steps)
        steps += 1
    assert (timer.first_step, timer.seconds_per_step, steps) == (5.0, 1.0, 24)
