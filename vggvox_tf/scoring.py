"""From an encoder and recordings to embeddings, and from embeddings to the scores of trials."""

import itertools

import keras
import numpy as np
import tensorflow as tf

from vggvox_tf import audio
from vggvox_tf.frontend import SAMPLE_RATE, frames_in, samples_for

# Trials scored at a time: two gathered blocks of 65,536 × 512 float32 are 256 MiB.
TRIALS_AT_ONCE = 65_536


class EncoderError(ValueError):
    """A file that is no encoder."""


def load_encoder(path):
    """Loads an encoder saved by training, a `.keras` file; raises EncoderError where it is something else.

    Keras's safe mode refuses files that bring code of their own.
    """
    try:
        encoder = keras.saving.load_model(path, compile=False, safe_mode=True)
        encoder.get_layer("spectrogram")
    except Exception as error:  # what Keras raises for a file that is none differs by what is wrong with it
        raise EncoderError(
            f"{path}: expected an encoder that vggvox_tf.train saved (RUN/encoder.keras), found: {error}"
        ) from error
    return encoder


def embed(encoder, root, paths, batch_size=32, progress=None):
    """Embeds whole recordings, one vector each, without padding any.

    Recordings of equally many frames share a batch; samples after the last whole frame, which no spectrogram
    contains, are cut off first. So a recording's vector does not depend on which others are embedded with it.

    Args:
      encoder: Keras model, waveforms (B, samples) to embeddings (B, D).
      root, paths: recordings, as paths relative to a root folder.
      batch_size: the most recordings in a batch.
      progress: called with the number of recordings done, after each batch.

    Returns:
      float32 (N, D), in the order of `paths`.

    Raises:
      audio.AudioError: some recordings cannot be used; how many, and what is wrong with the first.
    """
    if not len(paths):
        raise ValueError("no recordings to embed")
    minimum = samples_for(encoder.get_layer("spectrogram").minimum_frames)
    errors = {}

    def load(index):
        path = root / paths[index]
        try:
            waveform = audio.load(path)
            if waveform.size < minimum:
                needed = f"this encoder needs at least {minimum / SAMPLE_RATE:.2f} s"
                raise audio.AudioError(path, f"lasts {waveform.size / SAMPLE_RATE:.2f} s; {needed}")
            return waveform[: samples_for(frames_in(waveform.size))]
        except audio.AudioError as error:
            errors[int(index)] = error
            return np.zeros(0, np.float32)

    def length(index):
        try:
            return audio.num_samples(root / paths[index])
        except audio.AudioError:
            return 0  # reading it reports the error

    def parallel(indices, function, dtype):
        def op(index):
            return index, tf.numpy_function(function, [index], dtype, stateful=False)

        mapped = tf.data.Dataset.from_tensor_slices(indices).map(op, tf.data.AUTOTUNE, deterministic=True)
        return mapped.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    # Neighbours in the order of length share batches; the lengths by header only serve to put them in order.
    lengths = [n for _, n in parallel(np.arange(len(paths)), lambda index: np.int64(length(index)), tf.int64)]
    forward = tf.function(
        lambda waveforms: encoder(waveforms, training=False),
        input_signature=[tf.TensorSpec([None, None], tf.float32)],
    )
    embeddings = np.zeros((len(paths), encoder.output_shape[-1]), np.float32)
    done = 0
    loaded = parallel(np.argsort(lengths, kind="stable"), load, tf.float32)
    for samples, group in itertools.groupby(loaded, key=lambda item: item[1].size):
        while batch := list(itertools.islice(group, batch_size)):
            if samples:
                indices = [index for index, _ in batch]
                embeddings[indices] = forward(np.stack([waveform for _, waveform in batch])).numpy()
            done += len(batch)
            if progress:
                progress(done)
    if errors:
        first = errors[min(errors)]
        raise audio.AudioError(first.path, f"{first.reason} ({len(errors)} of {len(paths)} recordings cannot be used)")
    return embeddings


def unit_length(embeddings):
    """Rows of (N, D) brought to unit length; a zero row stays zero."""
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def score(trials, embeddings, distance="cosine"):
    """Scores (M,) of trials, higher for the same speaker: the cosine, or minus the Euclidean distance.

    Args:
      trials: a trials.Trials of M trials over U recordings.
      embeddings: (U, D), in the order of trials.paths.
      distance: "cosine" or "euclidean".
    """
    if distance == "cosine":
        embeddings = unit_length(embeddings)
    scores = np.empty(len(trials), np.float32)
    for start in range(0, len(trials), TRIALS_AT_ONCE):
        block = slice(start, start + TRIALS_AT_ONCE)
        a, b = embeddings[trials.enrol[block]], embeddings[trials.test[block]]
        if distance == "cosine":
            scores[block] = np.einsum("ij,ij->i", a, b)
        else:
            scores[block] = -np.linalg.norm(a - b, axis=1)
    return scores
