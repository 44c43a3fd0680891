"""A trained encoder ready for use: recordings or waveforms to embeddings, and two embeddings to a decision."""

import collections
import hashlib
import itertools
import json
import math
import os
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from vggvox_tf import audio, scoring
from vggvox_tf.calibration import Calibration, CalibrationError
from vggvox_tf.decision import decide
from vggvox_tf.encoders.layers import BatchNormalization
from vggvox_tf.encoders.pooling import AttentivePooling, NetVLAD, StatisticsPooling
from vggvox_tf.frontend import FRAME_STEP, SAMPLE_RATE, Spectrogram, Speed, crop_samples, frames_in, samples_for

# Test-time crops (Chung et al. 2018, section 4.3): ten of 3 s a recording.
CROPS = 10
CROP_SAMPLES = crop_samples(3)

# Recordings are decoded, and batches embedded, on several threads: a forward pass on its own leaves cores idle between
# its operations. More than a few passes at a time only take memory.
THREADS = 2 * (os.cpu_count() or 1)
FORWARD_PASSES = 4

# What an encoder's file holds, and what the layers in it are: Keras's by module, and ours. Whatever else a file names,
# Keras might import or call, and its own safe mode has had holes (CVE-2025-1550, 8747, 9905, 9906).
MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
MAXIMUM_CONFIG_BYTES = 2**24  # a ResNet-50's has 250 kB
KERAS_CLASSES = {
    "keras": {"DTypePolicy"},
    "keras.initializers": {"GlorotUniform", "HeNormal", "Ones", "Orthogonal", "Zeros"},
    "keras.layers": {
        "Add", "BatchNormalization", "Concatenate", "Conv2D", "Dense", "GlobalAveragePooling2D", "InputLayer",
        "MaxPooling2D", "Multiply", "ReLU", "UnitNormalization", "ZeroPadding2D",
    },
    "keras.src.models.functional": {"Functional"},
}  # fmt: skip
# Arguments that newer versions of Keras write at their defaults, and that versions before them refuse.
NEWER_ARGUMENTS = {
    "input_axes", "output_axes", "quantization_config", "renorm", "renorm_clipping", "renorm_momentum",
}  # fmt: skip
OUR_CLASSES = {
    f"vggvox_tf>{cls.__name__}"
    for cls in (Speed, Spectrogram, BatchNormalization, AttentivePooling, NetVLAD, StatisticsPooling)
}


class EncoderError(ValueError):
    """A file that is no encoder."""


class SpeakerEncoder:
    """An encoder with its forward pass, its fingerprint and, where it has one, its calibration.

    Args:
      model: Keras model, waveforms (B, samples) to embeddings (B, D).
      path: the file it comes from; its calibration lies beside it.
    """

    def __init__(self, model, path=None):
        self.model = model
        self.path = path
        self._forward = tf.function(
            lambda waveforms: model(waveforms, training=False),
            input_signature=[tf.TensorSpec([None, None], tf.float32)],
        )

    @classmethod
    def load(cls, path):
        """Loads an encoder saved by training, a `.keras` file; raises EncoderError where it is something else.

        A file can be a stranger's: nothing in it is run or imported.
        """
        # By its suffix Keras tells a zip from HDF5, which a file may be at the same time.
        if not (str(path).endswith(".keras") and zipfile.is_zipfile(path)):
            found = "another kind of file" if os.path.exists(path) else "no such file"
            raise EncoderError(
                f"{path}: expected an encoder that vggvox_tf.train saved (RUN/encoder.keras), found {found}"
            )
        try:
            _check_harmless(path)
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
            model.get_layer("spectrogram")
        except Exception as error:  # what Keras raises for a file that is none differs by what is wrong with it
            raise EncoderError(
                f"{path}: expected an encoder that vggvox_tf.train saved (RUN/encoder.keras), found: {error}"
            ) from error
        return cls(model, Path(path))

    def save(self, path):
        """Writes a `.keras` file that every Keras of requirements.txt loads, whichever of them saves it."""
        self.model.save(path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members["config.json"] = _for_older_keras(members["config.json"])
        with zipfile.ZipFile(path, "w") as archive:
            for name, member in members.items():
                archive.writestr(name, member)

    @property
    def dimension(self):
        """D, the size of an embedding."""
        return self.model.output_shape[-1]

    @property
    def minimum_samples(self):
        """Samples of the shortest recording that the trunk's pooling leaves something of."""
        fastest = max([1, *(layer.speed for layer in self.model.layers if isinstance(layer, Speed))])
        least = math.ceil(fastest * samples_for(self.model.get_layer("spectrogram").minimum_frames))
        return samples_for(frames_in(least + FRAME_STEP - 1))  # what is more than whole frames is cut off

    @property
    def fingerprint(self):
        """SHA-256 (hex) of the layers and weights: the same wherever, and however often, the encoder is saved."""
        digest = hashlib.sha256()
        for front_end in (layer for layer in self.model.layers if isinstance(layer, Speed | Spectrogram)):
            config = front_end.get_config()
            for key in ("dtype", "name", "trainable"):  # have no bearing on the embeddings
                del config[key]
            digest.update(json.dumps(config, sort_keys=True).encode())
        for layer in self.model.layers:
            digest.update(f"{type(layer).__name__} {layer.name}\n".encode())
            for weight in layer.get_weights():
                digest.update(f"{weight.dtype.str} {weight.shape}\n".encode() + weight.tobytes())
        return digest.hexdigest()

    @property
    def calibration_path(self):
        """Where this encoder's calibration is kept: `encoder.calibration.json` beside `encoder.keras`."""
        return self.path.with_suffix(".calibration.json")

    @property
    def calibration(self):
        """The calibration beside the encoder's file, or None; CalibrationError if it belongs to another encoder."""
        if self.path is None or not self.calibration_path.exists():
            return None
        calibration = Calibration.load(self.calibration_path)
        if calibration.fingerprint != self.fingerprint:
            raise CalibrationError(
                f"{self.calibration_path} was made for another encoder ({calibration.fingerprint[:12]}) than "
                f"{self.path} ({self.fingerprint[:12]}): make it anew with vggvox_tf.evaluate, or delete it"
            )
        return calibration

    def embed_files(self, paths, root="", crops=None, lengths=None, batch_size=8, progress=None, errors=None):
        """Embeds recordings without padding any.

        Recordings of equally many frames share a batch; samples after the last whole frame, which no spectrogram
        contains, are cut off first. So a recording's vectors do not depend on which others are embedded with it.

        Args:
          paths: N file names, relative to `root`.
          crops: None embeds whole recordings. A number embeds as many crops of 3 s, evenly spaced from the start to the
            end; a recording shorter than 3 s is all of its crops.
          lengths: (N,) samples as `lengths` gives them, where they are known already.
          batch_size: the most recordings, or crops, in a batch.
          progress: called with the number of recordings done, after each batch.
          errors: a dict that takes index -> AudioError of recordings that cannot be used, whose rows become NaN.
            Without it they raise.

        Returns:
          float32 (N, D), or (N, crops, D), in the order of `paths`, as they come out of the encoder.

        Raises:
          audio.AudioError: some recordings cannot be used; how many, and what is wrong with the first.
        """
        found = {} if errors is None else errors
        embeddings = np.full((len(paths), *([crops] if crops else []), self.dimension), np.nan, np.float32)
        done = 0
        for indices, vectors in self.embed_batches(paths, root, crops, lengths, batch_size, found):
            embeddings[indices] = vectors
            done += len(indices)
            if progress:
                progress(done)
        if progress and found:
            progress(len(paths))
        if found and errors is None:
            first = found[min(found)]
            count = f"{len(found)} of {len(paths)} recordings cannot be used"
            raise audio.AudioError(first.path, f"{first.reason} ({count})" if len(paths) > 1 else first.reason)
        return embeddings

    def embed_batches(self, paths, root, crops, lengths, batch_size, errors):
        """Yields (indices (B,), vectors (B, D) or (B, crops, D)) in the order of length; see `embed_files`."""
        if not len(paths):
            raise ValueError("no recordings to embed")
        lengths = self.lengths(paths, root) if lengths is None else np.asarray(lengths)
        # By the headers; should one lie, its recording only misses the company of its equals.
        order = np.argsort(lengths, kind="stable")
        frames = np.where(crops and lengths > CROP_SAMPLES, 0, frames_in(lengths))
        batches = [
            group[start : start + step]
            for group in np.split(order, np.flatnonzero(np.diff(frames[order])) + 1)
            for step in [max(1, batch_size // crops) if crops and not frames[group[0]] else batch_size]
            for start in range(0, len(group), step)
        ]
        passes = threading.Semaphore(FORWARD_PASSES)

        def embed(batch):
            loaded = [
                (index, views) for index in batch if (views := self._load(paths, root, index, crops, errors)).size
            ]
            results = []
            for shape in sorted({views.shape for _, views in loaded}):
                indices = [index for index, views in loaded if views.shape == shape]
                waveforms = np.concatenate([views for _, views in loaded if views.shape == shape])
                with passes:
                    vectors = self._forward(waveforms).numpy().reshape(len(indices), shape[0], -1)
                # A recording that is too short for crops has one view, which is all of them.
                vectors = np.repeat(vectors, crops // shape[0], axis=1) if crops else vectors[:, 0]
                results.append((np.array(indices), vectors))
            return results

        with ThreadPoolExecutor(THREADS) as pool:
            # Traced once, before several threads wait for it: TensorFlow would count, and warn of, a tracing for each.
            pool.submit(self._forward.get_concrete_function).result()
            ahead = collections.deque()
            for batch in batches:
                ahead.append(pool.submit(embed, batch))
                if len(ahead) > 2 * THREADS:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()

    def _load(self, paths, root, index, crops, errors):
        """What of a recording is embedded, (1, samples) or (crops, CROP_SAMPLES); or nothing, noted in `errors`."""
        path = Path(root) / paths[index]
        try:
            waveform = audio.load(path)
            if waveform.size < self.minimum_samples:
                needed = f"this encoder needs at least {self.minimum_samples / SAMPLE_RATE:.2f} s"
                raise audio.AudioError(path, f"lasts {waveform.size / SAMPLE_RATE:.2f} s; {needed}")
            return _views(waveform, crops)
        except audio.AudioError as error:
            errors[int(index)] = error
            return np.zeros((0, 0), np.float32)

    def lengths(self, paths, root=""):
        """Samples (N,) at 16 kHz of recordings by their headers; 0 where a header cannot be read."""

        def length(path):
            try:
                return audio.num_samples(Path(root) / path)
            except audio.AudioError:
                return 0  # reading the recording reports the error

        with ThreadPoolExecutor(THREADS) as pool:
            return np.fromiter(pool.map(length, paths), np.int64, len(paths))

    def embed_waveforms(self, waveforms, batch_size=8):
        """Embeds waveforms: a list of N float arrays (n,) at 16 kHz in [-1, 1], of any lengths, to float32 (N, D).

        Raises:
          ValueError: a waveform is not one-dimensional, of another type, too short, silent, or not finite.
        """
        trimmed = []
        for number, waveform in enumerate(waveforms):
            waveform = np.asarray(waveform)
            if waveform.ndim != 1 or waveform.dtype.kind != "f":
                raise ValueError(
                    f"waveform {number}: expected a float array (samples,) at 16 kHz in [-1, 1], received "
                    f"{waveform.dtype} {waveform.shape}"
                )
            if waveform.size < self.minimum_samples:
                raise ValueError(
                    f"waveform {number}: expected at least {self.minimum_samples} samples "
                    f"({self.minimum_samples / SAMPLE_RATE:.2f} s at 16 kHz), received {waveform.size}"
                )
            peak = np.abs(waveform).max()
            if not audio.SILENCE <= peak <= audio.OVERLOAD:  # false for NaN, too
                raise ValueError(f"waveform {number}: expected speech in [-1, 1], received a peak of {peak:g}")
            trimmed.append(_views(waveform.astype(np.float32), None)[0])
        embeddings = np.empty((len(trimmed), self.dimension), np.float32)
        order = sorted(range(len(trimmed)), key=lambda i: trimmed[i].size)
        for _, group in itertools.groupby(order, key=lambda i: trimmed[i].size):
            while batch := list(itertools.islice(group, batch_size)):
                embeddings[batch] = self._forward(np.stack([trimmed[i] for i in batch])).numpy()
        return embeddings

    def compare(self, a, b, threshold=None, p_target=0.5):
        """A decision.Decision on two embeddings (D,): same speaker or not, by the calibration or a given threshold."""
        a, b = scoring.unit_length(np.stack([a, b]))
        return decide(a @ b, self.calibration, threshold, p_target)


def _for_older_keras(config):
    """A model's configuration (bytes of JSON) without NEWER_ARGUMENTS."""
    return json.dumps(
        json.loads(
            config,
            object_hook=lambda part: {name: value for name, value in part.items() if name not in NEWER_ARGUMENTS},
        )
    )


def _check_harmless(path):
    """Raises an error where a `.keras` file holds, or its configuration names, what no encoder of ours does."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            # Keras compresses nothing; what is compressed may be a thousand times as large.
            if member.filename not in MEMBERS or member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"a member {member.filename!r} that is compressed or does not belong there")
        if (size := archive.getinfo("config.json").file_size) > MAXIMUM_CONFIG_BYTES:
            raise ValueError(f"a config.json of {size:,} bytes")
        json.loads(archive.read("config.json"), object_hook=_check_class)


def _check_class(item):
    """Raises ValueError where a JSON object stands for an object of Python that is in no encoder of ours."""
    if "class_name" in item:
        name, module, registered = item["class_name"], item.get("module"), item.get("registered_name")
        ours = registered == f"vggvox_tf>{name}" and registered in OUR_CLASSES
        keras_own = registered in (None, name) and name in KERAS_CLASSES.get(module, ())
        if not (ours or keras_own or name == "__keras_tensor__"):
            raise ValueError(f"{module}.{name} ({registered}), which no encoder of vggvox_tf contains")
    return item


def _views(waveform, crops):
    """What of a recording is embedded, as (1, samples) or (crops, CROP_SAMPLES)."""
    if not crops or waveform.size <= CROP_SAMPLES:
        return waveform[np.newaxis, : samples_for(frames_in(waveform.size))]
    starts = np.linspace(0, waveform.size - CROP_SAMPLES, crops).round().astype(int)
    return np.stack([waveform[start : start + CROP_SAMPLES] for start in starts])
