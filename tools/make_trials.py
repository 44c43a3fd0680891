"""Makes a trial list for a corpus that has none, in VoxCeleb1's format.

  python -m tools.make_trials --corpus=/data/speech --output=/data/speech/trials.txt --targets=1000

Which pairs may be drawn, and how, is said in vggvox_tf/trials.py.
"""

import sys
from pathlib import Path

from absl import app, flags

from vggvox_tf.corpus import CorpusError, read_corpus
from vggvox_tf.trials import TrialError, make_trials, write_trials

FLAGS = flags.FLAGS


def define_flags() -> None:
    # Not at import: tests import this beside other modules with flags of the same names.
    flags.DEFINE_string("corpus", None, "Recordings to test on: a manifest (.tsv), or a folder with one per speaker.")
    flags.DEFINE_string("corpus_root", None, "Folder the manifest's paths start from; default: the manifest's own.")
    flags.DEFINE_string("output", None, "Trial list to write.")
    flags.DEFINE_integer("targets", 5000, "Target trials (the same speaker); 0: every pair there is.", lower_bound=0)
    flags.DEFINE_integer("nontargets", 5000, "Non-target trials (two speakers); 0: every pair there is.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Seed of the draw: the same corpus and seed give the same list.", lower_bound=0)
    flags.DEFINE_float(
        "same_gender_share",
        None,
        "Share of the non-target trials whose speakers have the same known gender. Default: one half where "
        "the corpus has enough such pairs, otherwise genders play no part.",
        0.0,
        1.0,
    )
    flags.DEFINE_boolean(
        "same_session",
        False,
        "Allow target trials within a session. Off: only between two sessions, if the corpus knows any.",
    )
    flags.mark_flags_as_required(["corpus", "output"])
    flags.register_multi_flags_validator(
        ["nontargets", "same_gender_share"],
        lambda values: values["nontargets"] or values["same_gender_share"] is None,
        "--same_gender_share cannot be chosen with --nontargets=0, which takes every pair",
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    output = Path(FLAGS.output)
    try:
        corpus = read_corpus(FLAGS.corpus, FLAGS.corpus_root)
        trials = make_trials(
            corpus,
            FLAGS.targets or None,
            FLAGS.nontargets or None,
            FLAGS.seed,
            same_gender=FLAGS.same_gender_share,
            cross_session_only=not FLAGS.same_session,
        )
        write_trials(trials, output)
    except (CorpusError, TrialError, OSError) as error:
        sys.exit(f"error: {error}")

    gender_of = dict(zip(corpus.paths, (corpus.genders[s] for s in corpus.speakers), strict=True))
    nontargets = ~trials.labels
    same = sum(
        bool(gender_of[a]) and gender_of[a] == gender_of[b]
        for a, b in zip(trials.paths[trials.enrol[nontargets]], trials.paths[trials.test[nontargets]], strict=True)
    )
    print(
        f"{output}: {int(trials.labels.sum()):,} target and {int(nontargets.sum()):,} non-target trials "
        f"({same / nontargets.sum():.0%} known to be of the same gender) over {len(trials.paths):,} "
        f"utterances of {len(corpus.speaker_names):,} speakers"
    )
    inside = output.parent.resolve() == corpus.root.resolve()
    print(f"Use it as: --trials={output}" + ("" if inside else f" --trials_root={corpus.root}"))


if __name__ == "__main__":
    define_flags()
    app.run(main)
