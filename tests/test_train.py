"""The entry points as a person runs them, in processes of their own."""

import contextlib
import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import absl.flags
import av
import numpy as np
import pytest
import soundfile
from absl.testing import flagsaver
from conftest import voice
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from vggvox_tf import cli, devices, encoders, train
from vggvox_tf.corpus import read_corpus
from vggvox_tf.speaker_encoder import SpeakerEncoder

CONFIGS = Path(__file__).parent.parent / "configs"

# The smallest VGG-M, on one-second crops.
SMALL = [
    "--loss=softmax", "--width=0.03", "--rows=257", "--compression=log", "--crop_seconds=1", "--batch_size=12",
    "--learning_rate=0.02", "--final_learning_rate=0.001",
]  # fmt: skip


def command(module, *flags):
    return [sys.executable, "-m", f"vggvox_tf.{module}", *map(str, flags)]


def run(module, *flags, code=0):
    """Runs an entry point to its end, checks its exit code and returns what it printed."""
    done = subprocess.run(command(module, *flags), capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def data(corpus):
    return [f"--corpus={corpus}", f"--trials={corpus / 'trials.txt'}"]


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def event_files(folder):
    """(step, tag) of everything in a folder's event files."""
    loaders = [EventFileLoader(str(path)) for path in folder.glob("events.out.tfevents.*")]
    return [(event.step, value.tag) for loader in loaders for event in loader.Load() for value in event.summary.value]


def weights(folder):
    return SpeakerEncoder.load(folder / "encoder.keras").model.get_weights()


@pytest.fixture(scope="module")
def softmax_run(tiny_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "softmax"
    flags = [
        *SMALL,
        *data(tiny_corpus),
        f"--run={folder}",
        "--epochs=4",
        "--steps_per_epoch=25",
        "--listen=2",
        "--sprites",
        "--profile_steps=5,9",
        "--decode_processes=1",
    ]
    output = run("train", *flags)
    return folder, output


def test_softmax_stage_leaves_everything_behind(softmax_run):
    folder, output = softmax_run
    rows = history(folder)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) * 0.7
    assert float(rows[-1]["val_eer"]) < 0.3
    assert all(float(row["utterances_per_second"]) > 0 and row["bad_recordings"] == "0" for row in rows)
    for name in ("flags.cfg", "starts.jsonl", "checkpoint.weights.h5", "encoder.keras", "encoder_best.keras"):
        assert (folder / name).stat().st_size > 0, name
    assert "Before training; trial list: EER" in output
    for name, tags, steps in (
        ("", {"best_eer", "eer", "_hparams_/session_start_info", "_hparams_/session_end_info"}, {0, 1, 2, 3}),
        ("train", {"epoch_loss", "epoch_learning_rate", "epoch_gradient_norm", "epoch_input_wait_share",
                   "epoch_utterances_per_second", "spectrograms"}, {-1, 0, 1, 2, 3}),
        ("validation", {"epoch_loss", "epoch_eer", "epoch_min_dcf", "epoch_auc", "epoch_accuracy_at_eer",
                        "epoch_precision_at_eer", "epoch_recall_at_eer", "trial_distance/targets",
                        "trial_distance/non-targets", "trials/ROC", "trials/DET", "trials/distances",
                        "trials/pr_curves", "spectrograms", "hardest trials, epoch 04/2"}, {-1, 0, 1, 2, 3}),
    ):  # fmt: skip
        written = event_files(folder / name)
        assert tags <= {tag for _, tag in written} and {step for step, _ in written} == steps
    config = (folder / "validation" / "projector_config.pbtxt").read_text()
    assert "sprite.png" in config and config.count("tensor_path") == 6  # before training, four epochs, the speakers
    assert len((folder / "validation" / "epoch-0004.tsv").read_text().splitlines()) == 36
    assert list((folder / "plugins" / "profile").glob("*/*.xplane.pb"))
    (started,) = [line for line in output.splitlines() if "6 training speakers, 36 utterances" in line]
    assert ("with --mixed_precision it trains faster" in output) == ("CPU" in started and devices.cpu_has_bfloat16())
    assert "All 6 speakers of the trial list were trained on" in output  # an EER of known speakers says so
    encoder = SpeakerEncoder.load(folder / "encoder.keras").model
    assert encoder(np.zeros((1, 16_000), np.float32) + 0.1).shape == (1, 32)


def test_contrastive_stage_and_evaluation(softmax_run, tiny_corpus, tmp_path):
    folder = tmp_path / "contrastive"
    output = run(
        "train", "--loss=contrastive", f"--init_from={softmax_run[0]}", *data(tiny_corpus), f"--run={folder}",
        "--optimizer=adam", "--learning_rate=1e-4", "--final_learning_rate=1e-5", "--crop_seconds=1", "--batch_size=8",
        "--epochs=2", "--steps_per_epoch=4", "--freeze_batch_norm", "--embedding_dim=16",
    )  # fmt: skip
    before, after = softmax_run[0], folder
    norms = ["conv1_norm", "fc7_norm"]
    first, second = (SpeakerEncoder.load(run / "encoder.keras").model for run in (before, after))
    for name in norms:  # in inference mode, with its scales: nothing of it moves
        for a, b in zip(first.get_layer(name).get_weights(), second.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    row = history(folder)[-1]
    assert 0 < float(row["active_pairs"]) <= 1 and float(row["gradient_norm"]) > 0
    assert 0 < float(row["positive_distance"]) < float(row["negative_distance"]) < 2
    assert not np.array_equal(first.get_layer("conv1").kernel, second.get_layer("conv1").kernel)
    assert second.output_shape == (None, 16)

    flags = [f"--encoder={folder}/encoder.keras", f"--trials={tiny_corpus}/trials.txt", f"--output={tmp_path}/e"]
    assert "names 6 speakers that the encoder was trained on (first s0)" in run("evaluate", *flags, code=1)
    output = run("evaluate", *flags, "--allow_training_speakers")
    (entry,) = json.loads((tmp_path / "e" / "metrics.json").read_text())["lists"]
    # The evaluation of a saved encoder is that of the last epoch.
    (system,) = entry["systems"]
    assert system["eer"] == pytest.approx(float(history(folder)[-1]["val_eer"]), abs=1e-6)
    assert system["trials"] == 108 and system["targets"] == 18 and entry["recordings"] == 36
    assert entry["training_speakers_among_them"] == 6
    assert "All 6 speakers of the trial list were trained on" in output
    assert f"{100 * system['eer']:.2f}" in output
    assert (tmp_path / "e" / "report.html").stat().st_size > 0


def test_two_losses_at_once_then_a_third_stage(tiny_corpus, tmp_path):
    """Speakers at three speeds are eighteen classes, whose weights the third stage finds by name."""
    speeds = ["--speeds=0.9,1,1.1", "--speeds_are_speakers", "--optimizer=adam", "--learning_rate=1e-3"]
    first = tmp_path / "first"
    run(
        "train", *data(tiny_corpus), f"--run={first}", *speeds, "--loss=aam,angular_prototypical", "--width=0.03",
        "--mel_bands=100", "--compression=log", "--pooling=statistics", "--embedding_dim=24", "--crop_seconds=1",
        "--batch_size=12", "--epochs=3", "--steps_per_epoch=12", "--margin_warmup_epochs=1", "--schedule=cosine",
        "--warmup_steps=5", "--weight_average=0.9", "--frequency_mask=5", "--time_mask=5", "--gain=3",
    )  # fmt: skip
    rows = history(first)
    assert float(rows[-1]["prototypes_loss"]) < float(rows[0]["prototypes_loss"])
    with np.load(first / "classifier.npz") as classifier:
        assert len(classifier["names"]) == 18 and classifier["names"][2] == "s0@1.1"
        assert classifier["weight_0"].shape == (24, 18)
    output = run(
        "train", f"--corpus={tiny_corpus}", f"--run={tmp_path}/third", *speeds, f"--init_from={first}", "--loss=aam",
        "--class_margin=0.4", "--crop_seconds=1.3", "--batch_size=12", "--epochs=1", "--steps_per_epoch=2",
    )  # fmt: skip
    assert "Took over the classifier's weights of 18 of 18 classes" in output
    assert SpeakerEncoder.load(tmp_path / "third" / "encoder.keras").dimension == 24


@pytest.mark.parametrize("flag, tolerance", [("--jit_compile", 1e-3), ("--mixed_precision", 5e-2)])
def test_xla_and_mixed_precision_train_the_same_but_for_rounding(softmax_run, tiny_corpus, tmp_path, flag, tolerance):
    """From the weights of a run, its classifier's among them."""
    flags = [
        "--loss=softmax", f"--corpus={tiny_corpus}", f"--init_from={softmax_run[0]}", "--crop_seconds=1",
        "--batch_size=12", "--epochs=1", "--steps_per_epoch=3",
    ]  # fmt: skip
    run("train", *flags, flag, f"--run={tmp_path}/other")
    run("train", *flags, f"--run={tmp_path}/plain")
    other, plain = (history(tmp_path / name)[0]["loss"] for name in ("other", "plain"))
    assert float(other) == pytest.approx(float(plain), rel=tolerance)
    assert other != plain or flag == "--jit_compile"  # XLA may well compute the same digits


def test_a_time_budget_becomes_a_number_of_steps(tiny_corpus, tmp_path):
    folder = tmp_path / "run"
    flags = [*SMALL, *data(tiny_corpus), "--epochs=2", "--time_budget=0.5", f"--run={folder}"]
    output = run("train", *flags)
    steps = int(re.search(r"(\d+) steps in each of 2 epochs fit into 0.5 minutes", output)[1])
    kept = (folder / "flags.cfg").read_text()
    assert f"--steps_per_epoch={steps}\n" in kept and "time_budget" not in kept
    assert "is complete: nothing to do" in run("train", *flags)


@pytest.mark.parametrize("cache, steps", [("--cache", 63), ("--nocache", 44)])
def test_a_time_budget_with_a_cache_decodes_each_recording_once(tiny_corpus, monkeypatch, cache, steps):
    """60 s of 2 epochs, each with 2 s at its end; compiling takes 4 s, a step 0.5 s and 0.35 s without decoding.

    With 36 recordings, 12 a step, decoding is 3 · 0.15 s: (0.9 · (60 − 4 − 0.45 − 2) / 2 − 2) / 0.35 = 63.1;
    without a cache (0.9 · (60 − 4 − 2) / 2 − 2) / 0.5 = 44.6.
    """
    seconds = iter([0.5, 0.35])
    timer = lambda: SimpleNamespace(STEPS=24, first_step=4.0, seconds_per_step=next(seconds))  # noqa: E731
    model = SimpleNamespace(fit=lambda *args, **kwargs: None)
    drawn = []
    training = SimpleNamespace(model=model, mined=None, encoder=None, dataset=lambda *args: drawn.append(args))
    monkeypatch.setattr(train.callbacks, "StepTimer", timer)
    monkeypatch.setattr(train, "build_training", lambda *args: training)
    monkeypatch.setattr(train, "SpeakerEncoder", lambda encoder: None)
    monkeypatch.setattr(train.devices, "distribute", lambda strategy, dataset: dataset)
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: 0.0))
    with flagsaver.flagsaver():
        flags = ["--loss=softmax", "--run=x", "--corpus=c", "--time_budget=1", "--epochs=2", "--batch_size=12", cache]
        absl.flags.FLAGS(["train", *flags])
        recordings = SimpleNamespace(failure=None)
        assert train.steps_in_budget(None, read_corpus(tiny_corpus), None, recordings, 0.0) == steps
    assert drawn == [(recordings, 0, 24)] * (2 if cache == "--cache" else 1)  # the same, which are cached by then


@pytest.mark.parametrize(
    "stage, sent",
    [
        ("softmax", signal.SIGKILL),
        ("contrastive", signal.SIGKILL),
        ("offline", signal.SIGKILL),
        ("offline", signal.SIGTERM),
    ],
)
def test_a_killed_run_ends_with_the_weights_of_one_left_alone(softmax_run, tiny_corpus, tmp_path, stage, sent):
    flags = [*SMALL, *data(tiny_corpus), "--epochs=3", "--steps_per_epoch=40"]
    if stage == "offline":  # with all that depends on the step: mined pairs, augmentation, averaged weights
        flags = [
            *data(tiny_corpus), "--loss=contrastive", "--mining=offline", f"--init_from={softmax_run[0]}",
            "--crop_seconds=1", "--batch_size=8", "--epochs=3", "--steps_per_epoch=60", "--learning_rate=1e-3",
            "--mine_every=2", "--babble_share=0.5", "--weight_average=0.9", "--time_mask=10",
        ]  # fmt: skip
    if stage == "contrastive":
        flags = [
            "--loss=contrastive", f"--init_from={softmax_run[0]}", *data(tiny_corpus), "--crop_seconds=1",
            "--batch_size=8", "--epochs=3", "--steps_per_epoch=60", "--learning_rate=1e-3", "--optimizer=muon",
        ]  # fmt: skip
    run("train", *flags, f"--run={tmp_path}/alone")

    killed = tmp_path / "killed"
    with subprocess.Popen(command("train", *flags, f"--run={killed}"), stderr=subprocess.DEVNULL) as process:
        while not (killed / "checkpoint.weights.h5").exists():
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.3)  # into the second epoch
        process.send_signal(sent)
    assert len(history(killed)) < 3
    assert process.returncode == (-signal.SIGKILL if sent == signal.SIGKILL else cli.CONTINUE)

    output = run("train", *flags, f"--run={killed}")
    steps = r" and \d+ steps\." if sent == signal.SIGTERM else r"\."  # the step that the signal came in is saved
    assert re.search(r"Continuing .*killed after epoch [12]" + steps, output)
    assert [row["epoch"] for row in history(killed)] == ["0", "1", "2"]
    written = event_files(killed / "validation")
    assert {step for step, tag in written if tag == "epoch_eer"} == {-1, 0, 1, 2}
    assert written.count((-1, "epoch_eer")) == 1  # a continued run is not before its training
    for a, b in zip(weights(tmp_path / "alone"), weights(killed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len((killed / "starts.jsonl").read_text().splitlines()) == 2
    if stage == "softmax":
        # The flags that a run has kept are enough to call it again.
        assert "is complete: nothing to do" in run("train", f"--flagfile={killed}/flags.cfg", f"--run={killed}")
        assert "--seed was 0, is 1" in run("train", *flags, f"--run={killed}", "--seed=1", code=1)


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint(tiny_corpus, tmp_path):
    """With 550 kB free, a run's first files (380 kB) fit and the next checkpoint (190 kB) does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=550k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    flags = [*SMALL, f"--corpus={tiny_corpus}", "--epochs=20", "--steps_per_epoch=5"]
    try:
        output = run("train", *flags, f"--run={disk}/run", code=1)
        assert re.search(r"error: .*disk/run/.* could not be written: .*No space left on device", output)
        assert "make room, and run the same command again" in output
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert "Continuing" in run("train", *flags, f"--run={disk}/run")
        run("train", *flags, f"--run={tmp_path}/alone")
        for a, b in zip(weights(tmp_path / "alone"), weights(disk / "run"), strict=True):
            np.testing.assert_array_equal(a, b)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_bad_recordings_are_named_and_do_not_end_the_run(tiny_corpus, tmp_path):
    """An m4a of which half has arrived, an empty wav and a text file that calls itself flac."""
    corpus = tmp_path / "corpus"
    for source in tiny_corpus.rglob("*.wav"):
        target = corpus / source.relative_to(tiny_corpus)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    with av.open(str(tmp_path / "whole.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(voice(100, 2, seed=0)[np.newaxis], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    m4a = (tmp_path / "whole.m4a").read_bytes()
    bad = {"s0/a/9.m4a": m4a[: len(m4a) // 2], "s1/a/9.wav": b"", "s2/b/9.flac": b"Dear diary,\n" * 100}
    for path, content in bad.items():
        (corpus / path).write_bytes(content)
    folder = tmp_path / "run"
    output = run("train", *SMALL, f"--corpus={corpus}", f"--run={folder}", "--epochs=2", "--steps_per_epoch=4")
    for path in bad:
        assert f"Bad recording: {corpus / path}" in output
    assert "3 of 39 training recordings are bad" in output
    assert [row["bad_recordings"] for row in history(folder)] == ["3", "3"]
    for path in corpus.rglob("*.wav"):
        path.unlink()
    output = run("train", *SMALL, f"--corpus={corpus}", f"--run={tmp_path}/none", code=1)
    assert "error: 2 of the 2 recordings tried are bad" in output and "Traceback" not in output


@pytest.mark.parametrize(
    "flags, complaint",
    [
        ([*SMALL, "--margin=0.5"], "--margin has no effect with --loss=softmax"),
        (["--loss=contrastive", "--positive_share=0.4"], "--positive_share has no effect"),
        (["--loss=contrastive", "--batch_size=9"], "--batch_size=9 must be a multiple of 2"),
        (["--loss=contrastive", "--margin=2.5"], "--margin=2.5 cannot be reached"),
        (["--loss=contrastive", "--freeze_trunk"], "--freeze_trunk needs a trained trunk"),
        (["--loss=contrastive", "--init_from=x", "--width=0.5"], "--width has no effect"),
        (["--loss=softmax", "--final_learning_rate=1"], "must not be above --learning_rate"),
        (["--loss=softmax", "--optimizer=adam", "--momentum=0.8"], "--momentum has no effect"),
        (["--loss=softmax,aam"], "--loss=softmax,aam: expected one of softmax, am, aam, one of contrastive"),
        (
            ["--loss=triplet", "--mining=offline"],
            "--mining=offline is not for triplet: expected hard, semi_hard, random",
        ),
        (["--loss=aam,contrastive", "--mining=random"], "draws pairs, which a classification loss has no use for"),
        (["--loss=contrastive", "--mining=random", "--speeds=0.9,1", "--speeds_are_speakers"], "needs P×K batches"),
        (["--loss=softmax", "--speeds=1.1,0.9"], "--speeds: expected different numbers above 0 in ascending order"),
        (["--loss=softmax", "--speeds=0.333,1"], "--speeds: expected at most two decimals each, found 0.333,1"),
        (["--loss=triplet", "--batch_size=4", "--speeds=0.9,1,1.1"], "each device has 2 rows or speakers to share"),
        (["--loss=softmax", "--babble_share=0.5", "--snr=5"], "--snr: expected LOWEST,HIGHEST in dB, found 5"),
        (["--loss=softmax", "--profile_steps=5"], "--profile_steps: expected FIRST,LAST, found 5"),
        (["--loss=softmax", "--noise_share=0.5"], "--noise_share has no effect"),
        (["--loss=softmax", "--noise=nowhere"], "--noise=nowhere: expected a folder"),
        (["--loss=softmax", "--class_margin=0.1"], "--class_margin has no effect"),
        (["--loss=softmax", "--mel_bands=100", "--rows=257"], "--rows has no effect with --mel_bands"),
        (["--loss=softmax", "--mel_bands=40"], "VGG-M's pooling leaves nothing of 40 rows"),
        (["--loss=softmax", "--time_budget=5", "--steps_per_epoch=5"], "--steps_per_epoch follows from --time_budget"),
        (["--loss=softmax", "--early_stopping=5"], "--early_stopping is given without --trials"),
        (["--loss=softmax", "--batch_sise=9"], "Unknown command line flag 'batch_sise'"),
        (["--loss=softmax", "--corpus=nowhere"], "nowhere"),
        (["--loss=softmax", "--listen=3"], "--listen is given without --trials"),
        (["--loss=softmax", "--cache", "--decode_processes=2"], "--decode_processes has no effect with --cache"),
        (["--loss=contrastive"], "a batch of 32 speakers with 2 utterances each"),
        (["--loss=contrastive", "--batch_size=8", "--init_from=nowhere"], "nowhere/encoder.keras"),
    ],
)
def test_flags_that_cannot_be_meant(tiny_corpus, tmp_path, flags, complaint):
    """In this process, which spares the many seconds of a fresh start's imports."""
    with flagsaver.flagsaver(), pytest.raises((absl.flags.Error, *cli.EXPLAINED)) as error:
        absl.flags.FLAGS(["train", f"--corpus={tiny_corpus}", f"--run={tmp_path / 'run'}", *flags])
        train.main(["train"])
    assert complaint in str(error.value)
    assert not (tmp_path / "run").exists()


def test_mistakes_are_one_line_and_help_names_every_flag(tiny_corpus, tmp_path):
    output = run("train", *SMALL, f"--corpus={tmp_path}/nowhere", f"--run={tmp_path}/run", code=1)
    assert "nowhere" in output and "Traceback" not in output
    output = run("train", "--help", code=1)
    for name in ("--margin", "--init_from", "--compression", "--max_bad_share"):
        assert name in output


def test_a_projection_is_brought_to_unit_length_for_a_metric_loss(tmp_path):
    """An encoder of a classifier with --embedding_dim has an embedding layer without; directions stay."""
    first = encoders.with_projection(encoders.build_encoder("vggm", 0.03, 257, compression="log"), 16)
    first.save(tmp_path / "encoder.keras")
    with flagsaver.flagsaver():
        absl.flags.FLAGS(["train", "--loss=contrastive", f"--init_from={tmp_path}", "--corpus=c", "--run=r"])
        train.check_flags()
        encoder = train.build_encoder()
    waveforms = np.random.default_rng(0).standard_normal((3, 16_000)).astype(np.float32)
    before = first(waveforms).numpy()
    np.testing.assert_allclose(encoder(waveforms), before / np.linalg.norm(before, axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize(
    "flags, gpus, number",
    [([], [], None), ([], ["gpu"], 16), (["--decode_processes=0"], ["gpu"], None), (["--decode_processes=3"], [], 3),
     (["--cache"], ["gpu"], None)],
)  # fmt: skip
def test_processes_decode_beside_a_gpu(tiny_corpus, monkeypatch, flags, gpus, number):
    """On a machine of 40 cores."""
    monkeypatch.setattr(train.os, "cpu_count", lambda: 40)
    monkeypatch.setattr(train.tf.config, "list_physical_devices", lambda kind: gpus)
    with flagsaver.flagsaver():
        absl.flags.FLAGS(["train", "--loss=softmax", "--run=x", "--corpus=c", *flags])
        processes = train.recordings_of(read_corpus(tiny_corpus)).processes
    assert processes is None if number is None else processes.number == number


@pytest.mark.parametrize("container", [False, True])
def test_a_cache_that_does_not_fit_is_refused(tiny_corpus, tmp_path, monkeypatch, container):
    """36 recordings of 0.9 to 1.5 s, 2 bytes a sample; 0.7 of the memory (a container's, the machine's) may be used."""
    corpus = read_corpus(tiny_corpus)
    needed = 2 * sum(soundfile.info(corpus.root / path).frames for path in corpus.paths)
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(train, "MEMORY_LIMITS", [limit, tmp_path / "of_another_kernel"])
    for memory, fits in ((needed / 0.7 + 1, True), (needed / 0.7 - 1, False)):
        limit.write_text(f"{memory:.0f}\n" if container else "max\n")
        machine = 2 * needed if container else memory
        monkeypatch.setattr(train.os, "sysconf", lambda name, m=machine: 1 if name == "SC_PAGE_SIZE" else m)
        with contextlib.nullcontext() if fits else pytest.raises(train.flags.Error, match="--cache: the 36 recordings"):
            train.check_cache(corpus)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*_*.cfg")), ids=lambda path: path.stem)
def test_every_recipe_is_a_valid_set_of_flags(config, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)  # flagfiles include each other by paths from the repository's root
    stage = config.stem.split("_")[-1]
    given = ["--init_from=y"] if stage == "contrastive" else ["--corpus=c"] if stage == "small" else []
    with flagsaver.flagsaver():
        absl.flags.FLAGS(["train", f"--flagfile={config}", "--run=x", *given])
        train.check_flags()
        assert train.FLAGS.loss == (["aam", "angular_prototypical"] if stage == "small" else [stage])
        assert stage == "small" or train.FLAGS.trials
        if stage == "softmax":
            assert train.FLAGS.encoder == config.stem.split("_")[0].replace("quickstart", "vggm")
