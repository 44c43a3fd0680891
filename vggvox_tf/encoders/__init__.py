"""Speaker encoders: Keras models from waveforms (B, samples) to one vector (B, D) an utterance, and their heads.

    waveform → Spectrogram → trunk, averaged over time → (stage 1) softmax classifier of the training speakers
                                                       → (stage 2) embedding layer, after Chung et al. 2018

Both stages share the trunk. The front end is inside the encoder, so nobody can feed it the wrong features.
"""

import keras

from vggvox_tf.encoders import resnet, vggm
from vggvox_tf.frontend import Spectrogram

# name -> (trunk, shortest input in frames)
TRUNKS = {
    "vggm": (vggm.vggm, vggm.MINIMUM_FRAMES),
    "resnet34": (resnet.resnet34, resnet.MINIMUM_FRAMES),
    "resnet50": (resnet.resnet50, resnet.MINIMUM_FRAMES),
}


def build_encoder(trunk, width=1.0, rows=512, log_magnitude=False):
    """An untrained encoder: float32 waveforms (B, samples) of any length to the trunk's vectors (B, D).

    Args:
      trunk: "vggm" (D = 1024), "resnet34" (512) or "resnet50" (2048).
      width: multiplies the number of filters, and D, of every layer.
      rows, log_magnitude: see frontend.Spectrogram.
    """
    build_trunk, minimum_frames = TRUNKS[trunk]
    waveforms = keras.Input((None,), name="waveform")
    spectrograms = Spectrogram(rows, log_magnitude, minimum_frames, name="spectrogram")(waveforms)
    return keras.Model(waveforms, build_trunk(spectrograms, width), name=trunk)


def with_classifier(encoder, speakers):
    """The encoder with a linear layer on top: waveforms (B, samples) to logits (B, speakers) for a softmax."""
    return keras.Model(
        encoder.input, keras.layers.Dense(speakers, name="classifier")(encoder.output), name="classifier"
    )


def with_embedding(encoder, dimension=512, unit_length=True):
    """The encoder with an embedding layer in the classifier's place: waveforms (B, samples) to (B, dimension).

    As in the released VGGVox, the trunk's output is brought to unit length before the layer. The layer begins as an
    orthogonal map, which keeps angles (exactly where dimension ≥ D), so stage 2 begins where stage 1 ended.

    Args:
      unit_length: L2-normalise the embeddings. Their distances then lie in [0, 2], so that a contrastive margin
        of 1 (an angle of 60°) up to √2 (a right angle) makes sense; without it, distances have no fixed scale.
    """
    x = keras.layers.UnitNormalization(name="unit_length_trunk")(encoder.output)
    x = keras.layers.Dense(dimension, kernel_initializer="orthogonal", name="embedding")(x)
    if unit_length:
        x = keras.layers.UnitNormalization(name="unit_length")(x)
    return keras.Model(encoder.input, x, name=encoder.name)
