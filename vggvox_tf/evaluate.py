"""Tests an encoder on trial lists: python -m vggvox_tf.evaluate --encoder=RUN/encoder.keras --trials=veri_test.txt

Prints a table and writes a report: report.html, report.md, pictures, and metrics.json with every number.

  --protocol=all                       the three test-time protocols of the VoxCeleb2 paper
  --trials=vox1-O,vox1-E,vox1-H        VoxCeleb1's lists by name, with --trials_root=the folder of VoxCeleb1
  --normalisation=all --cohort=CORPUS  z-norm, t-norm, s-norm and adaptive s-norm beside the raw scores
  --development=LIST                   calibrates on another list, and keeps the calibration beside the encoder
"""

import shlex
import sys
import time
from pathlib import Path

from absl import flags

from vggvox_tf import cli, evaluation, metrics, report, scoring
from vggvox_tf.run import git_revision, training_speakers
from vggvox_tf.speaker_encoder import SpeakerEncoder
from vggvox_tf.trials import VOXCELEB1_LISTS

FLAGS = flags.FLAGS


def define_flags():
    flags.DEFINE_string("encoder", None, "Encoder file, RUN/encoder.keras.")
    flags.DEFINE_list(
        "trials",
        None,
        "Trial lists, separated by commas: files of 'LABEL ENROL TEST' lines (1 = same speaker), or VoxCeleb1's by "
        f"name ({', '.join(VOXCELEB1_LISTS)}).",
    )
    flags.DEFINE_string(
        "trials_root",
        None,
        "Folder the trial lists' paths start from; default: each list's own. With VoxCeleb1's lists by name: the "
        "folder that holds the lists and wav/.",
    )
    flags.DEFINE_boolean("allow_training_speakers", False, "Test also where speakers of a list were trained on.")
    protocols = "; ".join(f"{key}: {text}" for key, text in scoring.PROTOCOLS.items())
    flags.DEFINE_enum(
        "protocol", "whole", ["all", *scoring.PROTOCOLS], f"What of a recording is compared ({protocols})."
    )
    flags.DEFINE_enum("distance", "cosine", ["cosine", "euclidean"], "Score: the cosine, or minus the distance.")
    flags.DEFINE_list(
        "normalisation",
        ["none"],
        f"Score normalisations, separated by commas, of {', '.join(scoring.NORMALISATIONS)}; or all.",
    )
    flags.DEFINE_string(
        "cohort",
        None,
        "Other speakers to normalise the scores with, usually the training corpus: a manifest, a folder, or embeddings "
        f"(.npz) of vggvox_tf.embed. Of a corpus, {evaluation.COHORT_UTTERANCES} recordings a speaker are used.",
    )
    flags.DEFINE_string("cohort_root", None, "Folder a cohort manifest's paths start from; default: its own.")
    flags.DEFINE_integer("cohort_top", 200, "Highest cohort scores that adaptive s-norm takes; at most all.", 2)
    flags.DEFINE_string("development", None, "Trial list to fit the calibration on, of other speakers than --trials.")
    flags.DEFINE_string("development_root", None, "Folder its paths start from; default: the list's own.")
    flags.DEFINE_float("threshold", None, "Count the decisions on the raw scores at this threshold, too.")
    flags.DEFINE_string("output", None, "Folder for the report; default: eval-LISTS beside the encoder.")
    flags.DEFINE_integer("batch_size", 8, "Most recordings, or crops, embedded at a time.", 1)
    flags.mark_flags_as_required(["encoder", "trials"])


def check_flags():
    """Returns the normalisations in the order of the report; raises flags.Error for flags that contradict or miss."""
    kinds = scoring.NORMALISATIONS if FLAGS.normalisation == ["all"] else FLAGS.normalisation
    if not kinds or set(kinds) - set(scoring.NORMALISATIONS):
        raise flags.Error(
            f"--normalisation={','.join(kinds)}: expected some of {', '.join(scoring.NORMALISATIONS)}, or all."
        )
    normalised = set(kinds) != {"none"}
    if normalised and not FLAGS.cohort:
        raise flags.Error(f"--normalisation={','.join(kinds)} needs --cohort, speakers to normalise the scores with.")
    if FLAGS.cohort and not normalised:
        raise flags.Error("--cohort has no effect without --normalisation.")
    for name, needed in (("cohort_root", "cohort"), ("cohort_top", "cohort"), ("development_root", "development")):
        if FLAGS[name].present and not FLAGS[needed].value:
            raise flags.Error(f"--{name} has no effect without --{needed}.")
    names = [evaluation.short_name(name) for name in FLAGS.trials]
    if len(set(names)) < len(names):
        raise flags.Error(f"--trials: the report needs lists of different names, received {', '.join(names)}.")
    for name in FLAGS.trials:
        if name in VOXCELEB1_LISTS and not FLAGS.trials_root:
            raise flags.Error(f"--trials={name} needs --trials_root, the folder that holds VoxCeleb1's lists and wav/.")
    return [kind for kind in scoring.NORMALISATIONS if kind in kinds]


def main(_):
    kinds = check_flags()
    encoder = SpeakerEncoder.load(FLAGS.encoder)
    trained_on = training_speakers(FLAGS.encoder)
    known = trained_on or set()
    refused = set() if FLAGS.allow_training_speakers else known
    lists = {name: evaluation.open_trials(name, FLAGS.trials_root, refused) for name in FLAGS.trials}
    opened = list(lists.values())
    development = None
    if FLAGS.development:
        development = evaluation.open_trials(FLAGS.development, FLAGS.development_root, refused)
        opened.append(development)

    cohort, top = None, None
    if FLAGS.cohort:
        speakers = set().union(*(trials.speakers() for trials in opened))
        cohort = evaluation.cohort_vectors(encoder, FLAGS.cohort, FLAGS.cohort_root, speakers, FLAGS.batch_size)
        top = min(FLAGS.cohort_top, len(cohort))
    protocols = list(scoring.PROTOCOLS) if FLAGS.protocol == "all" else [FLAGS.protocol]
    scorer = evaluation.Scorer(encoder, opened, protocols, kinds, FLAGS.distance, cohort, top, FLAGS.batch_size)
    calibrations = evaluation.calibrate(scorer, development, FLAGS.development, encoder) if development else {}

    results = {
        "title": f"{FLAGS.encoder} on {', '.join(lists)}",
        "date": time.strftime("%Y-%m-%d"),
        "revision": git_revision(),
        "command": shlex.join(["python", "-m", "vggvox_tf.evaluate", *sys.argv[1:]]),
        "encoder": FLAGS.encoder,
        "fingerprint": encoder.fingerprint,
        "training_speakers": None if trained_on is None else len(trained_on),
        "distance": FLAGS.distance,
        "cohort": None if cohort is None else {"source": FLAGS.cohort, "speakers": len(cohort), "top": top},
        "development": None,
        "lists": [],
    }
    if development:
        shared = development.speakers() & set().union(*(trials.speakers() for trials in lists.values()))
        note = f"{len(shared)} of its speakers are tested on as well, which flatters the calibration." if shared else ""
        results["development"] = {
            "trial_list": FLAGS.development,
            "trials": len(development),
            "speakers": len(development.speakers()),
            "note": note,
        }
    curves = {}
    for name, trials in lists.items():
        entry, scores = evaluation.evaluate_list(scorer, trials, name, known, calibrations, FLAGS.threshold)
        results["lists"].append(entry)
        curves |= {(entry["name"], *system): (values, trials.labels) for system, values in scores.items()}

    names = "+".join(entry["name"] for entry in results["lists"])
    output = Path(FLAGS.output or Path(FLAGS.encoder).parent / f"eval-{names}")
    report.write(output, results, curves)
    print(f"\n{results['title']}\n\n{report.main_table(results)}")
    for entry in results["lists"]:
        print(f"\n{entry['name']}\n{metrics.format_summary(entry['systems'][0])}")
        if entry["note"]:
            print(f"\n{entry['note']}")
    kept = calibrations.get(("whole", "none"))
    if kept and FLAGS.distance == "cosine":
        kept.save(encoder.calibration_path)
        print(f"\nThe calibration of whole utterances, for verify and identify: {encoder.calibration_path}")
    print(f"\nWritten to {output}: report.html, report.md, pictures, metrics.json")


if __name__ == "__main__":
    define_flags()
    cli.start(main)
