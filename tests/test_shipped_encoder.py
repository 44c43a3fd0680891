"""The encoder that comes with the repository."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from vggvox_tf.run import training_speakers
from vggvox_tf.speaker_encoder import NEWER_ARGUMENTS, SpeakerEncoder

FOLDER = Path(__file__).parent.parent / "models" / "small"


@pytest.fixture(scope="module")
def encoder():
    return SpeakerEncoder.load(FOLDER / "encoder.keras")


def test_it_loads_with_its_calibration_and_is_small(encoder):
    assert (FOLDER / "encoder.keras").stat().st_size < 20e6
    assert encoder.dimension == 1536
    assert 0 < encoder.calibration.threshold(0.5) < 1  # raises if it belonged to another encoder


def test_it_is_written_for_every_keras_of_the_requirements():
    """Keras 3.15 writes these arguments, at their defaults, which 3.10 to 3.14 refuse."""
    with zipfile.ZipFile(FOLDER / "encoder.keras") as archive:
        config = archive.read("config.json").decode()
    for name in NEWER_ARGUMENTS:
        assert f'"{name}"' not in config


def test_it_tells_voices_apart(encoder, tiny_corpus):
    """Two pieces of one generated voice are closer than pieces of the lowest and the highest of them."""
    low_a, low_b, high = encoder.embed_files(["s0/a/2.wav", "s0/b/2.wav", "s5/a/2.wav"], tiny_corpus)
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    assert cosine(low_a, low_b) > cosine(low_a, high)


def test_it_names_its_training_speakers():
    speakers = training_speakers(FOLDER / "encoder.keras")
    assert len(speakers) == 511 and "id20002" in speakers and "id21001" in speakers
