"""Thumbnails of spectrograms, which TensorBoard's projector draws in place of points."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from vggvox_tf import audio
from vggvox_tf.frontend import samples_for
from vggvox_tf.speaker_encoder import CROP_SAMPLES, THREADS

# What lies between these percentiles of a thumbnail becomes the scale from white to black.
FAINT, LOUD = 5, 99


def thumbnails(model, root, paths, size):
    """What the net hears of each recording: its front end's output, of the central 3 s at most.

    Energy is dark on light, as printed: the projector multiplies the picture with the point's colour. Low frequencies
    are at the bottom; each picture has its own scale of grey.

    Args:
      model: an encoder with a "spectrogram" layer, waveforms (B, samples) to (B, F, T, 1).
      paths: N file names, relative to `root`.
      size: pixels, S.

    Returns:
      uint8 (N, S, S), 255 is white; recordings that cannot be used stay blank (white).
    """
    layer = model.get_layer("spectrogram")
    minimum = samples_for(layer.minimum_frames)
    spectrogram = tf.function(layer, input_signature=[tf.TensorSpec([None, None], tf.float32)])

    def thumbnail(path):
        path = Path(root) / path
        try:
            samples = min(audio.num_samples(path), CROP_SAMPLES)
            waveform = audio.load_crop(path, 0.5, samples) if samples >= minimum else None
        except audio.AudioError:
            waveform = None
        if waveform is None:
            return np.full((size, size), 255, np.uint8)
        heard = spectrogram(waveform[np.newaxis]).numpy()[0, ::-1, :, 0]  # (F, T), high frequencies first
        small = np.asarray(Image.fromarray(heard).resize((size, size), Image.Resampling.BOX))
        faint, loud = np.percentile(small, [FAINT, LOUD])
        return np.clip(255 - 255 * (small - faint) / max(loud - faint, 1e-6), 0, 255).round().astype(np.uint8)

    with ThreadPoolExecutor(THREADS) as pool:
        return np.stack(list(pool.map(thumbnail, paths)))
