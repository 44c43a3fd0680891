"""A run folder: everything of one training run, enough to repeat it, resume it and use its encoder.

flags.cfg              the flags that made the run: `python -m vggvox_tf.train --flagfile=RUN/flags.cfg --run=NEW`
starts.jsonl           one line a start: time, git revision, versions of Python and the packages, device
speakers.txt           the training speakers, one a line
log.txt                what the run said, bad recordings among it
history.csv            one row an epoch
events.out.tfevents.*  what TensorBoard's HParams table shows of the run
train/, validation/    TensorBoard event files; the projector's files lie in validation/
checkpoint.weights.h5  the state of training after the last epoch, or some minutes ago: weights, optimizer, step
classifier.npz         the classifier's weights and the names of its classes, for a third stage
mined_pairs.npz        the negative pairs mined last
encoder.keras          the encoder after the last epoch; encoder_best.keras after the one of the lowest EER
"""

import csv
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import time
from pathlib import Path

import numpy as np

PACKAGES = ("tensorflow", "keras", "tensorboard", "numpy", "scipy", "soundfile", "av", "absl-py")


class RunError(ValueError):
    """A run folder that cannot be used as asked."""


class Terminated(Exception):
    """Training was told to end, and has saved its state: it can go on."""


class Run:
    """A run folder, new or resumed.

    Args:
      folder: created where missing.
      flags: name -> value of every flag that has a bearing on the run. A folder that was begun with other flags is
        refused with RunError, since continuing would be a different run.
      writes: False for workers other than the chief, which look at its folder only.
    """

    def __init__(self, folder, flags, writes=True):
        self.folder = Path(folder)
        self.writes = writes
        if not writes:
            return
        flags = {name: str(value) for name, value in flags.items()}
        flags_file = self.folder / "flags.cfg"
        if flags_file.exists():
            self._refuse_other_flags(flags_file, flags)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise RunError(f"{self.folder} has files in it but is no run: choose another --run, or empty it.")
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"--{name}={value}\n" for name, value in sorted(flags.items()))
        self.save(lambda path: Path(path).write_text(text), "flags.cfg")

    def _refuse_other_flags(self, flags_file, flags):
        lines = flags_file.read_text().splitlines()
        saved = dict(line.removeprefix("--").split("=", 1) for line in lines)
        changed = [
            f"--{name} was {saved.get(name, 'not set')}, is {flags.get(name, 'not set')}"
            for name in sorted(saved.keys() | flags.keys())
            if saved.get(name) != flags.get(name)
        ]
        if changed:
            raise RunError(
                f"{self.folder} was begun with other flags: {'; '.join(changed)}. To go on, give the same flags "
                f"(--flagfile={flags_file} --run={self.folder}); for a new run, another --run."
            )

    @property
    def checkpoint(self):
        """Path of the last checkpoint, or None before the first."""
        path = self.folder / "checkpoint.weights.h5"
        return path if path.exists() else None

    def save(self, write, name):
        """Writes a file by `write(path)` under a temporary name, then renames it: it is there whole or not at all."""
        if not self.writes:
            return
        temporary = self.folder / f".unfinished-{name}"
        try:
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / name)
        except OSError as error:
            raise OSError(f"{self.folder / name} could not be written: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)  # on a full disk, it would be in the way

    def keep_log(self):
        """Appends what is logged from here on to log.txt as well."""
        if not self.writes:
            return
        handler = logging.FileHandler(self.folder / "log.txt")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)

    def record_start(self, speakers, device):
        """Notes what this start runs on, and the training speakers."""
        if not self.writes:
            return
        self.save(lambda path: path.write_text("".join(f"{name}\n" for name in speakers)), "speakers.txt")
        start = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "git": git_revision(),
            "python": platform.python_version(),
            "device": device,
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        with open(self.folder / "starts.jsonl", "a") as file:
            file.write(json.dumps(start) + "\n")

    def record_epoch(self, epoch, logs):
        """Adds a row to history.csv. Columns that only some rows have, as after an update amid a run, stay empty."""
        self._write_history([*self._read_history(), {"epoch": str(epoch), **logs}])

    def rewind_history(self, epochs):
        """Drops history rows after the first `epochs` epochs (a killed run may have written more than it saved)."""
        rows = [row for row in self._read_history() if row["epoch"].isdigit() and int(row["epoch"]) < epochs]
        if (self.folder / "history.csv").exists():
            self._write_history(rows)

    def lowest_eer(self):
        """Of the epochs so far; infinity where there is none."""
        return min((float(row["val_eer"]) for row in self._read_history() if row.get("val_eer")), default=float("inf"))

    def has_stopped_early(self, patience):
        """Whether the last `patience` epochs (0: never) all had a higher EER than the best before, or the same."""
        eers = [float(row["val_eer"]) for row in self._read_history() if row.get("val_eer")]
        return 0 < patience <= len(eers) - 1 - int(np.argmin(eers)) if eers else False

    def _read_history(self):
        try:
            with open(self.folder / "history.csv", newline="") as file:
                return list(csv.DictReader(file))
        except FileNotFoundError:
            return []

    def _write_history(self, rows):
        names = sorted({name for row in rows for name in row} - {"epoch"})

        def write(temporary):
            with open(temporary, "w", newline="") as file:
                writer = csv.DictWriter(file, ["epoch", *names])
                writer.writeheader()
                writer.writerows(rows)

        self.save(write, "history.csv")


def training_speakers(encoder_path):
    """Names of the speakers an encoder was trained on, from its run folder; None where that is not known."""
    path = Path(encoder_path).parent / "speakers.txt"
    return set(path.read_text().splitlines()) if path.exists() else None


def git_revision():
    """Revision of the checkout this package lies in, "+changes" where files differ from it, or None without git.

    The Docker image, which has no checkout, names its revision in VGGVOX_REVISION.
    """
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=40"],
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("VGGVOX_REVISION") or None
    return done.stdout.strip()
