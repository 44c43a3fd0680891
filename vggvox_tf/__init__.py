"""vggvox_tf: speaker verification on TensorFlow/Keras."""

import os

# TensorFlow reads these when it is first imported. It leaves oneDNN off on CPUs without AVX-512, where
# oneDNN makes a training step 1.6 to 1.9 times as fast; a value the user has set is kept.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Its start prints a screenful about plug-ins registered twice; what goes wrong is raised in Python all the same.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
