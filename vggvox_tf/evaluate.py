"""Tests an encoder on a trial list: python -m vggvox_tf.evaluate --encoder=RUN/encoder.keras --trials=veri_test.txt

Prints EER, minimum detection cost, AUC, accuracy, precision and recall, and writes them as metrics.json beside roc.png.
"""

import json
import sys
import time
from pathlib import Path

from absl import flags, logging

from vggvox_tf import cli, metrics, scoring
from vggvox_tf.corpus import replacing
from vggvox_tf.run import training_speakers
from vggvox_tf.trials import read_trials

FLAGS = flags.FLAGS

flags.DEFINE_string("encoder", None, "Encoder file, RUN/encoder.keras.")
flags.DEFINE_string("trials", None, "Trial list in VoxCeleb1's format: lines of 'LABEL ENROL TEST', 1 = same speaker.")
flags.DEFINE_string("trials_root", None, "Folder the trial list's paths start from; default: the list's own.")
flags.DEFINE_string("output", None, "Folder for metrics.json and roc.png; default: eval-LIST beside the encoder.")
flags.DEFINE_enum("distance", "cosine", ["cosine", "euclidean"], "Score: the cosine, or minus the Euclidean distance.")
flags.DEFINE_float("p_target", 0.01, "Prior probability of a target trial in the detection cost.", 1e-6, 1 - 1e-6)
flags.DEFINE_integer("batch_size", 32, "Most recordings embedded at a time.", 1)

flags.mark_flags_as_required(["encoder", "trials"])


def show_progress(total):
    """A progress callback that rewrites one line of a terminal, or else writes a line every ten seconds."""
    last = time.monotonic()

    def progress(done):
        nonlocal last
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,} recordings embedded", end="" if done < total else "\n", file=sys.stderr)
        elif time.monotonic() > last + 10:
            last = time.monotonic()
            logging.info("%s of %s recordings embedded", f"{done:,}", f"{total:,}")

    return progress


def main(_):
    encoder = scoring.load_encoder(FLAGS.encoder)
    trials = read_trials(FLAGS.trials, FLAGS.trials_root)
    trials.check_files()
    start = time.monotonic()
    embeddings = scoring.embed(encoder, trials.root, trials.paths, FLAGS.batch_size, show_progress(len(trials.paths)))
    seconds = time.monotonic() - start
    scores = scoring.score(trials, embeddings, FLAGS.distance)
    trained_on = training_speakers(FLAGS.encoder)
    results = metrics.summary(scores, trials.labels, FLAGS.p_target) | {
        "encoder": FLAGS.encoder,
        "trial_list": FLAGS.trials,
        "distance": FLAGS.distance,
        "recordings": len(trials.paths),
        "recordings_per_second": len(trials.paths) / seconds,
        "speakers": len(trials.speakers()),
        "training_speakers_among_them": len(trials.speakers() & trained_on),
    }
    output = Path(FLAGS.output or Path(FLAGS.encoder).parent / f"eval-{Path(FLAGS.trials).stem}")
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / "metrics.json") as file:
        json.dump(results, file, indent=2)
    title = f"{FLAGS.encoder} on {FLAGS.trials}"
    metrics.plot_roc(scores, trials.labels, output / "roc.png", title)
    print(f"\n{title}\n\n{metrics.format_summary(results)}")
    if note := trials.known_speakers_note(trained_on):
        print(f"\n{note}")
    print(f"\nWritten to {output}: metrics.json, roc.png")


if __name__ == "__main__":
    cli.start(main)
