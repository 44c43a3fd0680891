"""Embeds recordings into a file: python -m vggvox_tf.embed --encoder=RUN/encoder.keras --corpus=DIR --output=E.npz

The file (see embeddings.py) has the paths, speakers and vectors, and the fingerprint of the encoder. What is done is
saved every minute in OUTPUT.parts/: started again after an interruption, the program goes on from there. Recordings
that cannot be used are left out and listed in OUTPUT.bad.tsv.
"""

import shutil
import time
from pathlib import Path

import numpy as np
from absl import flags, logging

from vggvox_tf import cli
from vggvox_tf.audio import SAMPLE_RATE, AudioError
from vggvox_tf.corpus import read_corpus, replacing
from vggvox_tf.embeddings import Embeddings, EmbeddingsError
from vggvox_tf.speaker_encoder import SpeakerEncoder
from vggvox_tf.trials import read_trials, speaker_of

FLAGS = flags.FLAGS


def define_flags():
    flags.DEFINE_string("encoder", None, "Encoder file, RUN/encoder.keras.")
    flags.DEFINE_string("corpus", None, "Recordings: a manifest (.tsv), or a folder with one per speaker.")
    flags.DEFINE_string("trials", None, "Instead of --corpus: a trial list, whose recordings are embedded.")
    flags.DEFINE_string("root", None, "Folder the paths start from; default: the manifest's or the list's own.")
    flags.DEFINE_string("output", None, "File for the embeddings, ending in .npz.")
    flags.DEFINE_integer("batch_size", 8, "Most recordings embedded at a time.", 1)
    flags.mark_flags_as_required(["encoder", "output"])
    flags.mark_flags_as_mutual_exclusive(["corpus", "trials"], required=True)


def embed(encoder, root, paths, speakers, lengths, output, batch_size=8, save_every=60):
    """Embeds recordings into `output`, in the order of `paths`, going on from the parts of an interrupted run.

    Args:
      encoder: a SpeakerEncoder.
      root, paths (N,), speakers (N,): the recordings.
      lengths: (N,) samples, to put recordings of equal length into batches, or None to read them from the headers.
      save_every: seconds between parts.

    Returns:
      The recordings left out: index -> AudioError.
    """
    output = Path(output)
    parts = output.with_name(f"{output.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    fingerprint = encoder.fingerprint
    vectors = np.full((len(paths), encoder.dimension), np.nan, np.float32)
    row = {path: index for index, path in enumerate(paths)}
    numbers = [0]
    for path in sorted(parts.glob("*.npz")):
        try:
            part = Embeddings.load(path, fingerprint)
            vectors[[row[name] for name in part.paths]] = part.vectors
        except (EmbeddingsError, KeyError) as error:
            raise EmbeddingsError(
                f"{parts} holds parts of other embeddings than these ({error}): delete it to begin anew, or give "
                "another --output"
            ) from error
        numbers.append(int(path.stem) + 1)
    left = np.flatnonzero(np.isnan(vectors[:, 0]))
    if len(left) < len(paths):
        logging.info("Going on from %s: %d of %d recordings are done.", parts, len(paths) - len(left), len(paths))

    errors, pending, saved = {}, [], time.monotonic()
    progress = cli.show_progress(len(left))

    def save():
        rows = np.concatenate(pending)
        Embeddings(paths[rows], speakers[rows], vectors[rows], fingerprint).save(parts / f"{max(numbers):06}.npz")
        numbers.append(max(numbers) + 1)
        pending.clear()

    if len(left):
        done = 0
        lengths = lengths[left] if lengths is not None else None
        for indices, batch in encoder.embed_batches(paths[left], root, None, lengths, batch_size, errors):
            vectors[left[indices]] = batch
            pending.append(left[indices])
            done += len(indices)
            progress(done)
            if time.monotonic() > saved + save_every:
                save()
                saved = time.monotonic()
    errors = {int(left[index]): error for index, error in sorted(errors.items())}
    if len(errors) == len(paths):
        first = next(iter(errors.values()))
        raise AudioError(first.path, f"{first.reason} (none of the {len(paths)} recordings can be used)")
    good = np.isfinite(vectors[:, 0])
    Embeddings(paths[good], speakers[good], vectors[good], fingerprint).save(output)
    shutil.rmtree(parts)
    bad = output.with_name(f"{output.name}.bad.tsv")
    if errors:
        with replacing(bad) as file:
            file.writelines(f"{paths[index]}\t{error.reason}\n" for index, error in errors.items())
    else:
        bad.unlink(missing_ok=True)
    return errors


def main(_):
    if not FLAGS.output.endswith(".npz"):
        raise flags.Error(f"--output={FLAGS.output} must end in .npz.")
    encoder = SpeakerEncoder.load(FLAGS.encoder)
    lengths = None
    if FLAGS.trials:
        trials = read_trials(FLAGS.trials, FLAGS.root)
        trials.check_files()
        root, paths = trials.root, trials.paths
        speakers = np.array([speaker_of(path) for path in paths])
    else:
        corpus = read_corpus(FLAGS.corpus, FLAGS.root)
        root, paths = corpus.root, corpus.paths
        speakers = np.array(corpus.speaker_names)[corpus.speakers]
        if np.isfinite(corpus.seconds).all():
            lengths = np.round(corpus.seconds.astype(float) * SAMPLE_RATE)
    errors = embed(encoder, root, paths, speakers, lengths, FLAGS.output, FLAGS.batch_size)
    for error in list(errors.values())[:10]:
        logging.warning("Left out: %s", error)
    if errors:
        logging.warning("%d of %d recordings were left out: %s.bad.tsv", len(errors), len(paths), FLAGS.output)
    print(f"{len(paths) - len(errors):,} recordings of {len(set(speakers)):,} speakers embedded: {FLAGS.output}")


if __name__ == "__main__":
    define_flags()
    cli.start(main)
