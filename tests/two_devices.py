"""Trains several runs in one process with two logical CPU devices, which the process of the tests cannot have.

python tests/two_devices.py '[["--loss=softmax", "--run=…", …], …]'
"""

import functools
import json
import sys

import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

from vggvox_tf import devices, train

if __name__ == "__main__":
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    flags.FLAGS(["two_devices", "--run=", "--loss=softmax", "--corpus="])
    # A second MirroredStrategy would give its collective operations the keys that the first has used.
    devices.strategy = functools.cache(devices.strategy)
    for run in json.loads(sys.argv[1]):
        with flagsaver.flagsaver():
            flags.FLAGS(["two_devices", *run])
            train.main(None)
