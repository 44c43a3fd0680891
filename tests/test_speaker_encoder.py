import json
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import soundfile

from vggvox_tf import audio, encoders
from vggvox_tf.calibration import Calibration, CalibrationError
from vggvox_tf.encoders.pooling import POOLINGS
from vggvox_tf.frontend import NORMALISATIONS
from vggvox_tf.speaker_encoder import NEWER_ARGUMENTS, EncoderError, SpeakerEncoder

PATHS = ["s3/a/2.wav", "s0/b/0.wav", "s0/a/0.wav", "s1/a/2.wav", "s5/b/2.wav"]


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    return SpeakerEncoder(encoders.build_encoder("vggm", 0.125, 257, compression="log"))


def read(path):
    return soundfile.read(path, dtype="float32")[0]


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_embeddings_do_not_depend_on_the_batch(tiny_corpus, encoder, batch_size):
    """Each equals the model's output for the whole recording alone, in the order asked for; so for waveforms."""
    done = []
    embeddings = encoder.embed_files(PATHS, tiny_corpus, batch_size=batch_size, progress=done.append)
    assert embeddings.shape == (5, 128) and done[-1] == 5
    waveforms = [read(tiny_corpus / path) for path in PATHS]
    for waveform, embedding in zip(waveforms, embeddings, strict=True):
        np.testing.assert_allclose(embedding, encoder.model(waveform[np.newaxis])[0], atol=1e-4)
    np.testing.assert_allclose(encoder.embed_waveforms(waveforms, batch_size), embeddings, atol=1e-4)


def test_saved_for_every_keras_of_the_requirements(encoder, tmp_path):
    """Without arguments that Keras 3.15 writes at their defaults and 3.10 refuses; the same encoder otherwise."""
    path = tmp_path / "encoder.keras"
    encoder.save(path)
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json").decode()
    assert not any(f'"{name}"' in config for name in NEWER_ARGUMENTS)
    assert '"momentum": 0.9' in config
    assert SpeakerEncoder.load(path).fingerprint == encoder.fingerprint


def test_crops_are_evenly_spaced_and_short_recordings_are_all_of_theirs(encoder, tmp_path):
    """Three crops of 48,240 samples out of 80,000 start at 0, 15,880 and 31,760 (80,000 − 48,240). Beside them lies a
    recording of 2 s, whose crops are all the whole of it."""
    rng = np.random.default_rng(0)
    long, short = (rng.uniform(-0.5, 0.5, samples).astype(np.float32) for samples in (80_000, 32_000))
    soundfile.write(tmp_path / "long.wav", long, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", short, 16_000, subtype="FLOAT")
    embeddings = encoder.embed_files(["short.wav", "long.wav"], tmp_path, crops=3, batch_size=2)
    assert embeddings.shape == (2, 3, 128)
    expected = encoder.embed_waveforms([long[start : start + 48_240] for start in (0, 15_880, 31_760)])
    np.testing.assert_allclose(embeddings[1], expected, atol=1e-4)
    np.testing.assert_allclose(embeddings[0], np.repeat(encoder.embed_waveforms([short]), 3, axis=0), atol=1e-4)


def test_recordings_that_cannot_be_used_are_named(encoder, tmp_path):
    paths = ["good.wav", "short.wav", "gone.wav", "silent.wav"]
    soundfile.write(tmp_path / "good.wav", np.sin(np.arange(16_000)), 16_000)
    soundfile.write(tmp_path / "short.wav", np.sin(np.arange(3_200)), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    with pytest.raises(audio.AudioError, match=r"short.wav.*0.20 s.*at least 0.67 s \(3 of 4"):
        encoder.embed_files(paths, tmp_path)
    errors = {}
    embeddings = encoder.embed_files(paths, tmp_path, errors=errors)
    assert sorted(errors) == [1, 2, 3] and "silent" in str(errors[3])
    assert np.isfinite(embeddings[0]).all() and np.isnan(embeddings[1:]).all()
    with pytest.raises(ValueError, match="no recordings"):
        encoder.embed_files([], tmp_path)


def test_a_stereo_mp3_of_another_rate_embeds_as_its_mono_does(encoder, tmp_path, tiny_corpus):
    """A recording at 44.1 kHz on two equal channels against the 16 kHz original: only the codec lies between."""
    waveform = read(tiny_corpus / PATHS[0])
    times = np.arange(waveform.size * 441 // 160) / 44_100
    stereo = np.repeat(np.interp(times, np.arange(waveform.size) / 16_000, waveform)[:, np.newaxis], 2, axis=1)
    soundfile.write(tmp_path / "stereo.mp3", stereo, 44_100)
    a, b, c = encoder.embed_files([tmp_path / "stereo.mp3", tiny_corpus / PATHS[0], tiny_corpus / PATHS[3]])
    cosine = lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)  # noqa: E731
    assert cosine(a, b) > 0.98 and cosine(a, b) > cosine(a, c)


@pytest.mark.parametrize(
    "waveform, complaint",
    [
        (np.zeros(16_000), "peak of 0"),
        (np.full(16_000, np.nan), "peak of nan"),
        (np.full(16_000, 20_000.0), "peak of 20000"),
        (np.ones(3_200) * 0.1, "at least 10640 samples .0.67 s"),
        (np.ones(16_000, np.int16), "float array.*received int16"),
        (np.ones((2, 16_000)), r"received float64 \(2, 16000\)"),
    ],
)
def test_waveforms_that_cannot_be_embedded(encoder, waveform, complaint):
    with pytest.raises(ValueError, match=f"waveform 1: .*{complaint}"):
        encoder.embed_waveforms([np.sin(np.arange(16_000.0)), waveform])


def test_fingerprint_is_that_of_the_weights(encoder, tmp_path):
    for name in ("a.keras", "b.keras"):
        encoder.model.save(tmp_path / name)
    first, second = (SpeakerEncoder.load(tmp_path / name) for name in ("a.keras", "b.keras"))
    assert first.fingerprint == second.fingerprint == encoder.fingerprint
    kernel = second.model.get_layer("conv3").kernel
    kernel.assign(kernel * (1 + 1e-6))
    assert second.fingerprint != first.fingerprint


def test_comparing_by_the_calibration_beside_the_encoder(encoder, tmp_path):
    """cos 60° = 0.5; 8·0.5 − 3 = 1: probability 1 / (1 + 1/e) = 0.731, threshold 3/8."""
    encoder.model.save(tmp_path / "encoder.keras")
    loaded = SpeakerEncoder.load(tmp_path / "encoder.keras")
    a, b = np.array([2.0, 0]), np.array([0.5, np.sqrt(0.75)])
    decision = loaded.compare(a, b)
    assert decision.same is None and decision.probability is None and decision.score == pytest.approx(0.5)
    calibration = Calibration(
        8.0, -3.0, loaded.fingerprint, "cosine", "whole", "none", "dev.txt", 10, 90, 5, 0.1, 0.3, 0.2
    )
    calibration.save(tmp_path / "encoder.calibration.json")
    decision = loaded.compare(a, b)
    assert decision.same and decision.probability == pytest.approx(1 / (1 + np.exp(-1)))
    assert decision.threshold.score == pytest.approx(3 / 8) and "dev.txt" in decision.threshold.source
    assert not loaded.compare(a, b, threshold=0.6).same
    kernel = loaded.model.get_layer("conv3").kernel
    kernel.assign(kernel * 2)
    with pytest.raises(CalibrationError, match="made for another encoder"):
        loaded.compare(a, b)


def test_a_file_that_is_no_encoder(tmp_path):
    for name, content in (("encoder.keras", b"no"), ("notes.txt", b"no")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(EncoderError, match=f"{name}.*expected an encoder"):
            SpeakerEncoder.load(tmp_path / name)
    with pytest.raises(EncoderError, match="gone"):
        SpeakerEncoder.load(tmp_path / "gone.keras")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(EncoderError, match="other"):
        SpeakerEncoder.load(Path(tmp_path / "other.keras"))


def function(module, name):
    """How a `.keras` file names a function."""
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def tampered(source, path, change):
    """Writes a copy of an encoder's file in whose configuration the front end's entry is updated by `change`."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1].update(change)
    members["config.json"] = json.dumps(config)
    write(path, members)


def write(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


LAMBDA = {"class_name": "__lambda__", "config": {"value": ["4wAAAAA=", None, None]}}
ATTACKS = {
    "None.__lambda__": {"module": "keras.layers", "class_name": "Lambda", "config": {"function": LAMBDA}},
    # CVE-2025-1550: a function of any module in a layer's place, called with what its node gives.
    "os.*system": function("os", "system") | {"inbound_nodes": [{"args": ["touch ran"], "kwargs": {}}]},
    "subprocess.*Popen": {"module": "subprocess", "class_name": "Popen", "config": {"args": ["touch", "ran"]},
                          "registered_name": None},
    "builtins": function("builtins", "exec") | {"inbound_nodes": [{"args": ["open('ran', 'w')"], "kwargs": {}}]},
    # CVE-2025-8747: functions of Keras that write files.
    "keras.utils": function("keras.utils", "get_file")
    | {"inbound_nodes": [{"args": ["ran", "file:///etc/hostname"], "kwargs": {"cache_dir": ".", "cache_subdir": ""}}]},
    # CVE-2025-9906: one that switches the safe mode off for what comes after it.
    "keras.config": function("keras.config", "enable_unsafe_deserialization") | {"inbound_nodes": [{"args": []}]},
    "TFSMLayer": {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "."},
                  "registered_name": None},
    "TorchModuleWrapper": {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {"module": ""},
                           "registered_name": None},
    "StringLookup": {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"},
                     "registered_name": None},
    "os.*unlisted": {"module": "os", "class_name": "unlisted", "registered_name": "vggvox_tf>unlisted"},
    "os.path": {"module": "os.path", "class_name": "Spectrogram", "registered_name": None},
    "None.Dense": {"module": None, "class_name": "Dense", "registered_name": None},  # the way before Keras 3
    r"__lambda__ \(vggvox": {**LAMBDA, "registered_name": "vggvox_tf>Spectrogram"},
    "Dense": {"module": "keras.layers", "class_name": "Dense", "registered_name": "vggvox_tf>Spectrogram"},
    "shutil": {"build_config": {"input_shape": function("shutil", "rmtree")}},
    "webbrowser": {"config": {"rows": 257, "activation": function("webbrowser", "open")}},
    "pickle": {"config": {"kernel_initializer": [{"deep": [function("pickle", "loads")]}]}},
}  # fmt: skip


@pytest.mark.parametrize("named", ATTACKS)
def test_a_file_that_names_other_code_is_refused_before_keras_sees_it(encoder_file, tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    tampered(encoder_file, "encoder.keras", ATTACKS[named])
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("it came to Keras"))
    with pytest.raises(
        EncoderError, match=rf"encoder.keras: expected an encoder .*{named}.*, which no encoder of vggvox"
    ):
        SpeakerEncoder.load("encoder.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.keras"]


def test_a_lambda_of_keras_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layer = keras.layers.Lambda(lambda x: [Path("ran").touch(), x][1], name="spectrogram")
    keras.Sequential([keras.Input((2,)), layer]).save("encoder.keras")
    Path("ran").unlink()  # Keras has called it to learn its shape
    with pytest.raises(EncoderError, match=r"__lambda__.*, which no encoder"):
        SpeakerEncoder.load("encoder.keras")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "added, complaint",
    [
        ({"../ran": b""}, "member '../ran'"),
        ({"/tmp/ran": b""}, "member '/tmp/ran'"),
        ({"assets/ran.txt": b""}, "member 'assets/ran.txt'"),
        ({"config.json": b"[" * 100_000}, "recursion"),
        ({"config.json": b" " * (2**24 + 1)}, "config.json of 16,777,217 bytes"),
        ({"config.json": b"[]"}, ""),
        ({"config.json": b'{"class_name": "Functional", "module": ["keras"], "config": {}}'}, "unhashable"),
    ],
)
def test_a_zip_with_other_members_is_refused(encoder_file, tmp_path, added, complaint):
    with zipfile.ZipFile(encoder_file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    write(tmp_path / "encoder.keras", members | added)
    with pytest.raises(EncoderError, match=f"encoder.keras: expected an encoder .*{complaint}"):
        SpeakerEncoder.load(tmp_path / "encoder.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.keras"]


def test_a_zip_bomb_is_refused_unread(tmp_path):
    """100 kB that would be 100 MB."""
    write(tmp_path / "encoder.keras", {"config.json": b" " * 10**8}, zipfile.ZIP_DEFLATED)
    with pytest.raises(EncoderError, match=r"member 'config.json' that is compressed"):
        SpeakerEncoder.load(tmp_path / "encoder.keras")


def test_a_zip_of_another_suffix_is_refused(encoder_file, tmp_path):
    """Keras would read it as HDF5, where its safe mode did not hold (CVE-2025-9905)."""
    path = tmp_path / "encoder.h5"
    path.write_bytes(encoder_file.read_bytes())
    with pytest.raises(EncoderError, match=r"encoder.h5: expected an encoder .*another kind of file"):
        SpeakerEncoder.load(path)


@pytest.mark.parametrize(
    "choice", [*({"pooling": pooling} for pooling in POOLINGS), *({"normalisation": way} for way in NORMALISATIONS)]
)
def test_encoders_of_every_pooling_and_normalisation_load(tmp_path, choice):
    encoder = encoders.with_projection(encoders.build_encoder("vggm", 0.03, 257, **choice), 8)
    encoder.save(tmp_path / "encoder.keras")
    assert SpeakerEncoder.load(tmp_path / "encoder.keras").fingerprint == SpeakerEncoder(encoder).fingerprint


def test_an_encoder_of_every_kind_of_layer_loads_where_nothing_else_is_imported(tmp_path):
    encoder = encoders.build_encoder(
        "resnet34", 0.1, mel_bands=40, normalisation="running", pooling="attentive_statistics", squeeze_excitation=True
    )
    encoder = encoders.with_embedding(encoder, 8)
    encoder.save(tmp_path / "encoder.keras")
    path = tmp_path / "encoder.keras"
    load = (
        f"from vggvox_tf.speaker_encoder import SpeakerEncoder; print(SpeakerEncoder.load({str(path)!r}).fingerprint)"
    )
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True)
    assert done.stdout.strip() == SpeakerEncoder(encoder).fingerprint, done.stderr
