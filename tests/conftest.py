"""Recordings that the tests make themselves: they need no corpus and no network."""

import os

import keras
import numpy as np
import pytest
import soundfile
import tensorflow as tf

from vggvox_tf import encoders

# Two processes run the tests (Makefile), and the first would otherwise take all of a GPU's memory.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
# On GPUs TensorFlow otherwise multiplies with 10 bits, and what tests expect has more.
tf.config.experimental.enable_tensor_float_32_execution(False)


def voice(pitch, seconds, seed, rate=16_000):
    """A buzz (n,) float32 at `pitch` Hz with harmonics, some wobble and noise: speakers differ in pitch."""
    random = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    wobble = 1 + 0.02 * np.sin(2 * np.pi * random.uniform(3, 6) * t)
    phase = 2 * np.pi * np.cumsum(pitch * wobble) / rate
    harmonics = sum(np.sin(k * phase + random.uniform(0, 6)) / k for k in range(1, 8))
    return (0.1 * harmonics + 0.003 * random.standard_normal(t.size)).astype(np.float32)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """Six speakers with two sessions of three wavs each, 0.9 to 2.4 s long, and a trial list over them.

    Returns the folder: s0/a/0.wav … s5/b/2.wav, trials.txt with 18 target and 90 non-target trials.
    """
    root = tmp_path_factory.mktemp("tiny")
    names = {}
    for speaker in range(6):
        for session in "ab":
            for index in range(3):
                folder = root / f"s{speaker}" / session
                folder.mkdir(parents=True, exist_ok=True)
                seed = speaker * 6 + "ab".index(session) * 3 + index
                wave = voice(90 + 25 * speaker, 0.9 + 0.3 * (seed % 6), seed)
                soundfile.write(folder / f"{index}.wav", wave, 16_000)
                names.setdefault(speaker, []).append(f"s{speaker}/{session}/{index}.wav")
    targets = [f"1 {own[i]} {own[3 + i]}" for own in names.values() for i in range(3)]
    others = [f"0 {names[a][i]} {names[b][i]}" for a in names for b in names if a < b for i in range(6)]
    (root / "trials.txt").write_text("\n".join(targets + others) + "\n")
    return root


@pytest.fixture(scope="session")
def encoder_file(tiny_corpus, tmp_path_factory):
    """The smallest VGG-M as a file, trained for a second on the tiny corpus, whose speakers it tells apart a little."""
    keras.utils.set_random_seed(0)
    encoder = encoders.build_encoder("vggm", 0.03, 257, compression="log")
    paths = sorted(tiny_corpus.rglob("*.wav"))
    crops = np.stack([soundfile.read(path, dtype="float32")[0][:14_000] for path in paths])
    speakers = np.array([int(path.relative_to(tiny_corpus).parts[0][1:]) for path in paths])
    model = keras.Model(encoder.input, encoders.classifier(6)(encoder.output))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), loss, jit_compile=False)
    model.fit(crops, speakers, batch_size=12, epochs=20, verbose=0)
    path = tmp_path_factory.mktemp("encoder") / "encoder.keras"
    encoder.save(path)
    return path
