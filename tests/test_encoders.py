import keras
import numpy as np
import pytest

from vggvox_tf import encoders
from vggvox_tf.encoders import vggm
from vggvox_tf.encoders.pooling import StatisticsPooling


def output_sizes(model, names):
    return {name: tuple(model.get_layer(name).output.shape[1:]) for name in names}


@pytest.fixture(scope="module")
def vggm_for_3_seconds():
    spectrograms = keras.Input((512, 300, 1))
    return keras.Model(spectrograms, vggm.vggm(spectrograms))


def test_vggm_has_the_sizes_of_the_papers_table(vggm_for_3_seconds):
    expected = {
        "conv1": (254, 148, 96),
        "pool1": (126, 73, 96),
        "conv2": (62, 36, 256),
        "pool2": (30, 17, 256),
        "conv3": (30, 17, 384),
        "conv4": (30, 17, 256),
        "conv5": (30, 17, 256),
        "pool5": (9, 8, 256),
        "fc6": (1, 8, 4096),
        "pool6": (4096,),
        "fc7": (1024,),
    }
    assert output_sizes(vggm_for_3_seconds, expected) == expected


def test_vggm_parameters(vggm_for_3_seconds):
    """Kernels, and 4 numbers per filter for batch norm (scale, shift, running mean and variance):

    conv1 7·7·1·96 = 4,704; conv2 5·5·96·256 = 614,400; conv3 3·3·256·384 = 884,736; conv4 3·3·384·256 = 884,736;
    conv5 3·3·256·256 = 589,824; fc6 9·1·256·4096 = 9,437,184; fc7 4096·1024 = 4,194,304: 16,609,888 in all.
    Batch norm 4·(96 + 256 + 384 + 256 + 256 + 4096 + 1024) = 4·6368 = 25,472.
    """
    assert vggm_for_3_seconds.count_params() == 16_609_888 + 25_472


def test_vggm_with_257_rows_has_a_lower_fc6():
    """257 → conv1 127 → pool1 63 → conv2 31 → pool2 15 → pool5 4 rows, so fc6 is 4×1: 5/9 of its kernel go."""
    spectrograms = keras.Input((257, 300, 1))
    model = keras.Model(spectrograms, vggm.vggm(spectrograms))
    sizes = output_sizes(model, ["conv1", "pool1", "conv2", "pool2", "pool5"])
    assert [size[0] for size in sizes.values()] == [127, 63, 31, 15, 4]
    assert model.count_params() == 16_635_360 - 5 * 256 * 4096


def test_width_multiplies_the_filters():
    """A quarter of 96, 256, 384, 256, 256, 4096, 1024; each a multiple of 8."""
    model = encoders.build_encoder("vggm", width=0.25)
    layers = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
    filters = [model.get_layer(name).kernel.shape[-1] for name in layers]
    assert filters == [24, 64, 96, 64, 64, 1024, 256]
    assert model.output_shape == (None, 256)
    assert encoders.layers.scaled(64, 0.01) == 8


def basic_blocks(channels, blocks):
    """Kernels and batch norms of a stage of basic blocks after `channels`[0] input channels."""
    before, filters = channels
    total = 0
    for index in range(blocks):
        inputs = before if index == 0 else filters
        total += 9 * inputs * filters + 9 * filters * filters + 2 * 4 * filters
        if inputs != filters:
            total += inputs * filters + 4 * filters
    return total


def bottlenecks(channels, blocks):
    before, filters = channels
    total = 0
    for index in range(blocks):
        inputs = before if index == 0 else 4 * filters
        total += inputs * filters + 9 * filters * filters + filters * 4 * filters + 4 * (2 + 4) * filters
        if index == 0:
            total += inputs * 4 * filters + 4 * 4 * filters
    return total


def test_resnet34_parameters():
    """conv1 7·7·64 = 3,136 + 4·64; the stages; fc1 9·512·512 = 2,359,296 + 4·512."""
    stages = [((64, 64), 3), ((64, 128), 4), ((128, 256), 6), ((256, 512), 3)]
    expected = 3_136 + 256 + sum(basic_blocks(*stage) for stage in stages) + 2_359_296 + 2_048
    # The same sum as one number: ImageNet's ResNet-34 without its classifier has 21,301,696 with 8,512 running
    # means and as many variances among them; its conv1 sees 3 channels: 2 · 3,136 more.
    assert expected == 21_284_672 + 2 * 8_512 - 2 * 3_136 + 2_361_344
    assert encoders.build_encoder("resnet34", rows=257).count_params() == expected


def test_resnet50_parameters():
    """conv1 7·7·64 = 3,136 + 4·64; the stages; fc1 9·2048·2048 = 37,748,736 + 4·2048."""
    stages = [((64, 64), 3), ((256, 128), 4), ((512, 256), 6), ((1024, 512), 3)]
    expected = 3_136 + 256 + sum(bottlenecks(*stage) for stage in stages) + 37_748_736 + 8_192
    assert encoders.build_encoder("resnet50", rows=257).count_params() == expected


@pytest.mark.parametrize("name, outputs", [("resnet34", 512), ("resnet50", 2048)])
@pytest.mark.parametrize("rows, heights", [(257, [129, 65, 65, 33, 17, 9]), (512, [256, 128, 128, 64, 32, 16])])
def test_resnet_sizes(name, outputs, rows, heights):
    """257 → 129 → 65 → 33 → 17 → 9 rows, so fc1 is 9×1; 512 rows arrive as 16 and it is 16×1."""
    model = encoders.build_encoder(name, rows=rows, width=0.125)
    stages = ["conv1", "pool1", "conv2_3_relu", "conv3_4_relu", "conv4_6_relu", "conv5_3_relu"]
    assert [model.get_layer(stage).output.shape[1] for stage in stages] == heights
    assert model.get_layer("fc1").kernel.shape[:2] == (heights[-1], 1)
    assert model.output_shape == (None, outputs // 8)


@pytest.mark.parametrize("name", sorted(encoders.TRUNKS))
def test_any_length_from_the_minimum_on(name):
    model = encoders.build_encoder(name, width=0.125, rows=257)
    minimum = model.get_layer("spectrogram").minimum_frames * 160 + 240
    random = np.random.default_rng(0)
    for samples in (minimum, 20_000, 48_240):
        embeddings = model(random.normal(0, 0.1, (2, samples)).astype(np.float32)).numpy()
        assert np.isfinite(embeddings).all() and embeddings.shape == (2, model.output_shape[1])
    with pytest.raises(ValueError, match=f"at least {minimum} samples"):
        model(np.zeros((1, minimum - 1), np.float32))


def test_vggm_minimum_is_the_smallest_that_works():
    for frames, works in ((vggm.MINIMUM_FRAMES, True), (vggm.MINIMUM_FRAMES - 1, False)):
        spectrograms = keras.Input((257, frames, 1))
        if works:
            vggm.vggm(spectrograms, 0.125)
        else:
            with pytest.raises(ValueError):
                vggm.vggm(spectrograms, 0.125)


def test_saved_encoder_gives_the_same_embeddings(tmp_path):
    encoder = encoders.with_embedding(encoders.build_encoder("vggm", 0.125, 257, compression="log"), 32)
    encoder.save(tmp_path / "encoder.keras")
    copy = keras.saving.load_model(tmp_path / "encoder.keras", safe_mode=True)
    waveforms = np.random.default_rng(0).normal(0, 0.1, (2, 16_000)).astype(np.float32)
    np.testing.assert_array_equal(copy(waveforms), encoder(waveforms))


def test_embedding_layer_begins_by_keeping_angles():
    """An orthogonal map into at least as many dimensions keeps every cosine; unit length makes d² = 2 − 2·cos."""
    trunk = encoders.build_encoder("vggm", 0.125, 257)
    encoder = encoders.with_embedding(trunk, dimension=trunk.output_shape[1] + 8)
    waveforms = np.random.default_rng(0).normal(0, 0.1, (5, 16_000)).astype(np.float32)
    before, after = trunk(waveforms).numpy(), encoder(waveforms).numpy()
    before /= np.linalg.norm(before, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-5)


def test_both_heads_share_the_trunk():
    trunk = encoders.build_encoder("vggm", 0.125, 257)
    classifier = keras.Model(trunk.input, encoders.classifier(7)(trunk.output))
    assert classifier.output_shape == (None, 7)
    assert classifier.get_layer("fc7") is trunk.get_layer("fc7")
    assert encoders.with_embedding(trunk, 16, unit_length=False).layers[-1].name == "embedding"


def test_squeeze_and_excitation_by_hand():
    """16 channels through max(4, 16/8) = 4: 16·4 + 4 + 4·16 + 16. With zero weights gates of ½ halve each channel."""
    inputs = keras.Input((8, None, 16))
    model = keras.Model(inputs, encoders.layers.squeeze_excite(inputs, "se"))
    assert model.count_params() == 16 * 4 + 4 + 4 * 16 + 16
    x = np.random.default_rng(0).normal(size=(2, 8, 5, 16)).astype(np.float32)
    (w, b), (v, c) = model.get_layer("se_reduce").get_weights(), model.get_layer("se_gate").get_weights()
    gates = 1 / (1 + np.exp(-(np.maximum(x.mean(axis=(1, 2)) @ w + b, 0) @ v + c)))
    np.testing.assert_allclose(model(x), x * gates[:, None, None], atol=1e-5)
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    np.testing.assert_allclose(model(x), x / 2, atol=1e-6)


def test_a_thin_resnet_with_mel_bands():
    """80 → 40 → 20 → 20 → 10 → 5 → 3 rows; a quarter of 64, 128, 256, 512 filters; statistics double the output."""
    model = encoders.build_encoder(
        "resnet34", 0.25, mel_bands=80, compression="log", pooling="statistics", squeeze_excitation=True
    )
    stages = ["conv1", "pool1", "conv2_3_relu", "conv3_4_relu", "conv4_6_relu", "conv5_3_relu"]
    outputs = [model.get_layer(stage).output.shape for stage in stages]
    assert [shape[1] for shape in outputs] == [40, 20, 20, 10, 5, 3]
    assert [shape[3] for shape in outputs] == [16, 16, 16, 32, 64, 128]
    assert model.get_layer("conv2_1_se") and model.output_shape == (None, 256)


@pytest.mark.parametrize(
    "stem_stride, rows, steps",
    [(4, [40, 20, 10, 5, 3], 5), (2, [40, 40, 20, 10, 5], 10), (1, [80, 80, 40, 20, 10], 19)],
)
def test_stem_stride(stem_stride, rows, steps):
    """80 bands and 150 frames, halved by conv1 and by the max pool, by one of them, or by none, then three times."""
    model = encoders.build_encoder("resnet34", 0.125, mel_bands=80, stem_stride=stem_stride)
    outputs = [model.get_layer(stage).output for stage in (
        "conv1", "conv2_3_relu", "conv3_4_relu", "conv4_6_relu", "conv5_3_relu"
    )]  # fmt: skip
    assert [output.shape[1] for output in outputs] == rows
    assert keras.Model(model.input, outputs[-1])(np.zeros((1, 24_240), np.float32)).shape == (1, rows[-1], steps, 64)
    assert model.get_layer("fc1").kernel.shape[:2] == (rows[-1], 1)


@pytest.mark.parametrize("pooling", encoders.pooling.POOLINGS)
@pytest.mark.parametrize("name", ["vggm", "resnet34"])
def test_every_pooling_takes_any_length_and_comes_back_from_a_file(name, pooling, tmp_path):
    encoder = encoders.build_encoder(name, 0.03, mel_bands=97, normalisation="running", pooling=pooling)
    encoder.save(tmp_path / "encoder.keras")
    copy = keras.saving.load_model(tmp_path / "encoder.keras", safe_mode=True)
    for samples in (12_000, 16_000):
        x = np.random.default_rng(0).normal(0, 0.1, (2, samples)).astype(np.float32)
        np.testing.assert_array_equal(copy(x), encoder(x))


def test_40_mel_bands_are_enough_for_a_resnet():
    """40 → 20 → 10 → 10 → 5 → 3 → 2 rows, so fc1 is 2×1."""
    model = encoders.build_encoder("resnet34", 0.125, mel_bands=40)
    stages = ["conv1", "pool1", "conv2_3_relu", "conv3_4_relu", "conv4_6_relu", "conv5_3_relu"]
    assert [model.get_layer(stage).output.shape[1] for stage in stages] == [20, 10, 10, 5, 3, 2]
    assert model.get_layer("fc1").kernel.shape[:2] == (2, 1)


def test_vggm_says_how_many_rows_it_needs(monkeypatch):
    """97 rows leave one at pool5; of 96, conv1 leaves 46, pool1 22, conv2 10 and pool2 4, too few for pool5."""
    assert encoders.build_encoder("vggm", 0.03, mel_bands=97).get_layer("pool5").output.shape[1] == 1
    with pytest.raises(ValueError, match="nothing of 96 rows: expected at least 97"):
        encoders.build_encoder("vggm", 0.03, mel_bands=96)
    with pytest.raises(ValueError, match="VGG-M has none"):
        encoders.build_encoder("vggm", 0.03, squeeze_excitation=True)
    with pytest.raises(ValueError, match="VGG-M has that of the paper"):
        encoders.build_encoder("vggm", 0.03, stem_stride=2)
    with pytest.raises(ValueError, match=r"one of \(4, 2, 1\), received 3"):
        encoders.build_encoder("resnet34", 0.03, stem_stride=3)
    monkeypatch.setattr(vggm, "MINIMUM_ROWS", 0)
    with pytest.raises(ValueError, match="output size would be zero"):
        encoders.build_encoder("vggm", 0.03, mel_bands=96)


def test_projection_and_cosine_classifier():
    """A linear layer to any size; on it a classifier whose outputs are cosines."""
    encoder = encoders.with_projection(encoders.build_encoder("vggm", 0.03, 257), 24)
    assert encoder.output_shape == (None, 24) and encoder.layers[-1].name == "embedding"
    model = keras.Model(encoder.input, encoders.classifier(7, cosine=True)(encoder.output))
    cosines = model(np.random.default_rng(0).normal(0, 0.1, (2, 16_000)).astype(np.float32)).numpy()
    assert cosines.shape == (2, 7) and np.abs(cosines).max() <= 1


@pytest.mark.parametrize("trunk", ["vggm", "resnet34"])
def test_precision_of_the_convolutions_alone_and_back(trunk):
    """8 bits of mantissa in the convolutions change a vector by about 2⁻⁸; the copy of that in float32 is as it was."""
    keras.utils.set_random_seed(0)
    encoder = encoders.build_encoder(trunk, 0.05, 257, compression="log", pooling="statistics")
    mixed = encoders.with_precision(encoder, "mixed_bfloat16")
    kinds = {layer.name: layer.compute_dtype for layer in mixed.layers}
    assert kinds["conv1"] == kinds["conv1_norm"] == "bfloat16"
    assert kinds["spectrogram"] == kinds[mixed.layers[-1].name] == "float32"
    assert {layer.compute_dtype for layer in mixed.layers if isinstance(layer, StatisticsPooling)} == {"float32"}
    assert {weight.dtype for weight in mixed.weights} == {"float32"}
    waveforms = np.random.default_rng(0).standard_normal((2, 16_000)).astype(np.float32)
    expected, rounded = encoder(waveforms).numpy(), mixed(waveforms).numpy()
    assert rounded.dtype == np.float32
    assert 1e-5 < np.linalg.norm(rounded - expected) / np.linalg.norm(expected) < 0.05
    again = encoders.with_precision(mixed, "float32")
    np.testing.assert_array_equal(again(waveforms), expected)
    assert all(layer.compute_dtype == "float32" for layer in again.layers)
