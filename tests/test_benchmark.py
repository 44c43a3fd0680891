"""Of the benchmark, what is counted or read, and not measured."""

import pytest

from tools.benchmark.training import operations, recipe
from vggvox_tf import encoders


def test_operations_of_a_training_step_of_vggm():
    """Products and sums of 512 × 300, by the table of vggm.py, in millions:

    conv1 254·148·7·7·96 = 177; conv2 62·36·5·5·96·256 = 1,371; conv3 30·17·9·256·384 = 451; conv4 the same; conv5
    30·17·9·256·256 = 301; fc6 8·9·256·4096 = 75.5; fc7 4096·1024 = 4.2. Each is two operations, three times over (the
    output, the kernel's gradient, the input's), but conv1 twice.
    """
    macs = {
        "conv1": 176.83,
        "conv2": 1371.34,
        "conv3": 451.22,
        "conv4": 451.22,
        "conv5": 300.81,
        "fc6": 75.5,
        "fc7": 4.19,
    }
    expected = 2 * (3 * sum(macs.values()) - macs["conv1"])
    assert operations(encoders.build_encoder("vggm"), 3) / 1e6 == pytest.approx(expected, rel=1e-4)


def test_recipes_are_read_with_the_files_that_they_name():
    """resnet34_softmax.cfg has its net and 257 rows, and of vggm_softmax.cfg, which has others, batch and crop."""
    assert recipe("resnet34_softmax.cfg") == ({"trunk": "resnet34", "rows": 257}, 64, 3)
    arguments, *_ = recipe("best_small.cfg")
    assert (arguments["trunk"], arguments["mel_bands"], arguments["squeeze_excitation"]) == ("resnet34", 80, True)
    assert arguments["stem_stride"] == 2
    arguments, batch, seconds = recipe("vggm_small.cfg")
    assert (batch, seconds) == (64, 1.5) and arguments["mel_bands"] == 100 and arguments["normalisation"] == "running"
    assert encoders.build_encoder(**arguments).output_shape == (None, round(1024 * arguments["width"]))
