"""ResNet-34 and ResNet-50 for spectrograms (He et al. 2016, table 1; Chung et al. 2018, table 2).

conv1 7×7, 64, stride 2 · max pool 3×3, stride 2 · [3, 4, 6, 3] blocks of widths 64–512 · fc1 over all frequencies ·
average over time. With 257 rows frequency goes 257 → 129 → 65 → 33 → 17 → 9, so fc1 is 9×1; 512 rows arrive as 16, 80
mel bands as 3. A width of 0.25 makes the thin ResNet-34 (Cai et al. 2018, table 1): 16–128 filters.

Speaker encoders of later years leave out the max pool, and most of them conv1's stride (Zeinali et al. 2019, table 1):
the blocks then see more of frequency and time, and take 4 or 16 times as many operations.
"""

import keras

from vggvox_tf.encoders.layers import conv_norm, scaled, squeeze_excite
from vggvox_tf.encoders.pooling import pool_over_time

BLOCKS = (3, 4, 6, 3)
STEM_STRIDES = (4, 2, 1)

# Any length survives the padded convolutions; 32 frames make one time step at the total stride of 32, and a
# normalisation over fewer frames says little about a voice.
MINIMUM_FRAMES = 32


def basic_block(x, filters, stride, name):
    """Two 3×3 convolutions (ResNet-34)."""
    y = conv_norm(x, filters, 3, stride, padding=1, name=f"{name}_a")
    return conv_norm(y, filters, 3, 1, padding=1, name=f"{name}_b", activation=False)


def bottleneck_block(x, filters, stride, name):
    """1×1, 3×3, 1×1 with four times the filters at the end (ResNet-50); the first 1×1 strides, as in the paper."""
    y = conv_norm(x, filters, 1, stride, padding=0, name=f"{name}_a")
    y = conv_norm(y, filters, 3, 1, padding=1, name=f"{name}_b")
    return conv_norm(y, 4 * filters, 1, 1, padding=0, name=f"{name}_c", activation=False)


def resnet(spectrograms, block, outputs, width, pooling, squeeze_excitation, stem_stride):
    """Spectrograms (B, F, T, 1) to (B, outputs · width): fc1's output pooled over time."""
    if stem_stride not in STEM_STRIDES:
        raise ValueError(f"stem_stride must be one of {STEM_STRIDES}, received {stem_stride}")
    x = conv_norm(spectrograms, scaled(64, width), 7, 1 if stem_stride == 1 else 2, padding=3, name="conv1")
    if stem_stride == 4:
        # Values after a ReLU are not negative, so padding a maximum with zeros changes nothing.
        x = keras.layers.ZeroPadding2D(1, name="pool1_pad")(x)
        x = keras.layers.MaxPooling2D(3, 2, name="pool1")(x)
    for stage, blocks in enumerate(BLOCKS):
        for index in range(blocks):
            name = f"conv{stage + 2}_{index + 1}"
            stride = 2 if stage > 0 and index == 0 else 1
            y = block(x, scaled(64 * 2**stage, width), stride, name)
            if squeeze_excitation:
                y = squeeze_excite(y, f"{name}_se")
            if index == 0 and (stride > 1 or x.shape[-1] != y.shape[-1]):
                x = conv_norm(x, y.shape[-1], 1, stride, padding=0, name=f"{name}_skip", activation=False)
            x = keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, y]))
    x = conv_norm(x, scaled(outputs, width), (x.shape[1], 1), 1, padding=0, name="fc1")  # (B, 1, T', outputs)
    return pool_over_time(x, pooling, "pool_time")


def resnet34(spectrograms, width=1.0, pooling="average", squeeze_excitation=False, stem_stride=4):
    """ResNet-34 trunk: (B, F, T, 1) to (B, 512 · width)."""
    return resnet(spectrograms, basic_block, 512, width, pooling, squeeze_excitation, stem_stride)


def resnet50(spectrograms, width=1.0, pooling="average", squeeze_excitation=False, stem_stride=4):
    """ResNet-50 trunk: (B, F, T, 1) to (B, 2048 · width)."""
    return resnet(spectrograms, bottleneck_block, 2048, width, pooling, squeeze_excitation, stem_stride)
