"""Lists a corpus once, so that training does not list a million files at every start.

  python -m tools.make_manifest --corpus=/data/vox2/dev/aac --output=/data/vox2/dev/aac/manifest.tsv

The manifest is a TSV file with path, speaker, session, seconds and gender; see vggvox_tf/corpus.py.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import app, flags

from vggvox_tf import audio
from vggvox_tf.corpus import Corpus, CorpusError, read_corpus, write_manifest

FLAGS = flags.FLAGS


def read_seconds(
    corpus: Corpus, workers: int, progress: Callable[[int], None] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Lengths of all utterances, as the decoder will find them.

    Args:
      corpus: N utterances.
      workers: number of threads.
      progress: called with the number of files done so far.

    Returns:
      (N,) float32 seconds, nan where a file cannot be read; and what is wrong with each of those files.
    """

    def read(chunk: np.ndarray) -> list[float | audio.AudioError]:
        lengths = []
        for path in chunk:
            try:
                lengths.append(audio.num_samples(os.path.join(corpus.root, path)) / audio.SAMPLE_RATE)
            except audio.AudioError as error:
                lengths.append(error)
        return lengths

    lengths: list[float | audio.AudioError] = []
    # A future per file would weigh more than the file's row in the manifest.
    chunks = [corpus.paths[i : i + 64] for i in range(0, len(corpus), 64)]
    with ThreadPoolExecutor(workers) as pool:
        for done in pool.map(read, chunks):
            lengths += done
            if progress:
                progress(len(lengths))
    faults = [str(length) for length in lengths if isinstance(length, audio.AudioError)]
    # Files without a single sample are AudioErrors too, so all lengths are above 0.
    seconds = [np.nan if isinstance(length, audio.AudioError) else length for length in lengths]
    return np.array(seconds, np.float32), faults


def show_progress(what: str, total: int | None = None) -> Callable[[int], None]:
    """A callback that reports the number done on standard error, once a second at most."""
    started = last = time.monotonic()

    def progress(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 1:
            last = now
            of = f" of {total:,}" if total else ""
            print(f"{what}: {done:,}{of}, {done / (now - started):,.0f}/s", file=sys.stderr, flush=True)

    return progress


def define_flags() -> None:
    # Not at import: tests import this beside other modules with flags of the same names.
    flags.DEFINE_string(
        "corpus",
        None,
        "Folder with a folder per speaker, in any layout that vggvox_tf/corpus.py knows; or a manifest in "
        "its root, to add lengths to.",
    )
    flags.DEFINE_string(
        "output", None, "Manifest to write, ending in .tsv. Default: manifest.tsv in the corpus folder."
    )
    flags.DEFINE_boolean(
        "seconds",
        False,
        "Also read every file's length in seconds, mostly from its header (off: lengths unknown).",
    )
    flags.DEFINE_integer(
        "workers", 2 * (os.cpu_count() or 1), "Threads reading lengths, with --seconds.", lower_bound=1
    )
    flags.mark_flag_as_required("corpus")
    flags.register_validator(
        "output",
        lambda path: path is None or path.endswith(".tsv"),
        "must end in .tsv, as --corpus=MANIFEST.tsv does",
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if FLAGS["workers"].present and not FLAGS.seconds:
        raise app.UsageError("--workers has no effect without --seconds: leave it out")
    source = Path(FLAGS.corpus)
    default = source / "manifest.tsv" if source.is_dir() else source
    output = Path(FLAGS.output) if FLAGS.output else default
    try:
        corpus = read_corpus(source, progress=show_progress("files found"))
        faults: list[str] = []
        if FLAGS.seconds:
            seconds, faults = read_seconds(corpus, FLAGS.workers, show_progress("lengths read", len(corpus)))
            corpus = dataclasses.replace(corpus, seconds=seconds)
        write_manifest(corpus, output)
    except CorpusError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: cannot write {output}: {error.strerror}. Give another --output")
    print(f"{output}: {corpus.summary()}")
    if faults:
        print(f"{len(faults):,} files have no length, since they cannot be read; training would skip them:")
        print("\n".join(f"  {fault}" for fault in faults[:10]))
        if len(faults) > 10:
            print(f"  and {len(faults) - 10:,} more")
    inside = output.parent.resolve() == corpus.root.resolve()
    print(f"Use it as: --corpus={output}" + ("" if inside else f" --corpus_root={corpus.root}"))


if __name__ == "__main__":
    define_flags()
    app.run(main)
