import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import scipy.signal
from absl import app

from tools import fuse_encoders
from vggvox_tf import encoders
from vggvox_tf.frontend import frames_in, samples_for
from vggvox_tf.run import training_speakers
from vggvox_tf.speaker_encoder import SpeakerEncoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two runs' folders: a ResNet of anna and boris, a VGG-M with unit length at its end, of boris and zoe."""
    keras.utils.set_random_seed(0)
    resnet = encoders.build_encoder("resnet34", 0.05, mel_bands=40, compression="log")
    vggm = encoders.with_embedding(encoders.build_encoder("vggm", 0.05, mel_bands=100, compression="log"), 16)
    folders = []
    for model, speakers in ((encoders.with_projection(resnet, 8), "anna\nboris\n"), (vggm, "boris\nzoe\n")):
        folders.append(tmp_path_factory.mktemp("run"))
        SpeakerEncoder(model).save(folders[-1] / "encoder.keras")
        (folders[-1] / "speakers.txt").write_text(speakers)
    return folders


def fuse(*paths, output):
    """Runs the tool; what it printed."""
    flags = [f"--encoders={','.join(map(str, paths))}", "--speeds=1", f"--output={output}"]
    command = [sys.executable, "-m", "tools.fuse_encoders", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def fuse_here(monkeypatch):
    """The tool without a process of its own: a function of encoder files, output and speeds."""

    def fuse_here(*paths, output, speeds=("1",)):
        flags = SimpleNamespace(encoders=list(map(str, paths)), output=str(output), speeds=speeds)
        monkeypatch.setattr(fuse_encoders, "FLAGS", flags)
        fuse_encoders.main(["fuse_encoders"])

    return fuse_here


def cosine(vectors):
    a, b = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return a @ b


def test_a_cosine_is_the_mean_of_the_parts(folders, tmp_path):
    printed = fuse(*(folder / "encoder.keras" for folder in folders), output=tmp_path / "both")
    assert "2 parts" in printed and "24 dimensions" in printed, printed
    assert training_speakers(tmp_path / "both" / "encoder.keras") == {"anna", "boris", "zoe"}
    both, *parts = (SpeakerEncoder.load(folder / "encoder.keras") for folder in (tmp_path / "both", *folders))
    waveforms = list(np.random.default_rng(0).normal(0, 0.1, (2, 20_000)).astype(np.float32))
    vectors = both.embed_waveforms(waveforms)
    expected = np.mean([cosine(part.embed_waveforms(waveforms)) for part in parts])
    assert cosine(vectors) == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert both.minimum_samples == 65 * 160 + 240  # VGG-M's, though it was not named first
    assert SpeakerEncoder(encoders.fused([part.model for part in reversed(parts)])).fingerprint == both.fingerprint


def test_a_cosine_is_the_mean_at_all_speeds(fuse_here, capsys, folders, tmp_path):
    """One encoder at three speeds, by scipy: its file has the weights once, and needs 1.25 times as long recordings."""
    fuse_here(folders[1] / "encoder.keras", output=tmp_path / "speeds", speeds=["0.8", "1", "1.25"])
    printed = capsys.readouterr().out
    assert "3 parts" in printed and "48 dimensions" in printed, printed
    heard, part = (SpeakerEncoder.load(folder / "encoder.keras") for folder in (tmp_path / "speeds", folders[1]))
    assert heard.model.count_params() == part.model.count_params()
    taps = scipy.signal.firwin(301, 0.7)  # nothing near where the faster one is cut off
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 40_000)) * np.hanning(40_000)
    waveforms = scipy.signal.oaconvolve(noise, taps[np.newaxis], mode="same", axes=1).astype(np.float32)
    waveforms = waveforms[:, : samples_for(frames_in(40_000))]
    played = [scipy.signal.resample_poly(waveforms, *ratio, axis=1) for ratio in ((5, 4), (1, 1), (4, 5))]
    expected = np.mean([cosine(part.embed_waveforms(list(each))) for each in played])
    assert cosine(heard.embed_waveforms(list(waveforms))) == pytest.approx(expected, abs=2e-5)
    alone = cosine(part.embed_waveforms(list(waveforms)))
    assert abs(alone - expected) > 1e-4  # or the other speeds would not have been heard
    # The shortest recording: 65 frames at 1.25 times the speed are 81.6 at the speed it has: 82 whole ones.
    assert part.minimum_samples == 65 * 160 + 240 and heard.minimum_samples == 82 * 160 + 240
    heard.embed_waveforms([waveforms[0, 10_000:][: heard.minimum_samples]])
    for speeds in ((0.8, 1, 1.25), (0.8, 1, 1.2)):
        same = SpeakerEncoder(encoders.fused([part.model], speeds)).fingerprint == heard.fingerprint
        assert same == (speeds[2] == 1.25)


def test_fingerprint_knows_both_front_ends():
    """Two encoders of the same weights, which differ in the compression of the second front end alone."""
    fingerprints = []
    for compression in ("log", "power"):
        keras.utils.set_random_seed(0)
        first = encoders.build_encoder("resnet34", 0.05, mel_bands=40, compression="log")
        second = encoders.build_encoder("resnet34", 0.05, mel_bands=40, compression=compression)
        fingerprints.append(SpeakerEncoder(encoders.fused([first, second])).fingerprint)
    assert fingerprints[0] != fingerprints[1]


def test_what_cannot_be_fused(fuse_here, folders, tmp_path):
    first, second = (folder / "encoder.keras" for folder in folders)
    alone, none, new = tmp_path / "alone" / "alone.keras", tmp_path / "none.keras", tmp_path / "new"
    alone.parent.mkdir()
    alone.write_bytes(first.read_bytes())
    (tmp_path / "speakers.txt").write_text("anna\n")
    none.write_bytes(b"no")
    for message, paths, output in (
        ("two or more", [first], new),
        ("each encoder once", [first, first], new),
        ("expected a new folder", [first, second], folders[0]),
        (r"expected speakers\.txt beside it", [alone, second], new),
        ("expected an encoder", [none, second], new),
    ):
        with pytest.raises(app.UsageError, match=message):
            fuse_here(*paths, output=output)
    assert not new.exists()


@pytest.mark.parametrize("speeds", [["fast"], ["1", "1.0"], ["1", "2.1"], ["1", "1.005"], ["0.4", "1"], ["nan"], []])
def test_speeds_that_are_none(monkeypatch, speeds):
    monkeypatch.setattr(fuse_encoders, "FLAGS", SimpleNamespace(speeds=speeds))
    with pytest.raises(app.UsageError, match="expected different numbers from"):
        fuse_encoders.speeds_given()


def test_fused_ones_are_neither_fused_again_nor_trained_on(fuse_here, folders, tiny_corpus, tmp_path):
    both = SpeakerEncoder(encoders.fused([SpeakerEncoder.load(folder / "encoder.keras").model for folder in folders]))
    with pytest.raises(ValueError, match="fused of others already"):
        encoders.fused([both.model, both.model])
    both.save(tmp_path / "encoder.keras")
    (tmp_path / "speakers.txt").write_text("anna\n")
    with pytest.raises(app.UsageError, match=f"{tmp_path}/encoder.keras: .* found a fused one"):
        fuse_here(tmp_path / "encoder.keras", folders[0] / "encoder.keras", output=tmp_path / "new")
    flags = ["--loss=aam", f"--corpus={tiny_corpus}", f"--init_from={tmp_path}", f"--run={tmp_path}/run"]
    done = subprocess.run([sys.executable, "-m", "vggvox_tf.train", *flags], capture_output=True, text=True)
    assert done.returncode and "fused of several encoders; train those" in done.stderr, done.stderr
