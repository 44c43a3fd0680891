"""Packs a corpus into a few large files, shards, for disks on which many small files are slow, as network disks are.

  python -m tools.make_shards --corpus=people.tsv --corpus_root=/data/people --output=/data/people_shards
  python -m vggvox_tf.train --corpus=/data/people_shards/index.tsv --run=runs/softmax

Into --output it writes
  00000.tfrecord, 00001.tfrecord, …   a TFRecord per recording, which is the file as it is, in the order of the corpus;
  index.tsv                           the manifest (vggvox_tf/corpus.py), written last. Its paths say where in which
                                      shard a recording lies, and then the path that it had.

The order is the corpus's, so that training draws the same batches from the shards as from the files. A recording that
is missing or empty is named and left out.

A shard has its name only once it is complete. A run that was stopped, started again, keeps what is complete and writes
the rest; a shard that is older than one of its recordings is written anew.
"""

import dataclasses
import errno
import itertools
import os
import shutil
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import app, flags

from tools.prepare_voxceleb import show_progress
from vggvox_tf.corpus import Corpus, CorpusError, read_corpus, read_manifest, write_manifest

import tensorflow as tf  # isort: skip - the package, imported first, keeps its start quiet

FLAGS = flags.FLAGS

# A TFRecord: the length of the data in eight bytes, its checksum in four, the data, their checksum in four.
BEFORE, AFTER = 12, 4


class ShardError(ValueError):
    """The shards cannot be written; the message says why and what to do."""


def plan(sizes: np.ndarray, shard_bytes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where recordings of these sizes go, in their order.

    With all records laid end to end, those that begin within the same `shard_bytes` share a shard. So it has about that
    size, and more where a single recording has.

    Args:
      sizes: (N,) bytes of the recordings.

    Returns:
      (S,) the first recording of each shard; (N,) where a recording's bytes begin in its shard; (S,) the shards' bytes.
    """
    ends = np.cumsum(sizes + BEFORE + AFTER)
    begins = ends - (sizes + BEFORE + AFTER)
    _, first, shards = np.unique(begins // shard_bytes, return_index=True, return_inverse=True)
    return first, begins - begins[first][shards] + BEFORE, np.diff([*begins[first], ends[-1]])


def examine(corpus: Corpus, threads: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Sizes (N,) in bytes and times (N,) in ns of all recordings, and by its row what is wrong with one."""

    def look(chunk: np.ndarray) -> list[tuple[int, int] | str]:
        return [_size_and_time(os.path.join(corpus.root, path)) for path in chunk]

    found: list[tuple[int, int] | str] = []
    progress = show_progress("sizes of", len(corpus))
    # A future per file would weigh more than the look at it.
    chunks = [corpus.paths[i : i + 64] for i in range(0, len(corpus), 64)]
    with ThreadPoolExecutor(threads) as pool:
        for done in pool.map(look, chunks):
            found += done
            progress(len(found))
    faults = {row: fault for row, fault in enumerate(found) if isinstance(fault, str)}
    sizes, times = np.array([(0, 0) if row in faults else both for row, both in enumerate(found)], np.int64).T
    return sizes, times, faults


def _size_and_time(path: str) -> tuple[int, int] | str:
    try:
        status = os.stat(path)
    except OSError as error:
        return error.strerror
    if not stat.S_ISREG(status.st_mode):
        return "is no file"
    if not status.st_size:
        return "is empty (0 bytes)"
    return (status.st_size, status.st_mtime_ns) if os.access(path, os.R_OK) else os.strerror(errno.EACCES)


def make_shards(corpus: Corpus, output: Path, shard_bytes: int, threads: int) -> tuple[Corpus, list[str]]:
    """Writes the shards and the index of a corpus.

    Returns:
      The corpus as index.tsv has it, and what is wrong with each of the recordings that were left out.

    Raises:
      ShardError: other shards lie in the folder, the disk is too full, or a recording changes meanwhile.
      CorpusError: no recording can be used.
      OSError, tf.errors.OpError: something cannot be read or written. What was done is kept.
    """
    sizes, times, faults = examine(corpus, threads)
    left_out = [f"{corpus.root / corpus.paths[row]}: {fault}" for row, fault in faults.items()]
    if len(faults) == len(corpus):
        raise CorpusError(f"None of the {len(corpus):,} recordings can be used. The first: {left_out[0]}")
    usable = np.ones(len(corpus), bool)
    usable[list(faults)] = False
    corpus, sizes, times = corpus.select(usable), sizes[usable], times[usable]

    first, offsets, shard_sizes = plan(sizes, shard_bytes)
    # Padded with zeros, so that the paths of a session sort as its recordings did.
    width = max(5, len(str(len(first) - 1)))
    shards = [output / f"{number:0{width}}.tfrecord" for number in range(len(first))]
    counts = np.diff([*first, len(corpus)])
    names = [
        f"{shard.name}:{offset:012}+{size}:{path}"
        for shard, offset, size, path in zip(np.repeat(shards, counts), offsets, sizes, corpus.paths, strict=True)
    ]
    rows = [slice(begin, begin + count) for begin, count in zip(first, counts, strict=True)]

    output.mkdir(parents=True, exist_ok=True)
    index, unfinished = output / "index.tsv", output / ".index.tsv.partial"
    known = _known(output, index, unfinished, names)
    newest = np.maximum.reduceat(times, first)
    # The names tell all of a shard's content: which recordings, how long, in which order.
    kept = {
        shard
        for shard, own, size, time in zip(shards, rows, shard_sizes, newest, strict=True)
        if known.issuperset(names[own]) and _is_there(shard, size, time)
    }
    for file in output.glob("*.tfrecord*"):
        if file not in kept:
            file.unlink()
    sharded = dataclasses.replace(corpus, root=output, paths=np.array(names, object))
    write_manifest(sharded, unfinished)
    index.unlink(missing_ok=True)

    absent = [number for number, shard in enumerate(shards) if shard not in kept]
    needed, free = int(shard_sizes[absent].sum()), shutil.disk_usage(output).free
    if needed > free:
        raise ShardError(
            f"{len(absent):,} shards need {needed / 1e9:,.3f} GB; {output} has {free / 1e9:,.3f} GB free. Free some, "
            "or give another --output"
        )
    _write_all(corpus, sizes, [(shards[number], rows[number]) for number in absent], threads)
    os.replace(unfinished, index)
    return sharded, left_out


def _known(output: Path, index: Path, unfinished: Path, names: list[str]) -> set[str]:
    """The names of what an earlier run packed, or was packing, into the folder."""
    if unfinished.exists():
        return set(read_manifest(unfinished).paths)
    known = set(read_manifest(index).paths) if index.exists() else set()
    if known != set(names) and (known or any(output.glob("*.tfrecord"))):
        raise ShardError(
            f"{output} holds shards of another corpus, or of files that have changed since. Give another --output, or "
            "delete it"
        )
    return known


def _is_there(shard: Path, size: int, time: int) -> bool:
    return shard.exists() and shard.stat().st_size == size and shard.stat().st_mtime_ns >= time


def _write_all(corpus: Corpus, sizes: np.ndarray, parts: list[tuple[Path, slice]], threads: int) -> None:
    """Writes shards (name, rows of the corpus), several at a time."""
    progress = show_progress("packed", sum(rows.stop - rows.start for _, rows in parts))
    numbers, lock, stopped = itertools.count(1), threading.Lock(), threading.Event()

    def write(part: tuple[Path, slice]) -> None:
        shard, rows = part
        # Always the same, so that what a killed run leaves is found by the next.
        temporary = shard.with_name(f".{shard.name}.partial")
        try:
            with tf.io.TFRecordWriter(os.fspath(temporary)) as writer:
                for path, size in zip(corpus.paths[rows], sizes[rows].tolist(), strict=True):
                    content = (corpus.root / path).read_bytes()
                    if len(content) != size:
                        raise ShardError(
                            f"{corpus.root / path} had {size:,} bytes at first and now has {len(content):,}. Run the "
                            "same command again when nothing changes the corpus"
                        )
                    writer.write(content)
                    with lock:
                        progress(next(numbers))
                    if stopped.is_set():
                        return
            os.replace(temporary, shard)
        finally:
            temporary.unlink(missing_ok=True)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for _ in pool.map(write, parts):
                pass
        except KeyboardInterrupt:
            stopped.set()
            raise


def define_flags() -> None:
    # Not at import: tests import this beside other modules with flags of the same names.
    flags.DEFINE_string("corpus", None, "Folder with one per speaker, or a manifest (.tsv).")
    flags.DEFINE_string("corpus_root", None, "Folder that the corpus's paths start from; default: its own.")
    flags.DEFINE_string("output", None, "Folder for the shards and index.tsv.")
    flags.DEFINE_integer("shard_megabytes", 512, "Size of a shard, about, in 10⁶ bytes.", lower_bound=1)
    flags.DEFINE_integer("threads", 16, "Files read at a time; more for a disk that answers late.", lower_bound=1)
    flags.mark_flags_as_required(["corpus", "output"])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    output = Path(FLAGS.output)
    try:
        print(f"listing {FLAGS.corpus}", file=sys.stderr)
        corpus = read_corpus(FLAGS.corpus, FLAGS.corpus_root)
        sharded, left_out = make_shards(corpus, output, FLAGS.shard_megabytes * 10**6, FLAGS.threads)
    except (ShardError, CorpusError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror}. Put that right; the same command then goes on from here")
    except tf.errors.OpError as error:
        sys.exit(f"error: {error.message}. Put that right; the same command then goes on from here")
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    if left_out:
        print(f"{len(left_out):,} recordings were left out, since they cannot be read:")
        print("\n".join(f"  {fault}" for fault in left_out[:10]))
        if len(left_out) > 10:
            print(f"  and {len(left_out) - 10:,} more")
    shards = len({path.partition(":")[0] for path in sharded.paths})
    print(f"{output / 'index.tsv'}: {sharded.summary()}, in {shards:,} shards")
    print(f"Use it as: --corpus={output / 'index.tsv'}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
