"""Enrols people, and tells who speaks in a recording: python -m vggvox_tf.identify ACTION FLAGS [RECORDINGS]

enrol   --encoder=RUN/encoder.keras --gallery=people.npz --name=Anna a.wav b.m4a    (or a folder of them)
enrol   --encoder=RUN/encoder.keras --gallery=people.npz --corpus=FOLDER_OR_MANIFEST    (a folder per person)
who     --encoder=RUN/encoder.keras --gallery=people.npz x.wav y.m4a
test    --encoder=RUN/encoder.keras --gallery=people.npz --corpus=FOLDER_OR_MANIFEST
list    --gallery=people.npz
remove  --gallery=people.npz --name=Anna [a.wav]
"""

import itertools
import json
import os
import sys

import numpy as np
from absl import flags

from vggvox_tf import cli
from vggvox_tf.corpus import AUDIO_SUFFIXES, read_corpus, replacing
from vggvox_tf.decision import threshold_for
from vggvox_tf.gallery import Gallery, GalleryError
from vggvox_tf.speaker_encoder import SpeakerEncoder

FLAGS = flags.FLAGS

# action -> (flags it needs, flags it may have, what its arguments are); enrol also needs one of --name and --corpus
ACTIONS = {
    "enrol": (["encoder", "gallery"], ["name", "corpus", "corpus_root", "recordings_per_person"], "recordings"),
    "who": (["encoder", "gallery"], ["k", "threshold"], "recordings"),
    "test": (["encoder", "gallery", "corpus"], ["corpus_root", "threshold", "output"], None),
    "list": (["gallery"], [], None),
    "remove": (["gallery", "name"], [], "files"),
}

NO_THRESHOLD = (
    "The encoder has no calibration (vggvox_tf.evaluate --development=LIST makes one), and no --threshold is given"
)


def define_flags():
    # Not at import: tests import this beside other modules with flags of the same names.
    flags.DEFINE_string("encoder", None, "Encoder file, RUN/encoder.keras.", flag_values=FLAGS)
    flags.DEFINE_string("gallery", None, "File of enrolled people, .npz; enrol makes or extends it.", flag_values=FLAGS)
    flags.DEFINE_string("name", None, "Person to enrol or to remove.", flag_values=FLAGS)
    flags.DEFINE_string(
        "corpus",
        None,
        "Recordings of people to enrol, or to test on: a folder with one per person, or a manifest (.tsv).",
        flag_values=FLAGS,
    )
    flags.DEFINE_string(
        "corpus_root", None, "Folder the manifest's paths start from; default: the manifest's own.", flag_values=FLAGS
    )
    flags.DEFINE_integer(
        "recordings_per_person",
        0,
        "How many recordings of each person in the corpus to enrol, the first by name; 0: all.",
        0,
        flag_values=FLAGS,
    )
    flags.DEFINE_integer("k", 5, "How many people to name for each recording.", 1, flag_values=FLAGS)
    flags.DEFINE_float(
        "threshold",
        None,
        "Score (mean cosine with a person's recordings) below which a speaker is unknown. Default: the threshold of "
        "the encoder's calibration, if it has one.",
        -1.0,
        1.0,
        flag_values=FLAGS,
    )
    flags.DEFINE_string("output", None, "JSON file to write the results of a test to.", flag_values=FLAGS)


def check_arguments(arguments):
    """The action and its recordings; raises flags.Error for arguments and flags that cannot be meant."""
    if not arguments or arguments[0] not in ACTIONS:
        found = f"not {arguments[0]!r}" if arguments else "none was given"
        raise flags.Error(f"Expected an action as first argument, {found}. Actions: {', '.join(ACTIONS)}")
    action, *files = arguments
    needed, optional, kind = ACTIONS[action]
    every = {name for needs, may, _ in ACTIONS.values() for name in needs + may}
    for name in sorted(every.difference(needed, optional)):
        if FLAGS[name].present:
            raise flags.Error(f"--{name} has no effect with {action}: leave it out")
    for name in needed:
        if not FLAGS[name].value:
            raise flags.Error(f"{action} needs --{name}")
    if action == "enrol":
        if bool(FLAGS.name) == bool(FLAGS.corpus):
            raise flags.Error("enrol needs --name with recordings of that person, or --corpus with a folder per person")
        if FLAGS.name and FLAGS["recordings_per_person"].present:
            raise flags.Error("--recordings_per_person has no effect with --name: leave it out")
        kind = "recordings" if FLAGS.name else None
    if FLAGS.corpus_root and not FLAGS.corpus:
        raise flags.Error("--corpus_root has no effect without --corpus: leave it out")
    if files and kind is None:
        raise flags.Error(f"{action}{' --corpus' * (action == 'enrol')} takes no recordings: {' '.join(files)}")
    if not files and kind == "recordings":
        raise flags.Error(f"{action} needs recordings")
    return action, files


def main(argv):
    action, files = check_arguments(argv[1:])
    if action == "list":
        return list_people(FLAGS.gallery)
    if action == "remove":
        return remove(FLAGS.gallery, FLAGS.name, files)
    corpus = read_corpus(FLAGS.corpus, FLAGS.corpus_root) if FLAGS.corpus else None
    files = audio_files(files)
    encoder = SpeakerEncoder.load(FLAGS.encoder)
    if action == "enrol":
        people = people_of(corpus, FLAGS.recordings_per_person) if corpus else {FLAGS.name: files}
        return enrol(encoder, FLAGS.gallery, people)
    if action == "who":
        return who(encoder, FLAGS.gallery, files, FLAGS.k, FLAGS.threshold)
    return test(encoder, FLAGS.gallery, corpus, FLAGS.threshold, FLAGS.output)


def audio_files(arguments):
    """The recordings among the arguments, and those below the folders among them."""
    files = []
    for argument in arguments:
        if not os.path.isdir(argument):
            files.append(argument)
            continue
        below = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(argument)
            for name in names
            if name.lower().endswith(AUDIO_SUFFIXES) and name[0] != "."
        ]
        if not below:
            raise GalleryError(f"No audio files below {argument}; expected some of {', '.join(AUDIO_SUFFIXES)}")
        files += sorted(below)
    return files


def people_of(corpus, recordings_per_person=0):
    """{speaker: files} of a corpus: the first recordings of each, or all."""
    people = {name: [] for name in corpus.speaker_names}
    for path, speaker in zip(corpus.paths, corpus.speakers, strict=True):
        files = people[corpus.speaker_names[speaker]]
        if not recordings_per_person or len(files) < recordings_per_person:
            files.append(os.path.join(corpus.root, path))
    return people


def absolute(file):
    """What a gallery calls a recording, so that it is recognised from any folder and through any link."""
    return os.path.realpath(file)


def embed(encoder, files):
    """Vectors (N, D), and which recordings (N,) bool could be used; the others are named on stderr."""
    errors = {}
    vectors = encoder.embed_files(files, progress=cli.show_progress(len(files)), errors=errors)
    for index in sorted(errors):
        print(f"left out: {errors[index]}", file=sys.stderr)
    return vectors, np.array([index not in errors for index in range(len(files))])


def enrol(encoder, gallery_file, people):
    """Enrols {name: files}; returns the exit code: 1 if no recording could be used."""
    fingerprint = encoder.fingerprint
    exists = os.path.exists(gallery_file)
    gallery = Gallery.load(gallery_file, fingerprint) if exists else Gallery(fingerprint)
    people = {name: list(dict.fromkeys(map(absolute, files))) for name, files in people.items()}
    vectors, usable = embed(encoder, list(itertools.chain(*people.values())))
    start = enrolled = 0
    for name, files in people.items():
        rows = np.flatnonzero(usable[start : start + len(files)])
        if len(rows):
            gallery.add(name, [files[row] for row in rows], vectors[start + rows])
            enrolled += 1
        else:
            print(f"{name}: no recording can be used, nothing was added", file=sys.stderr)
        start += len(files)
    if not usable.any():
        print("error: nothing could be enrolled", file=sys.stderr)
        return 1
    gallery.save(gallery_file)
    print(
        f"Enrolled {count(enrolled, 'person', 'people')} with {count(usable.sum(), 'recording')}; {gallery_file} holds "
        f"{describe(gallery)}"
    )
    return 0


def describe(gallery):
    people = gallery.people
    recordings = sum(len(gallery.recordings(name)) for name in people)
    return f"{count(len(people), 'person', 'people')} with {count(recordings, 'recording')}"


def count(number, one, many=None):
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def list_people(gallery_file):
    gallery = Gallery.load(gallery_file, None)
    rows = [("person", "recordings"), *((name, f"{len(gallery.recordings(name)):,}") for name in gallery.people)]
    print(table(rows))
    print(f"\n{describe(gallery)}; encoder {gallery.encoder_fingerprint[:12]}")


def table(rows):
    """Rows of (name, value) as aligned text."""
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {value:>{widths[1]}}" for name, value in rows)


def remove(gallery_file, name, files):
    """Removes a person, or only some of their recordings."""
    gallery = Gallery.load(gallery_file, None)
    gallery.remove(name, [absolute(file) for file in files] or None)
    gallery.save(gallery_file)
    print(f"{gallery_file} holds {describe(gallery)}")


def who(encoder, gallery_file, files, k=5, threshold=None):
    """Prints the k nearest people of each recording; returns the exit code: 1 if no recording could be used."""
    gallery = Gallery.load(gallery_file, encoder.fingerprint)
    calibration = encoder.calibration
    threshold = threshold_for(calibration, threshold)
    vectors, usable = embed(encoder, files)
    if not usable.any():
        return 1
    found = gallery.identify(vectors[usable], k)
    for file, nearest in zip(np.array(files, object)[usable], found, strict=True):
        print(file)
        if threshold and nearest[0][1] < threshold.score:
            print(f"  unknown: no score reaches {threshold.score:.3f}")
        width = max(len(name) for name, _ in nearest)
        for name, score in nearest:
            probability = "" if calibration is None else f"  {100 * float(calibration.probability(score)):5.1f} %"
            print(f"  {name:<{width}}  {score:6.3f}{probability}")
    if threshold:
        print(f"\nThreshold {threshold.score:.3f}: {threshold.source}.")
    else:
        print(
            f"\n{NO_THRESHOLD}: whether a speaker is unknown cannot be told, and the first is only the nearest of "
            "those enrolled."
        )
    if calibration:
        print("Probabilities are of each person alone, with a prior of one half.")
    return 0


def test(encoder, gallery_file, corpus, threshold=None, output=None):
    """Prints how well people are recognised in a corpus; `output` is a JSON file for the same, or None."""
    gallery = Gallery.load(gallery_file, encoder.fingerprint)
    results = measure(encoder, gallery, corpus, threshold_for(encoder.calibration, threshold))
    print(format_results(results))
    if output:
        with replacing(output) as file:
            json.dump(results | {"gallery": str(gallery_file), "corpus_root": str(corpus.root)}, file, indent=2)


def measure(encoder, gallery, corpus, threshold):
    """Top-1 and top-5 accuracy, as of VoxCeleb1's identification task (Nagrani et al. 2017), and a threshold's errors.

    The accuracies are shares of recordings of enrolled people, and nobody is called unknown in them. Enrolled
    recordings are left out, and so are others of their sessions: the same room, microphone and day would flatter.

    Args:
      encoder: a SpeakerEncoder.
      gallery: its people are speakers of the corpus by the same names; other speakers are strangers.
      corpus: a corpus.Corpus.
      threshold: a decision.Threshold, or None, with which strangers cannot be told.

    Returns:
      The results by name; None for what cannot be measured.

    Raises:
      GalleryError: nothing is left to test on, or gallery and corpus disagree about who speaks.
    """
    enrolled_as = {file: name for name in gallery.people for file in gallery.recordings(name)}
    files = [absolute(os.path.join(corpus.root, path)) for path in corpus.paths]
    speakers = np.array(corpus.speaker_names, object)[corpus.speakers]  # (N,)
    for file, speaker in zip(files, speakers, strict=True):
        if (name := enrolled_as.get(file, speaker)) != speaker:
            raise GalleryError(f"{file} is enrolled as {name}, but the corpus says {speaker}: names must agree")
    enrolled = np.array([file in enrolled_as for file in files])
    sessions = np.zeros(len(corpus.session_names), bool)
    sessions[corpus.sessions[enrolled]] = True
    sessions &= np.array([name != "" for name in corpus.session_names])  # one without a name is of unknown sessions
    same_session = sessions[corpus.sessions] & ~enrolled
    people = set(gallery.people)
    stranger = np.array([name not in people for name in corpus.speaker_names])[corpus.speakers]
    tested = ~enrolled & ~same_session & (~stranger | (threshold is not None))
    if not tested.any():
        raise GalleryError(
            f"Nothing to test on: of the {len(files):,} recordings in {corpus.root}, {enrolled.sum():,} are enrolled, "
            f"{same_session.sum():,} are of the same sessions, and {stranger.sum():,} are of other people"
        )

    rows = np.flatnonzero(tested)
    vectors, usable = embed(encoder, [files[row] for row in rows])
    if not usable.any():
        raise GalleryError(f"None of the {len(rows):,} recordings to test on can be used")
    rows = rows[usable]
    found = gallery.identify(vectors[usable], k=5)
    known = ~stranger[rows]
    names = [[name for name, _ in nearest] for nearest in found]
    top1 = np.array([speaker == five[0] for speaker, five in zip(speakers[rows], names, strict=True)])
    top5 = np.array([speaker in five for speaker, five in zip(speakers[rows], names, strict=True)])
    unknown = np.array([threshold is not None and nearest[0][1] < threshold.score for nearest in found])

    def share(hits, among):
        return float(hits[among].mean()) if among.any() else None

    return {
        "people_enrolled": len(people),
        "recordings_enrolled": len(enrolled_as),
        "people_tested": len(set(speakers[rows][known])),
        "recordings_tested": int(known.sum()),
        "top1": share(top1, known),
        "top5": share(top5, known),
        "threshold": threshold and threshold.score,
        "threshold_source": threshold and threshold.source,
        "enrolled_called_unknown": share(unknown, known) if threshold else None,
        "strangers": len(set(speakers[stranger])),
        "stranger_recordings_tested": int((~known).sum()),
        "strangers_called_unknown": share(unknown, ~known),
        "left_out_enrolled": int(enrolled.sum()),
        "left_out_same_session": int(same_session.sum()),
        "left_out_unusable": int((~usable).sum()),
        "enrolled_outside_corpus": len(enrolled_as.keys() - set(files)),
    }


def format_results(results):
    """What `measure` returns, as text."""

    def percent(share):
        return "–" if share is None else f"{100 * share:.2f} %"

    rows = [
        ("people enrolled", f"{results['people_enrolled']:,}"),
        ("of them tested", f"{results['people_tested']:,}"),
        ("their recordings tested", f"{results['recordings_tested']:,}"),
        ("top-1 accuracy", percent(results["top1"])),
        ("top-5 accuracy", percent(results["top5"])),
    ]
    notes = [
        f"Recordings left out: {results['left_out_enrolled']:,} enrolled, {results['left_out_same_session']:,} of the "
        f"same sessions, {results['left_out_unusable']:,} unusable."
    ]
    if results["threshold"] is None:
        notes.append(
            f"{NO_THRESHOLD}: whether the strangers in this corpus ({results['strangers']:,}) would be called unknown "
            "cannot be told."
        )
    else:
        rows += [
            ("enrolled people's recordings called unknown", percent(results["enrolled_called_unknown"])),
            ("strangers", f"{results['strangers']:,}"),
            ("their recordings tested", f"{results['stranger_recordings_tested']:,}"),
            ("strangers' recordings called unknown", percent(results["strangers_called_unknown"])),
        ]
        notes.append(f"Unknown below {results['threshold']:.3f}: {results['threshold_source']}.")
    if outside := results["enrolled_outside_corpus"]:
        notes.append(
            f"Enrolled recordings outside this corpus: {outside:,}. Whether tested ones share a session with them "
            "cannot be seen."
        )
    return f"{table(rows)}\n\n" + "\n".join(notes)


if __name__ == "__main__":
    define_flags()
    cli.start(main, arguments=True)
