"""Training on several devices and by several workers, on CPUs, in processes of their own."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from vggvox_tf import cli, devices, train
from vggvox_tf.speaker_encoder import SpeakerEncoder

SMALL = [
    "--width=0.03", "--rows=257", "--compression=log", "--crop_seconds=1", "--batch_size=12", "--learning_rate=0.01",
    "--final_learning_rate=0.001", "--epochs=2", "--steps_per_epoch=1",
]  # fmt: skip
LOSSES = {
    "softmax": ["--loss=softmax", "--weight_average=0.9", "--decode_processes=1"],
    "both": ["--loss=am,angular_prototypical", "--class_scale=5", "--embedding_dim=8", "--margin_warmup_epochs=1"],
    "pairs": ["--loss=contrastive", "--mining=random", "--embedding_dim=8"],
    "hard": ["--loss=contrastive", "--embedding_dim=8", "--freeze_batch_norm"],
    "trihard": ["--loss=trihard", "--embedding_dim=8", "--optimizer=muon"],
}
AUGMENTED = [
    "--loss=aam,angular_prototypical", "--embedding_dim=8", "--speeds=0.9,1,1.1", "--speeds_are_speakers", "--gain=6",
    "--babble_share=0.3", "--frequency_mask=10", "--time_mask=10",
]  # fmt: skip


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(folder):
    return SpeakerEncoder.load(folder / "encoder.keras").model.get_weights()


def two_devices(*runs):
    script = Path(__file__).parent / "two_devices.py"
    environment = os.environ | {"PYTHONPATH": str(script.parent.parent)}
    command = [sys.executable, script, json.dumps([[str(flag) for flag in run] for run in runs])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(tiny_corpus, tmp_path_factory):
    """Folders of runs: each loss on one device and on two, and the augmented one on two."""
    root = tmp_path_factory.mktemp("devices")
    flags = []
    for strategy in ("single", "mirrored"):
        for name, loss in LOSSES.items():
            own = [f"--run={root}/{name}-{strategy}", f"--strategy={strategy}", f"--corpus={tiny_corpus}"]
            own += [f"--trials={tiny_corpus}/trials.txt"] if name == "softmax" else []
            own += [f"--init_from={root}/softmax-{strategy}"] if name == "hard" else []
            small = [flag for flag in SMALL if name != "hard" or not flag.startswith(("--width", "--rows", "--compr"))]
            flags.append([*small, *loss, *own])
    flags.append([*SMALL, *AUGMENTED, f"--run={root}/augmented", "--strategy=mirrored", f"--corpus={tiny_corpus}"])
    two_devices(*flags)
    return root


def test_bfloat16_by_what_linux_says_of_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "CPUINFO", tmp_path / "cpuinfo")
    assert not devices.cpu_has_bfloat16()  # no Linux
    for flags_of_cpu, expected in (("fpu amx_tile amx_bf16", True), ("fpu avx512_bf16", True), ("fpu avx512f", False)):
        devices.CPUINFO.write_text(f"processor\t: 0\nflags\t\t: {flags_of_cpu}\n")
        assert devices.cpu_has_bfloat16() == expected


@pytest.mark.parametrize("name", LOSSES)
def test_two_devices_do_what_one_does_with_the_same_batches(runs, name):
    """Losses of the whole batch: pairs and triplets across the devices' parts, statistics of batch norm over both."""
    one, two = history(runs / f"{name}-single"), history(runs / f"{name}-mirrored")
    assert len(one) == 2
    for column in ("loss", "classifier_loss", "prototypes_loss", "accuracy", "active_pairs"):
        if column in one[0]:
            ours, theirs = [[float(row[column]) for row in rows] for rows in (one, two)]
            np.testing.assert_allclose(theirs[0], ours[0], rtol=2e-5, err_msg=column)
            # After an update such small networks make much of the last digit; half of it, or twice, would be far more.
            if column.endswith("loss"):
                np.testing.assert_allclose(theirs[1], ours[1], rtol=1e-2, err_msg=column)
    ours, theirs = [
        np.concatenate([value.ravel() for value in weights(runs / f"{name}-{strategy}")])
        for strategy in ("single", "mirrored")
    ]
    assert np.linalg.norm(theirs - ours) < 1e-3 * np.linalg.norm(ours)


def test_augmentation_and_speeds_as_speakers_on_two_devices(runs):
    losses = [float(row["loss"]) for row in history(runs / "augmented")]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_starts_say_how_many_devices(runs):
    (start,) = (runs / "softmax-mirrored" / "starts.jsonl").read_text().splitlines()
    assert "2 devices" in json.loads(start)["device"]


def start_workers(root, *flags):
    """Two worker processes on the loopback interface."""
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (first, second)]
    processes = []
    for index in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        command = [sys.executable, "-m", "vggvox_tf.train", f"--run={root}/workers", *flags]
        with open(root / f"worker{index}.txt", "w") as log:
            environment = os.environ | {"TF_CONFIG": json.dumps(config)}
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    return processes


def wait_for_epochs(run, number, process):
    deadline = time.monotonic() + 200
    while not (run / "history.csv").exists() or len(history(run)) < number:
        assert process.poll() is None and time.monotonic() < deadline, (run.parent / "worker0.txt").read_text()
        time.sleep(0.01)


def test_two_workers_ended_twice_and_started_again_do_what_two_devices_do(tiny_corpus, tmp_path):
    """After the first of four epochs both have a SIGTERM, after the third worker 1 is killed, and the run goes on.

    Each time all that is still there ends with the code that says so.
    """
    data = [f"--corpus={tiny_corpus}", f"--trials={tiny_corpus}/trials.txt"]
    flags = [*SMALL, *data, "--loss=softmax", "--epochs=4", "--steps_per_epoch=20"]
    run = tmp_path / "workers"
    workers = start_workers(tmp_path, *flags)
    wait_for_epochs(run, 1, workers[0])
    for process in workers:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(200) for process in workers] == [cli.CONTINUE] * 2
    assert len(history(run)) < 3
    chief, other = start_workers(tmp_path, *flags)
    wait_for_epochs(run, 3, chief)
    other.send_signal(signal.SIGKILL)
    assert chief.wait(200) == cli.CONTINUE
    assert "another worker has ended" in (tmp_path / "worker0.txt").read_text()
    for process in start_workers(tmp_path, *flags):
        assert process.wait(200) == 0, (tmp_path / "worker0.txt").read_text() + (tmp_path / "worker1.txt").read_text()
    assert "Continuing" in (tmp_path / "worker1.txt").read_text()
    assert not (run / "worker1.txt").exists()
    assert len((run / "starts.jsonl").read_text().splitlines()) == 3  # the chief's
    two_devices([*flags, f"--run={tmp_path}/devices", "--strategy=mirrored"])
    rows = history(run), history(tmp_path / "devices")
    ours, theirs = [[float(row["loss"]) for row in each] for each in rows]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    for ours, theirs in zip(weights(run), weights(tmp_path / "devices"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "config",
    ["", "host1:1,host2:2", '{"cluster": {"worker": ["a:1", "b:2"]}}',
     '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 2}}'],
)  # fmt: skip
def test_a_tf_config_that_says_no_worker_is_refused(config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(flags.Error, match="TF_CONFIG on each worker"):
        devices.strategy("multiworker")


def test_auto_without_gpus_and_tf_config_is_a_single_device(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    strategy = devices.strategy("auto")
    assert strategy.num_replicas_in_sync == 1
    assert devices.workers(strategy) == (0, 1)
    assert devices.from_chief(strategy, 7) == 7


@pytest.mark.parametrize(
    "given, complaint",
    [
        (["--loss=softmax", "--batch_size=18"], "multiple of 4, for 4 devices."),
        (["--loss=trihard", "--batch_size=12"], "multiple of 8, for 4 devices and 2 utterances of a speaker"),
        (["--loss=trihard", "--batch_size=16", "--speeds=0.9,1,1.1"], "each device has 2 rows or speakers"),
        (["--loss=softmax", "--jit_compile"], "--strategy=single"),
    ],
)
def test_what_four_devices_cannot_share_is_refused(given, complaint):
    with flagsaver.flagsaver():
        flags.FLAGS(["train", "--run=r", "--corpus=c", *given])
        with pytest.raises(flags.Error, match=complaint):
            train.check_devices(types.SimpleNamespace(num_replicas_in_sync=4, cluster_resolver=None))
