"""Makes one manifest of several corpora, and holds speakers out of it.

  python -m tools.combine_corpora --corpora=/data/voxceleb1/dev,/data/voxceleb2/dev --output=/data/all.tsv
  python -m tools.combine_corpora --corpora=people.tsv --output=train.tsv --hold_out=40 --held_out=development.tsv

Paths in the manifests start from the folder that all the corpora lie in, which is printed. What is decided on held-out
speakers (learning rates, a loss, when to stop) says more about strangers than what is decided on the training speakers.
"""

import os
import sys

import numpy as np
from absl import app, flags

from vggvox_tf.corpus import CorpusError, combine, read_corpus, write_manifest

FLAGS = flags.FLAGS


def define_flags():
    # Not at import: tests import this beside other modules with flags of the same names.
    flags.DEFINE_list("corpora", None, "Corpora, comma-separated: folders with one per speaker, or manifests (.tsv).")
    flags.DEFINE_list("roots", None, "Folders that the corpora's paths start from; default: their own.")
    flags.DEFINE_string("output", None, "Manifest (.tsv) to write.")
    flags.DEFINE_integer("hold_out", 0, "Number of speakers to leave out of it.", lower_bound=0)
    flags.DEFINE_string("held_out", None, "Manifest (.tsv) of the speakers left out.")
    flags.DEFINE_integer("seed", 0, "Draws the speakers that are left out.", lower_bound=0)
    flags.mark_flags_as_required(["corpora", "output"])


def hold_out(corpus, speakers, seed):
    """Two corpora of different speakers, the second of `speakers` drawn ones."""
    if not 0 < speakers < len(corpus.speaker_names):
        raise CorpusError(f"Expected to hold out 1 to {len(corpus.speaker_names) - 1} speakers, got {speakers}")
    chosen = np.random.default_rng(seed).permutation(len(corpus.speaker_names))[:speakers]
    mask = np.isin(corpus.speakers, chosen)
    return corpus.select(~mask), corpus.select(mask)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    roots = FLAGS.roots or [None] * len(FLAGS.corpora)
    if len(roots) != len(FLAGS.corpora):
        raise app.UsageError(f"--roots has {len(roots)} folders for {len(FLAGS.corpora)} corpora")
    if bool(FLAGS.hold_out) != bool(FLAGS.held_out):
        raise app.UsageError("--hold_out says how many speakers --held_out is of: give both, or neither")
    try:
        corpus = combine([read_corpus(path, root) for path, root in zip(FLAGS.corpora, roots, strict=True)])
        parts = {FLAGS.output: corpus}
        if FLAGS.hold_out:
            parts = dict(zip((FLAGS.output, FLAGS.held_out), hold_out(corpus, FLAGS.hold_out, FLAGS.seed), strict=True))
        for path, part in parts.items():
            write_manifest(part, path)
            print(f"{path}: {part.summary()}")
    except (CorpusError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"Use them with the root {os.path.relpath(corpus.root)}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
