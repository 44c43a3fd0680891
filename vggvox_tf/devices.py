"""Training on several devices: which tf.distribute.Strategy, and what its workers have to agree on.

A step's global batch is cut into equal parts, one for each replica (a device of a worker): rows 0 … B/R − 1 for replica
0, and so on. Embeddings are gathered before the heads, batch norm's statistics are taken over the global batch, and the
gradients of the parts are summed, so that a step does what one device does with the whole batch. Augmentation draws
other random numbers, its own for each part.

Workers are processes, one a machine, that all run the same command with a TF_CONFIG of their own. The first, the chief,
evaluates and writes; the others read its checkpoint, so that --run has to lie where all of them see it.
"""

import contextlib
import json
import os
from pathlib import Path

import tensorflow as tf
from absl import flags

STRATEGIES = ("auto", "single", "mirrored", "multiworker")

CPUINFO = Path("/proc/cpuinfo")


def strategy(name):
    """The strategy of that name; "auto" is multiworker with a TF_CONFIG, mirrored with several GPUs, else single.

    Comes before anything else that TensorFlow does. Raises flags.Error where multiworker has no usable TF_CONFIG.
    """
    if name == "auto":
        several = "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "single"
        name = "multiworker" if os.environ.get("TF_CONFIG") else several
    if name != "single":
        tf.get_logger().setLevel("WARNING")  # otherwise every kind of reduction says that it is one
    if name == "multiworker":
        _check_tf_config()
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def _check_tf_config():
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        if task["type"] == "worker" and set(config["cluster"]) == {"worker"} and 0 <= task["index"] < len(workers):
            return
    except (ValueError, KeyError, TypeError):
        pass
    raise flags.Error(
        "--strategy=multiworker: expected the environment variable TF_CONFIG on each worker, such as "
        '\'{"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": {"type": "worker", "index": 0}}\', with an '
        f"index of its own; found {text or 'none'}"
    )


def cpu_has_bfloat16():
    """Whether the CPU has instructions for products of bfloat16 (AVX512_BF16 or AMX), as far as Linux says."""
    with contextlib.suppress(OSError):
        return not {"avx512_bf16", "amx_bf16"}.isdisjoint(CPUINFO.read_text().split())
    return False


def workers(strategy):
    """Which worker this is, from 0, the chief, and of how many."""
    resolver = strategy.cluster_resolver
    if not resolver or not resolver.cluster_spec():
        return 0, 1
    return resolver.task_id, len(resolver.cluster_spec().as_dict()["worker"])


def from_chief(strategy, value):
    """The number that the chief has, as a float, on every worker; they wait for each other."""
    worker, several = workers(strategy)
    return several * float(_mean(strategy, tf.constant(0.0 if worker else value, tf.float64)))


@tf.function
def _mean(strategy, value):
    return strategy.reduce("MEAN", strategy.run(tf.identity, [value]), axis=None)


def distribute(strategy, dataset):
    """What a worker's batches, (N/R, …) one after the other, are to be for model.fit: one for each of its replicas."""
    if strategy.num_replicas_in_sync == 1:
        return dataset
    # Without buffers on the devices, so that what a step waits for a batch is noticed (callbacks.Throughput).
    options = tf.distribute.InputOptions(experimental_fetch_to_device=False)
    return strategy.distribute_datasets_from_function(lambda _: dataset, options)


def global_rows(rows):
    """In a replica: its rows (n, …) and those of all other replicas, in their order: (n·R, …)."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return rows
    # A batch has no device yet, and several workers gather onto the one that the rows are on.
    gathered = context.all_gather(tf.identity(rows), axis=0)
    number = rows.shape[0] and rows.shape[0] * context.num_replicas_in_sync
    return tf.ensure_shape(gathered, [number, *rows.shape[1:]])
