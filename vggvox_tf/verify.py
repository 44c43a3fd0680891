"""Same speaker or not: python -m vggvox_tf.verify --encoder=RUN/encoder.keras a.wav b.m4a

The score is the cosine of two embeddings. What turns it into a decision is the encoder's calibration, which
vggvox_tf.evaluate --development=LIST makes, or a --threshold of your own; with neither there is no decision.
"""

import sys

import numpy as np
from absl import flags

from vggvox_tf import cli, scoring
from vggvox_tf.corpus import replacing
from vggvox_tf.decision import decide
from vggvox_tf.speaker_encoder import SpeakerEncoder
from vggvox_tf.trials import read_pairs

FLAGS = flags.FLAGS


def define_flags():
    flags.DEFINE_string("encoder", None, "Encoder file, RUN/encoder.keras.")
    flags.DEFINE_string(
        "pairs", None, "Instead of two recordings: a list with two paths a line (by tabs, if they hold spaces)."
    )
    flags.DEFINE_string("pairs_root", None, "Folder the list's paths start from; default: the list's own.")
    flags.DEFINE_float("threshold", None, "Score from which on it is the same speaker; default: the calibration's.")
    flags.DEFINE_float(
        "p_target", 0.5, "Prior probability that two recordings are of the same speaker.", 1e-6, 1 - 1e-6
    )
    flags.DEFINE_string("output", None, "With --pairs: file for the table, tab-separated; default: printed.")
    flags.mark_flags_as_required(["encoder"])


UNCALIBRATED = (
    "This encoder has no calibration, so its scores cannot be read as probabilities. A trial list of speakers that it "
    "was not trained on gives it one: python -m vggvox_tf.evaluate --encoder=ENCODER --trials=LIST --development=OTHER"
)
WORDS = {True: "same", False: "different", None: "no decision"}


def describe(decision, p_target):
    """A decision.Decision in lines for a person."""
    lines = [
        {True: "same speaker", False: "different speakers", None: "no decision"}[decision.same],
        f"score        {decision.score:.4f} (cosine)",
    ]
    if decision.probability is not None:
        lines.append(f"probability  {decision.probability:.4f} of the same speaker, given a prior of {p_target:g}")
    if decision.threshold:
        lines.append(f"threshold    {decision.threshold.score:.4f}, {decision.threshold.source}")
        if decision.threshold.score > 1:
            lines.append("No cosine reaches this threshold: against this prior, the encoder's word is never enough.")
    if decision.probability is None:
        lines.append(UNCALIBRATED)
    return "\n".join(lines)


def table(pairs, decisions):
    """A tab-separated table of decisions, one pair a line; what cannot be told is empty."""
    yield "decision\tscore\tprobability\ta\tb"
    for a, b, decision in zip(pairs.enrol, pairs.test, decisions, strict=True):
        if np.isnan(decision.score):
            words = "unusable recording\t\t"
        else:
            probability = "" if decision.probability is None else f"{decision.probability:.4f}"
            words = f"{WORDS[decision.same]}\t{decision.score:.4f}\t{probability}"
        yield f"{words}\t{pairs.paths[a]}\t{pairs.paths[b]}"


def main(argv):
    recordings = argv[1:]
    if bool(FLAGS.pairs) == bool(recordings) or len(recordings) not in (0, 2):
        raise flags.Error(f"Expected two recordings, or --pairs and none; received {len(recordings)} recordings.")
    for name in ("pairs_root", "output"):
        if FLAGS[name].present and not FLAGS.pairs:
            raise flags.Error(f"--{name} has no effect without --pairs.")
    encoder = SpeakerEncoder.load(FLAGS.encoder)
    if recordings:
        a, b = encoder.embed_files(recordings)
        print(describe(encoder.compare(a, b, FLAGS.threshold, FLAGS.p_target), FLAGS.p_target))
        return
    pairs = read_pairs(FLAGS.pairs, FLAGS.pairs_root)
    calibration, errors = encoder.calibration, {}
    vectors = encoder.embed_files(pairs.paths, pairs.root, progress=cli.show_progress(len(pairs.paths)), errors=errors)
    for error in errors.values():
        print(f"Unusable: {error}", file=sys.stderr)
    decisions = [decide(score, calibration, FLAGS.threshold, FLAGS.p_target) for score in scoring.score(pairs, vectors)]
    if FLAGS.output:
        with replacing(FLAGS.output) as file:
            file.writelines(f"{line}\n" for line in table(pairs, decisions))
    else:
        print("\n".join(table(pairs, decisions)))
    threshold = decisions[0].threshold
    print(f"Threshold: {threshold.score:.4f}, {threshold.source}" if threshold else UNCALIBRATED, file=sys.stderr)
    if errors:
        sys.exit(f"error: {len(errors)} of {len(pairs.paths)} recordings cannot be used (see above)")


if __name__ == "__main__":
    define_flags()
    cli.start(main, arguments=True)
