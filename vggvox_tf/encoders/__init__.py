"""Speaker encoders: Keras models from waveforms (B, samples) to one vector (B, D) an utterance, and their heads.

    waveform → Spectrogram → trunk, pooled over time → (stage 1) classifier of the training speakers
                                                     → (stage 2) embedding layer, after Chung et al. 2018

Both stages share the trunk. The front end is inside the encoder, so nobody can feed it the wrong features.
"""

import keras

from vggvox_tf.encoders import resnet, vggm
from vggvox_tf.frontend import Spectrogram, Speed
from vggvox_tf.heads import CosineClassifier

# name -> (trunk, shortest input in frames)
TRUNKS = {
    "vggm": (vggm.vggm, vggm.MINIMUM_FRAMES),
    "resnet34": (resnet.resnet34, resnet.MINIMUM_FRAMES),
    "resnet50": (resnet.resnet50, resnet.MINIMUM_FRAMES),
}


def build_encoder(
    trunk,
    width=1.0,
    rows=512,
    mel_bands=0,
    compression="linear",
    normalisation="time",
    pooling="average",
    squeeze_excitation=False,
    stem_stride=4,
):
    """An untrained encoder: float32 waveforms (B, samples) of any length to the trunk's vectors (B, D).

    Args:
      trunk: "vggm" (D = 1024), "resnet34" (512) or "resnet50" (2048). Pooling with statistics doubles a ResNet's D, a
        VLAD makes it eight times as large.
      width: multiplies the number of filters, and D, of every layer.
      rows, mel_bands, compression, normalisation: see frontend.Spectrogram.
      pooling: over time; one of pooling.POOLINGS.
      squeeze_excitation: in the blocks of a ResNet.
      stem_stride: of what comes before a ResNet's blocks: 4 with a max pool, as in the papers, 2 without it, or 1.

    Raises:
      ValueError: VGG-M has no blocks to squeeze and no other strides, or its pooling leaves nothing of so few rows.
    """
    build_trunk, minimum_frames = TRUNKS[trunk]
    waveforms = keras.Input((None,), name="waveform")
    front_end = Spectrogram(rows, mel_bands, compression, normalisation, minimum_frames, name="spectrogram")
    if trunk == "vggm":
        if squeeze_excitation:
            raise ValueError("squeeze and excitation is for the blocks of a ResNet; VGG-M has none")
        if stem_stride != 4:
            raise ValueError("the stem's stride is a ResNet's; VGG-M has that of the paper")
        return keras.Model(waveforms, build_trunk(front_end(waveforms), width, pooling), name=trunk)
    vectors = build_trunk(front_end(waveforms), width, pooling, squeeze_excitation, stem_stride)
    return keras.Model(waveforms, vectors, name=trunk)


def classifier(classes, cosine=False):
    """A classifier's last layer: vectors (B, D) to logits (B, classes), or to cosines for a loss with a margin."""
    return (CosineClassifier if cosine else keras.layers.Dense)(classes, name="classifier")


def with_projection(encoder, dimension):
    """The encoder with a linear layer to (B, dimension) on top, to be trained from scratch with a classifier after it.

    The trunk's output comes out of a ReLU, so that its cosines are all positive; those of a linear layer need not be.
    """
    return keras.Model(
        encoder.input, keras.layers.Dense(dimension, name="embedding")(encoder.output), name=encoder.name
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
    encoder = keras.Model(encoder.input, x, name=encoder.name)
    return with_unit_length(encoder) if unit_length else encoder


def with_unit_length(encoder):
    """The encoder with its embeddings brought to unit length."""
    vectors = keras.layers.UnitNormalization(name="unit_length")(encoder.output)
    return keras.Model(encoder.input, vectors, name=encoder.name)


def fused(encoders, speeds=(1,)):
    """One encoder of several: their embeddings, each brought to unit length, side by side, of unit length together.

    A cosine of two such embeddings is the mean of the cosines by each encoder: fusion of the scores, at equal weights.
    The layers of the first keep their names; those of the k-th (k ≥ 2) end in `_k`. The one whose trunk needs the
    longest recordings comes first, so that the "spectrogram" layer says what all of them need.

    Args:
      encoders: one or more, not fused.
      speeds: each hears the recording at all of them.

    Raises:
      ValueError: one is fused already, which would make the weights unequal.
    """
    if any(is_fused(encoder) for encoder in encoders):
        raise ValueError("an encoder is fused of others already: fuse those that it was made of")
    first, *others = sorted(encoders, key=lambda encoder: -encoder.get_layer("spectrogram").minimum_frames)
    waveform = keras.Input((None,), name="waveform")
    parts = [_renamed(first, waveform, ""), *(_renamed(other, waveform, f"_{n}") for n, other in enumerate(others, 2))]
    played = [waveform if speed == 1 else Speed(speed, name=f"speed_{speed:g}")(waveform) for speed in speeds]
    vectors = [vector for part in parts for vector in _heard(part, played)]
    units = [keras.layers.UnitNormalization(name=f"part_{n}")(vector) for n, vector in enumerate(vectors, 1)]
    together = keras.layers.Concatenate(name="parts")(units)
    return keras.Model(waveform, keras.layers.UnitNormalization(name="fused")(together), name="fused")


def _heard(encoder, recordings):
    """The embeddings of each of several recordings (Keras tensors) by the same layers."""
    calls = [(layer, layer.input, layer.output) for layer in encoder.layers[1:]]  # each was called once so far
    for recording in recordings:
        results = {id(encoder.input): recording}
        for layer, given, result in calls:
            inputs = [results[id(tensor)] for tensor in given] if isinstance(given, list) else results[id(given)]
            results[id(result)] = layer(inputs)
        yield results[id(encoder.output)]


def is_fused(encoder):
    """Whether an encoder was made of several by `fused`."""
    return any(layer.name == "fused" for layer in encoder.layers)


def _renamed(encoder, waveforms, suffix):
    """A copy of an encoder, weights included, of these `waveforms` (a Keras tensor), whose layers' names end so."""

    def copy_of(layer):
        config = layer.get_config()
        return type(layer).from_config(config | {"name": config["name"] + suffix})

    copy = keras.models.clone_model(encoder, input_tensors=waveforms, clone_function=copy_of)
    copy.set_weights(encoder.get_weights())
    return copy


def with_precision(encoder, policy):
    """A copy of the encoder, weights included, whose convolutions and what lies between have a Keras dtype policy.

    The encoder itself where they have it already. The front end, the pooling over time and all that follows stay in
    float32; with "mixed_bfloat16" all weights do.
    """
    images = {layer.name: layer for layer in encoder.layers if len(layer.output.shape) == 4}
    del images["spectrogram"]
    if all(layer.dtype_policy.name == policy for layer in images.values()):
        return encoder
    config = encoder.get_config()
    for layer in config["layers"]:
        if layer["name"] in images:
            layer["config"]["dtype"] = policy
    copy = keras.Model.from_config(config)
    copy.set_weights(encoder.get_weights())
    return copy
