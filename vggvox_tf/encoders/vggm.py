"""VGG-M for spectrograms (Nagrani et al. 2017, table 3; filter numbers of the released network).

For 512 × 300 input (frequency × time), at width 1:

    layer   kernel  filters  stride  output
    conv1   7×7     96       2×2     254×148
    pool1   3×3     max      2×2     126×73
    conv2   5×5     256      2×2     62×36
    pool2   3×3     max      2×2     30×17
    conv3   3×3     384      1       30×17
    conv4   3×3     256      1       30×17
    conv5   3×3     256      1       30×17
    pool5   5×3     max      3×2     9×8
    fc6     9×1     4096     1       1×8
    pool6   1×n     average  –       1×1      (or another pooling over time)
    fc7     1×1     1024     1       1×1
"""

import keras

from vggvox_tf.encoders.layers import conv_norm, norm_relu, scaled
from vggvox_tf.encoders.pooling import pool_over_time

# pool5 leaves one time step of 3; pool2 gives 3 of 7, conv2 7 of 15, pool1 15 of 31, conv1 31 of 65.
MINIMUM_FRAMES = 65
# pool5 leaves one row of 5; pool2 gives 5 of 11, conv2 11 of 23, pool1 23 of 47, conv1 47 of 97.
MINIMUM_ROWS = 97


def vggm(spectrograms, width=1.0, pooling="average"):
    """Spectrograms (B, F, T, 1) to fc7's output (B, 1024 · width), pooled over time between fc6 and fc7."""
    if spectrograms.shape[1] < MINIMUM_ROWS:
        raise ValueError(
            f"VGG-M's pooling leaves nothing of {spectrograms.shape[1]} rows: expected at least {MINIMUM_ROWS} rows or "
            "mel bands; a ResNet takes fewer"
        )

    def max_pool(x, size, stride, name):
        return keras.layers.MaxPooling2D(size, stride, name=name)(x)

    x = conv_norm(spectrograms, scaled(96, width), 7, 2, padding=1, name="conv1")
    x = max_pool(x, 3, 2, "pool1")
    x = conv_norm(x, scaled(256, width), 5, 2, padding=1, name="conv2")
    x = max_pool(x, 3, 2, "pool2")
    x = conv_norm(x, scaled(384, width), 3, 1, padding=1, name="conv3")
    x = conv_norm(x, scaled(256, width), 3, 1, padding=1, name="conv4")
    x = conv_norm(x, scaled(256, width), 3, 1, padding=1, name="conv5")
    x = max_pool(x, (5, 3), (3, 2), "pool5")
    # fc6 spans all frequencies and one time step. Its height follows the input: 9 for 512 rows, 4 for 257.
    x = conv_norm(x, scaled(4096, width), (x.shape[1], 1), 1, padding=0, name="fc6")  # (B, 1, T', 4096)
    x = pool_over_time(x, pooling, "pool6")  # (B, 4096)
    x = keras.layers.Dense(scaled(1024, width), use_bias=False, kernel_initializer="he_normal", name="fc7")(x)
    return norm_relu(x, "fc7")
