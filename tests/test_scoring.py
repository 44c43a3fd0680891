from pathlib import Path

import keras
import numpy as np
import pytest
import soundfile

from vggvox_tf import audio, encoders, scoring
from vggvox_tf.trials import read_trials


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    return encoders.build_encoder("vggm", 0.125, 257, True)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_embeddings_do_not_depend_on_the_batch(tiny_corpus, encoder, batch_size):
    """Each equals the encoder's output for the whole recording alone, in the order asked for."""
    paths = ["s3/a/2.wav", "s0/b/0.wav", "s0/a/0.wav", "s1/a/2.wav", "s5/b/2.wav"]
    done = []
    embeddings = scoring.embed(encoder, tiny_corpus, paths, batch_size, done.append)
    assert embeddings.shape == (5, 128) and done[-1] == 5
    for path, embedding in zip(paths, embeddings, strict=True):
        waveform, _ = soundfile.read(tiny_corpus / path, dtype="float32")
        np.testing.assert_allclose(embedding, encoder(waveform[np.newaxis])[0], atol=1e-4)


def test_recordings_that_cannot_be_used_are_named(tiny_corpus, encoder, tmp_path):
    paths = ["good.wav", "short.wav", "gone.wav"]
    soundfile.write(tmp_path / "good.wav", np.sin(np.arange(16_000)), 16_000)
    soundfile.write(tmp_path / "short.wav", np.sin(np.arange(3_200)), 16_000)
    with pytest.raises(audio.AudioError, match=r"short.wav.*0.20 s.*at least 0.67 s \(2 of 3"):
        scoring.embed(encoder, tmp_path, paths)
    with pytest.raises(ValueError, match="no recordings"):
        scoring.embed(encoder, tmp_path, [])


def test_scores_by_hand(tmp_path, monkeypatch):
    """a, b, c = (3, 4), (6, 8), (−4, 3): cos(a, b) = 1, cos(a, c) = cos(c, b) = 0; |a − b| = 5, |a − c| = √50."""
    (tmp_path / "list.txt").write_text("1 a.wav b.wav\n0 a.wav c.wav\n0 c.wav b.wav\n")
    trials = read_trials(tmp_path / "list.txt")
    embeddings = np.array([[3, 4], [6, 8], [-4, 3]], np.float32)
    monkeypatch.setattr(scoring, "TRIALS_AT_ONCE", 2)
    np.testing.assert_allclose(scoring.score(trials, embeddings), [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        scoring.score(trials, embeddings, "euclidean"), [-5, -np.sqrt(50), -np.sqrt(125)], rtol=1e-6
    )


def test_a_file_that_is_no_encoder(tmp_path):
    for name, content in (("encoder.keras", b"no"), ("notes.txt", b"no")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(scoring.EncoderError, match=f"{name}.*expected an encoder"):
            scoring.load_encoder(tmp_path / name)
    with pytest.raises(scoring.EncoderError, match="gone"):
        scoring.load_encoder(tmp_path / "gone.keras")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(scoring.EncoderError, match="other"):
        scoring.load_encoder(Path(tmp_path / "other.keras"))
