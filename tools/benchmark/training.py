"""A training step on a batch that is there already, against PyTorch's of the same network and a matrix product."""

import functools
import os
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from tools.benchmark.measuring import Options, of_process, peak_memory, print_table, ratio
from vggvox_tf import encoders, muon
from vggvox_tf.frontend import crop_samples
from vggvox_tf.training_model import TrainingModel

SPEAKERS = 5_994  # of VoxCeleb2
# Net -> batch, seconds of a crop, arguments of encoders.build_encoder.
NETS = {
    "vggm, 512 × 300": (32, 3, {"trunk": "vggm", "compression": "log"}),
    "resnet34, 512 × 300": (16, 3, {"trunk": "resnet34", "compression": "log"}),
    "resnet50, 512 × 300": (8, 3, {"trunk": "resnet50", "compression": "log"}),
    "vggm × 0.375, 257 × 200": (64, 2, {"trunk": "vggm", "rows": 257, "width": 0.375, "compression": "log"}),
    "vggm × 0.375, 100 mel × 200": (
        64,
        2,
        {"trunk": "vggm", "mel_bands": 100, "width": 0.375, "compression": "log", "pooling": "statistics"},
    ),
}
WITHOUT_TWIN = ("vggm × 0.375, 100 mel × 200",)
RECIPES = ("vggm_softmax.cfg", "resnet34_softmax.cfg", "resnet50_softmax.cfg", "best_small.cfg")
COMPARED_RECIPES = ("vggm_small.cfg", "best_small.cfg", "vggm_softmax.cfg", "resnet34_softmax.cfg")
BATCHES = (8, 16, 32, 64, 128, 256)
PEAK = 2048  # rows and columns of the matrices
SGD = functools.partial(keras.optimizers.SGD, momentum=0.9)


def one_operation_at_a_time():
    """As vggvox_tf.train has TensorFlow without a GPU; before anything else that TensorFlow does."""
    if not tf.config.list_physical_devices("GPU"):
        tf.config.threading.set_inter_op_parallelism_threads(1)


def recipe(name):
    """Of a file in configs/: arguments of encoders.build_encoder, batch, seconds of a crop."""
    lines = flags.FlagValues().read_flags_from_files([f"--flagfile=configs/{name}"])  # and those that it names
    values = dict(line.removeprefix("--").split("=", 1) for line in lines if "=" in line)
    kinds = {
        "width": float, "stem_stride": int, "rows": int, "mel_bands": int, "compression": str, "normalisation": str,
        "pooling": str,
    }  # fmt: skip
    arguments = {flag: kind(values[flag]) for flag, kind in kinds.items() if flag in values}
    if "--squeeze_excitation" in lines:
        arguments["squeeze_excitation"] = True
    return {"trunk": values["encoder"]} | arguments, int(values["batch_size"]), float(values["crop_seconds"])


def batch_of(size, seconds):
    random = np.random.default_rng(0)
    waveforms = random.normal(0, 0.1, (size, crop_samples(seconds))).astype(np.float32)
    return waveforms, random.integers(0, SPEAKERS, size).astype(np.int32)


def training_model(arguments, classes=SPEAKERS, policy="float32", optimizer=SGD):
    keras.utils.set_random_seed(0)
    encoder = encoders.with_precision(encoders.build_encoder(**arguments), policy)
    model = TrainingModel(encoder.input, encoders.classifier(classes)(encoder.output))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(1e-3), loss, jit_compile=False)
    return model, encoder


def tensorflow_step(model, waveforms, speakers):
    """A function that trains a step on the same batch and returns the loss."""
    batches = iter(tf.data.Dataset.from_tensors((waveforms, speakers)).repeat())
    model.make_train_function()

    def step():
        model.reset_metrics()
        return float(model.train_function(batches)["loss"])

    return step


def torch_step(encoder, waveforms, speakers):
    """The same with PyTorch on the same kind of device, channels last; None where it is not installed."""
    try:
        import torch  # an extra of the benchmark: requirements-benchmark.txt

        from tools.benchmark.torch_twin import Twin
    except ImportError as error:
        print(f"Without PyTorch: {error}")
        return None
    twin = Twin(encoder, SPEAKERS)
    x, y = torch.from_numpy(waveforms), torch.from_numpy(speakers.astype(np.int64))
    twin.eval()
    with torch.no_grad():
        theirs = twin.embed(x[:2]).numpy()
    ours = encoder(waveforms[:2], training=False).numpy()
    if np.abs(theirs - ours).max() > 1e-3 * np.abs(ours).max():
        raise AssertionError(f"PyTorch's embeddings differ by {np.abs(theirs - ours).max()}")
    device = "cuda" if tf.config.list_physical_devices("GPU") and torch.cuda.is_available() else "cpu"
    twin, x, y = twin.to(device, memory_format=torch.channels_last).train(), x.to(device), y.to(device)
    optimizer = torch.optim.SGD(twin.parameters(), 1e-3, momentum=0.9)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(twin(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def operations(encoder, seconds):
    """Floating-point operations of convolutions and dense layers in a training step, an utterance.

    Two for each product and sum; forward, towards the kernel, and, but for the first layer, towards the input.
    """
    front_end = encoder.get_layer("spectrogram")
    sizes = {front_end.name: front_end.compute_output_shape((1, crop_samples(seconds)))}
    total, first = 0, True
    for layer in encoder.layers[encoder.layers.index(front_end) + 1 :]:
        sources = layer.input if isinstance(layer.input, list) else [layer.input]
        tensors = [keras.KerasTensor(sizes[tensor._keras_history.operation.name]) for tensor in sources]
        shape = layer.compute_output_spec(tensors if len(tensors) > 1 else tensors[0]).shape
        sizes[layer.name] = shape
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            places = np.prod(shape[1:-1]) if len(shape) > 2 else 1
            total += 2 * places * np.prod(layer.kernel.shape) * (2 if first else 3)
            first = False
    return float(total)


def matrix_product():
    """A function that multiplies large matrices, and how many operations that takes."""
    matrix = tf.random.normal([PEAK, PEAK])
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))
    return (lambda: float(product())), 2 * PEAK**3


def median_rates(ways, rounds, warm=2):
    """Seconds (rounds,) of each of some functions, in turn."""
    times = {name: [] for name in ways}
    for number in range(rounds + warm):
        for name, run in ways.items():
            begin = time.perf_counter()
            run()
            if number >= warm:
                times[name].append(time.perf_counter() - begin)
    return times


def training(options: Options):
    """Utterances per second of a step, the share of the peak of a matrix product, and the ratio to PyTorch."""
    return of_process(_training, options)


def _training(options):
    one_operation_at_a_time()
    rows = []
    for net, (size, seconds, arguments) in NETS.items():
        waveforms, speakers = batch_of(size, seconds)
        model, encoder = training_model(arguments)
        product, product_operations = matrix_product()
        ways = {"ours": tensorflow_step(model, waveforms, speakers), "product": product}
        other = None if net in WITHOUT_TWIN else torch_step(encoder, waveforms, speakers)
        if other:
            ways["PyTorch"] = other
        front_end = tf.function(encoder.get_layer("spectrogram"))
        batch = tf.constant(waveforms)
        # The sum, so that a GPU's spectrograms stay there.
        ways["front end"] = lambda front_end=front_end, batch=batch: tf.reduce_sum(front_end(batch)).numpy()
        times = median_rates(ways, options.rounds)
        needed = size * operations(encoder, seconds) / product_operations
        rows.append(
            {
                "way": net,
                "batch": size,
                "utterances/s": round(size / statistics.median(times["ours"]), 1),
                "of the peak": ratio([needed * t for t in times["product"]], times["ours"]),
                "front end": f"{100 * ratio(times['front end'], times['ours']):.0f} %",
                "PyTorch's": round(size / statistics.median(times["PyTorch"]), 1) if other else "",
                "ratio": ratio(times["PyTorch"], times["ours"]) if other else "",
                "rounds": [times["ours"], times.get("PyTorch", [])],
            }
        )
        print_table(rows[-1:], header=len(rows) == 1)
        keras.utils.clear_session()
    return rows


def mixed_precision(options: Options):
    """Utterances per second of a step in float32, and with --mixed_precision."""
    ways = {"float32": {}, "bfloat16": {"policy": "mixed_bfloat16"}}
    return of_process(_two_ways, ways, options.rounds)


def optimizers(options: Options):
    """Utterances per second of a step with --optimizer=adam, and with muon, in float32."""
    ways = {"Adam": {"optimizer": keras.optimizers.Adam}, "Muon": {"optimizer": muon.Muon}}
    return of_process(_two_ways, ways, options.rounds)


def _two_ways(ways, rounds):
    one_operation_at_a_time()
    rows = []
    for name in COMPARED_RECIPES:
        arguments, size, seconds = recipe(name)
        batch = batch_of(size, seconds)
        steps = {way: tensorflow_step(training_model(arguments, **given)[0], *batch) for way, given in ways.items()}
        times = median_rates(steps, rounds)
        rates = {way: round(size / statistics.median(times[way]), 1) for way in ways}
        rounds_of = list(times.values())
        rows.append({"way": name, "batch": size, **rates, "ratio": ratio(*rounds_of), "rounds": rounds_of})
        print_table(rows[-1:], header=len(rows) == 1)
        keras.utils.clear_session()
    return rows


def _seconds_of_steps(size, threads, rounds):
    """Of the small recipe's step with so many threads, in a process of its own."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    one_operation_at_a_time()
    *_, (_, seconds, arguments) = NETS.values()
    waveforms, speakers = batch_of(size, seconds)
    step = tensorflow_step(training_model(arguments)[0], waveforms, speakers)
    return median_rates({"step": step}, rounds)["step"]


def growth(options: Options):
    """Utterances per second of a step of the small recipe by the size of the batch and the number of threads."""
    cores = len(os.sched_getaffinity(0))
    settings = [(size, cores) for size in BATCHES] + [(64, threads) for threads in range(1, cores)]
    rows = []
    for size, threads in settings:
        times = of_process(_seconds_of_steps, size, threads, options.rounds)
        rate = round(size / statistics.median(times), 1)
        rows.append({"batch": size, "threads": threads, "utterances/s": rate, "rounds": times})
        print_table(rows[-1:], header=len(rows) == 1)
    return rows


def _memory_of_steps(arguments, size, seconds):
    """Peak MiB of this process before the model is built, and after two steps."""
    one_operation_at_a_time()
    waveforms, speakers = batch_of(size, seconds)
    before = peak_memory()
    step = tensorflow_step(training_model(arguments)[0], waveforms, speakers)
    step()
    step()
    return before, peak_memory()


def memory(options: Options):
    """Peak memory of a training process on the CPU (Linux) with the recipes' batches; of TensorFlow alone."""
    rows = []
    for name in RECIPES:
        arguments, size, seconds = recipe(name)
        before, peak = of_process(_memory_of_steps, arguments, size, seconds)
        rows.append({"way": name, "batch": size, "peak MiB": round(peak), "TensorFlow MiB": round(before)})
        print_table(rows[-1:], header=len(rows) == 1)
    return rows
