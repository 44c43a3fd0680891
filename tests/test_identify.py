"""With an encoder whose vectors lie in the plane, at the angle that a file's name says; and with a real one."""

import json
import subprocess
import sys
from pathlib import Path

import absl.flags
import keras
import numpy as np
import pytest
import soundfile
from conftest import voice

from vggvox_tf import cli, encoders, identify
from vggvox_tf.audio import AudioError
from vggvox_tf.calibration import Calibration
from vggvox_tf.corpus import read_corpus
from vggvox_tf.decision import Threshold
from vggvox_tf.gallery import Gallery, GalleryError
from vggvox_tf.speaker_encoder import SpeakerEncoder

# llr = 10 · score − 8, so that the threshold is 0.8 (37°) and a score of 1 has the probability 1 / (1 + e⁻²) = 0.881.
CALIBRATION = Calibration(10, -8, "e1", "cosine", "whole", "none", "dev.txt", 10, 90, 5, 0.05, 0.2, 0.1)


class Encoder:
    """Its recordings are files called by their angle in degrees, as 045.wav; it cannot use others."""

    fingerprint = "e1"

    def __init__(self, calibration=None):
        self.calibration = calibration

    def embed_files(self, paths, progress, errors):
        vectors = np.full((len(paths), 2), np.nan, np.float32)
        for index, path in enumerate(paths):
            if Path(path).stem.isdigit():
                angle = np.radians(float(Path(path).stem))
                vectors[index] = np.cos(angle), np.sin(angle)
            else:
                errors[index] = AudioError(path, "is silent")
        progress(len(paths))
        return vectors


def recordings(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [str(folder / name) for name in names]


def people(path):
    gallery = Gallery.load(path, "e1")
    return {name: [Path(file).name for file in gallery.recordings(name)] for name in gallery.people}


@pytest.fixture
def gallery(tmp_path):
    """Anna at 0°, Bob at 90°."""
    path = tmp_path / "people.npz"
    enrolled = {"Anna": recordings(tmp_path, "anna/000.wav"), "Bob": recordings(tmp_path, "bob/090.wav")}
    assert identify.enrol(Encoder(), path, enrolled) == 0
    return path


def test_enrolling_makes_a_gallery_and_adds_to_it(gallery, tmp_path, capsys):
    capsys.readouterr()
    files = recordings(tmp_path, "anna/000.wav", "anna/010.wav", "anna/hum.wav")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "anna")
    enrolled = {"Anna": [*files, str(link / "010.wav")], "Carl": recordings(tmp_path, "carl/noise.wav")}
    assert identify.enrol(Encoder(), gallery, enrolled) == 0
    assert people(gallery) == {"Anna": ["000.wav", "010.wav"], "Bob": ["090.wav"]}  # the same through a link
    output = capsys.readouterr()
    assert "Enrolled 1 person with 2 recordings" in output.out and "holds 2 people with 3 recordings" in output.out
    assert f"left out: {files[2]}: is silent" in output.err
    assert "Carl: no recording can be used, nothing was added" in output.err


def test_nothing_to_enrol_leaves_the_gallery_alone(gallery, tmp_path, capsys):
    before = gallery.read_bytes()
    assert identify.enrol(Encoder(), gallery, {"Anna": ["hum.wav"], "Carl": ["noise.wav"]}) == 1
    assert "nothing could be enrolled" in capsys.readouterr().err and gallery.read_bytes() == before
    assert identify.enrol(Encoder(), tmp_path / "new.npz", {"Carl": ["noise.wav"]}) == 1
    assert not (tmp_path / "new.npz").exists()
    other = Encoder()
    other.fingerprint = "e2"
    for action in (
        lambda: identify.enrol(other, gallery, {"Anna": ["010.wav"]}),
        lambda: identify.who(other, gallery, ["010.wav"]),
    ):
        with pytest.raises(GalleryError, match="another encoder"):
            action()


def test_people_of_a_corpus_and_of_folders(tmp_path):
    recordings(tmp_path, "anna/s1/2.wav", "anna/s1/1.wav", "anna/s2/3.M4A", "anna/s2/.4.wav", "anna/notes.txt")
    recordings(tmp_path, "bob/s1/1.wav")
    corpus = read_corpus(tmp_path)
    relative = {
        name: [str(Path(file).relative_to(tmp_path)) for file in files]
        for name, files in identify.people_of(corpus, 2).items()
    }
    assert relative == {"anna": ["anna/s1/1.wav", "anna/s1/2.wav"], "bob": ["bob/s1/1.wav"]}
    assert [len(files) for files in identify.people_of(corpus).values()] == [3, 1]
    anna = str(tmp_path / "anna")
    assert identify.audio_files(["x.wav", anna]) == [
        "x.wav", f"{anna}/s1/1.wav", f"{anna}/s1/2.wav", f"{anna}/s2/3.M4A"
    ]  # fmt: skip
    (tmp_path / "none").mkdir()
    with pytest.raises(GalleryError, match=r"No audio files below .*none"):
        identify.audio_files([str(tmp_path / "none")])


def test_list_and_remove(gallery, tmp_path, capsys):
    identify.enrol(Encoder(), gallery, {"Anna": recordings(tmp_path, "anna/010.wav")})
    capsys.readouterr()
    identify.list_people(gallery)
    assert capsys.readouterr().out == (
        "person  recordings\nAnna             2\nBob              1\n\n2 people with 3 recordings; encoder e1\n"
    )
    identify.remove(gallery, "Anna", [str(tmp_path / "anna" / "000.wav")])
    assert people(gallery) == {"Anna": ["010.wav"], "Bob": ["090.wav"]}
    with pytest.raises(GalleryError, match="Bop is not enrolled; nearest in spelling: Bob"):
        identify.remove(gallery, "Bop", [])
    identify.remove(gallery, "Bob", [])
    assert people(gallery) == {"Anna": ["010.wav"]}


def test_who_by_the_calibration(gallery, capsys):
    """At 170°, Bob is 80° away: cos 80° = 0.174, and 10 · 0.174 − 8 = −6.3 is a probability of 0.2 %."""
    assert identify.who(Encoder(CALIBRATION), gallery, ["000.wav", "170.wav", "hum.wav"]) == 0
    output = capsys.readouterr()
    answers, notes = output.out.split("\n\n")
    assert answers.splitlines() == [
        "000.wav",
        "  Anna   1.000   88.1 %",
        "  Bob    0.000    0.0 %",
        "170.wav",
        "  unknown: no score reaches 0.800",
        "  Bob    0.174    0.2 %",
        "  Anna  -0.985    0.0 %",
    ]
    assert notes.startswith("Threshold 0.800: ") and "calibrated on dev.txt" in notes
    assert "left out: hum.wav: is silent" in output.err


def test_who_by_a_given_threshold_and_by_none(gallery, capsys):
    """At 30°, Anna's score is cos 30° = 0.866."""
    identify.who(Encoder(), gallery, ["030.wav"], k=1, threshold=0.9)
    assert capsys.readouterr().out == (
        "030.wav\n  unknown: no score reaches 0.900\n  Anna   0.866\n\nThreshold 0.900: given.\n"
    )
    identify.who(Encoder(CALIBRATION), gallery, ["030.wav"], threshold=0.9)
    assert "unknown" in capsys.readouterr().out
    identify.who(Encoder(), gallery, ["030.wav"], k=1)
    output = capsys.readouterr().out
    assert output.startswith("030.wav\n  Anna   0.866\n\nThe encoder has no calibration")
    assert "whether a speaker is unknown cannot be told" in output
    assert identify.who(Encoder(), gallery, ["hum.wav"]) == 1


@pytest.fixture
def corpus(tmp_path):
    """Anna at 0°, 5°, 10° and 80°, Bob at 90°, 95° and 140°, and strangers; Anna's 5° is of the session of her 0°."""
    root = tmp_path / "corpus"
    recordings(root, *(f"anna/{name}.wav" for name in ("s1/000", "s1/005", "s2/010", "s2/080", "s2/hum")))
    recordings(root, "bob/s1/090.wav", "bob/s2/095.wav", "bob/s2/140.wav")
    recordings(root, "carl/s1/045.wav", "carl/s1/180.wav", "dora/s1/120.wav")
    return root


@pytest.fixture
def enrolled(corpus, tmp_path):
    """Of each but the strangers the first recording: 0° and 90°."""
    path = tmp_path / "enrolled.npz"
    first = identify.people_of(read_corpus(corpus), 1)
    identify.enrol(Encoder(), path, {name: first[name] for name in ("anna", "bob")})
    return path


def test_accuracy_by_hand(enrolled, corpus):
    """Tested are 10°, 80°, 95° and 140°, of which 80° is nearer to Bob than to Anna; among two people, both are always
    in the first five. With the threshold 0.8 (37°), 140° is unknown, being 50° from Bob; of the strangers at 45°, 120°
    and 180° only 120° is taken for Bob, 30° away."""
    results = identify.measure(Encoder(), Gallery.load(enrolled, "e1"), read_corpus(corpus), Threshold(0.8, "given"))
    assert results == {
        "people_enrolled": 2, "recordings_enrolled": 2, "people_tested": 2, "recordings_tested": 4, "top1": 3 / 4,
        "top5": 1.0, "threshold": 0.8, "threshold_source": "given", "enrolled_called_unknown": 1 / 4, "strangers": 2,
        "stranger_recordings_tested": 3, "strangers_called_unknown": 2 / 3, "left_out_enrolled": 2,
        "left_out_same_session": 1, "left_out_unusable": 1, "enrolled_outside_corpus": 0,
    }  # fmt: skip
    text = identify.format_results(results)
    for part in (
        "75.00 %",
        "100.00 %",
        "25.00 %",
        "66.67 %",
        "2 enrolled, 1 of the same sessions, 1 unusable",
        "Unknown below 0.800: given",
    ):
        assert part in text


def test_without_a_threshold_strangers_are_not_tested(enrolled, corpus, tmp_path, capsys):
    identify.test(Encoder(), enrolled, read_corpus(corpus), output=tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["top1"] == 3 / 4 and results["strangers"] == 2 and results["stranger_recordings_tested"] == 0
    assert results["threshold"] is None and results["strangers_called_unknown"] is None
    output = capsys.readouterr().out
    assert "whether the strangers in this corpus (2) would be called unknown cannot be told" in output


def test_sessions_without_names_are_unknown_sessions(tmp_path):
    """Two recordings in a speaker's own folder: nothing says that they are of one session."""
    recordings(tmp_path / "flat", "anna/000.wav", "anna/005.wav")
    identify.enrol(Encoder(), tmp_path / "g.npz", {"anna": [str(tmp_path / "flat/anna/000.wav")]})
    results = identify.measure(Encoder(), Gallery.load(tmp_path / "g.npz", "e1"), read_corpus(tmp_path / "flat"), None)
    assert results["recordings_tested"] == 1 and results["left_out_same_session"] == 0


def test_recordings_enrolled_from_elsewhere_are_mentioned(enrolled, corpus, tmp_path):
    identify.enrol(Encoder(), enrolled, {"anna": recordings(tmp_path, "elsewhere/003.wav")})
    results = identify.measure(Encoder(), Gallery.load(enrolled, "e1"), read_corpus(corpus), None)
    assert results["enrolled_outside_corpus"] == 1
    assert "Enrolled recordings outside this corpus: 1." in identify.format_results(results)


def test_a_corpus_that_cannot_test_the_gallery(enrolled, corpus, tmp_path):
    def test(threshold=None):
        identify.measure(Encoder(), Gallery.load(enrolled, "e1"), read_corpus(corpus), threshold)

    every = identify.people_of(read_corpus(corpus))
    identify.enrol(Encoder(), enrolled, {name: every[name] for name in ("anna", "bob")})
    with pytest.raises(
        GalleryError,
        match=r"Nothing to test on: of the 11 .* 7 are enrolled, 1 are of the same .* 3 are of other people",
    ):
        test()
    identify.enrol(Encoder(), enrolled, {"Karl": every["carl"][:1]})
    with pytest.raises(GalleryError, match=r"045.wav is enrolled as Karl, but the corpus says carl"):
        test()


@pytest.fixture
def parsed(monkeypatch):
    """Parses a command line with flags of its own, apart from those of other entry points in this process."""

    def parse(*arguments):
        values = absl.flags.FlagValues()
        monkeypatch.setattr(identify, "FLAGS", values)
        identify.define_flags()
        values.set_gnu_getopt(True)  # as cli.start does
        return values(["identify", *map(str, arguments)])

    return parse


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ([], "Expected an action as first argument, none was given. Actions: enrol, who, test, list, remove"),
        (["enroll", "--gallery=g"], "not 'enroll'"),
        (["enrol", "--gallery=g", "--name=A", "a.wav"], "enrol needs --encoder"),
        (["enrol", "--gallery=g", "--encoder=e", "a.wav"], "enrol needs --name with recordings"),
        (["enrol", "--gallery=g", "--encoder=e", "--name=A", "--corpus=c"], "enrol needs --name with recordings"),
        (["enrol", "--gallery=g", "--encoder=e", "--name=A"], "enrol needs recordings"),
        (["enrol", "--gallery=g", "--encoder=e", "--corpus=c", "a.wav"], "enrol --corpus takes no recordings: a.wav"),
        (["enrol", "--gallery=g", "--encoder=e", "--name=A", "a.wav", "--corpus_root=r"], "--corpus_root has no"),
        (["enrol", "--gallery=g", "--encoder=e", "--name=A", "a.wav", "--recordings_per_person=2"], "with --name"),
        (["enrol", "--gallery=g", "--encoder=e", "--name=A", "a.wav", "--k=2"], "--k has no effect with enrol"),
        (["who", "--gallery=g", "--encoder=e"], "who needs recordings"),
        (["who", "--gallery=g", "--encoder=e", "a.wav", "--corpus=c"], "--corpus has no effect with who"),
        (["who", "--gallery=g", "--encoder=e", "a.wav", "--threshold=2"], "threshold"),
        (["who", "--gallery=g", "--encoder=e", "a.wav", "--k=0"], "k"),
        (["test", "--gallery=g", "--encoder=e"], "test needs --corpus"),
        (["test", "--gallery=g", "--encoder=e", "--corpus=c", "a.wav"], "test takes no recordings: a.wav"),
        (["list"], "list needs --gallery"),
        (["list", "--gallery=g", "--encoder=e"], "--encoder has no effect with list"),
        (["list", "--gallery=g", "x"], "list takes no recordings"),
        (["remove", "--gallery=g"], "remove needs --name"),
        (["list", "--gallery=nowhere.npz"], "nowhere.npz: expected a gallery"),
        (["who", "--gallery=g", "--encoder=nowhere.keras", "a.wav"], "nowhere.keras"),
        (["test", "--gallery=g", "--encoder=e", "--corpus=nowhere"], "nowhere does not exist"),
    ],
)  # fmt: skip
def test_command_lines_that_cannot_be_meant(parsed, arguments, complaint):
    with pytest.raises(cli.EXPLAINED) as error:
        identify.main(parsed(*arguments))
    assert complaint in str(error.value)


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "encoder.keras"
    encoders.build_encoder("vggm", 0.03, 257, compression="log").save(path)
    return path


def test_every_action_with_a_real_encoder(parsed, encoder_file, tiny_corpus, tmp_path, capsys):
    """The first session's three recordings of each person are enrolled, so those of the second are tested. A recording
    that is enrolled by itself has a cosine of 1 with itself."""

    def run(action, *arguments, code=0):
        argv = parsed(action, f"--gallery={tmp_path}/people.npz", *arguments)
        assert (identify.main(argv) or 0) == code
        return "".join(capsys.readouterr())

    encoder = f"--encoder={encoder_file}"
    output = run("enrol", encoder, f"--corpus={tiny_corpus}", "--recordings_per_person=3")
    assert "holds 6 people with 18 recordings" in output
    output = run("test", encoder, f"--corpus={tiny_corpus}", f"--output={tmp_path}/results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["recordings_tested"] == 18 and results["left_out_enrolled"] == 18 and results["strangers"] == 0
    assert results["top5"] >= results["top1"] > 1 / 6  # even untrained, as the speakers differ in pitch
    soundfile.write(tmp_path / "silent.wav", np.zeros(32_000), 16_000)
    soundfile.write(tmp_path / "short.wav", voice(100, 0.2, seed=0), 16_000)
    soundfile.write(tmp_path / "zoe.wav", voice(300, 2, seed=0), 16_000)
    bad = [tmp_path / "silent.wav", tmp_path / "short.wav"]
    output = run("enrol", encoder, "--name=Zoe", *bad, tmp_path / "zoe.wav")
    assert "silent.wav: silent" in output and "short.wav: lasts 0.20 s" in output
    assert "holds 7 people with 19 recordings" in output
    output = run("who", encoder, tmp_path / "zoe.wav", tiny_corpus / "s0/a/0.wav", "--k=2")
    assert f"{tmp_path}/zoe.wav\n  Zoe   1.000" in output
    assert "nothing could be enrolled" in run("enrol", encoder, "--name=Yan", *bad, code=1)
    assert "Zoe              1" in run("list")
    run("remove", "--name=Zoe")
    assert "Zoe" not in run("list")
    Gallery.load(tmp_path / "people.npz", SpeakerEncoder.load(encoder_file).fingerprint)


def test_a_mistake_is_one_line_and_help_names_every_flag(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "vggvox_tf.identify", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1
        return done.stdout + done.stderr

    output = run("list", f"--gallery={tmp_path}/none.npz")  # a flag after the action
    assert "none.npz: expected a gallery" in output and "Traceback" not in output
    output = run("--help")
    for name in ("enrol ", "remove ", "--encoder", "--recordings_per_person", "--threshold", "--k"):
        assert name in output
