"""Trains a speaker encoder: python -m vggvox_tf.train --flagfile=configs/vggm_softmax.cfg --corpus=… --run=…

Stage 1 (--loss=softmax, am or aam) trains the trunk as a classifier of the training speakers. Stage 2
(--loss=contrastive or one of its relatives, --init_from=RUN) puts an embedding layer in its place and trains both. One
of each, --loss=aam,angular_prototypical, trains both at once. A classifier with --init_from, on longer crops and with a
larger margin, is a third stage. Started again with the same flags, a run goes on after its last complete epoch.
"""

import contextlib
import dataclasses
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import flags, logging

from vggvox_tf import (
    audio,
    augment,
    callbacks,
    cli,
    decoding,
    devices,
    encoders,
    heads,
    losses,
    mining,
    muon,
    pipeline,
    sampling,
    schedules,
    training_flags,
)
from vggvox_tf.corpus import read_corpus
from vggvox_tf.frontend import crop_samples
from vggvox_tf.run import Run, RunError, Terminated, training_speakers
from vggvox_tf.speaker_encoder import SpeakerEncoder
from vggvox_tf.training_flags import (
    NOT_COMPARED,
    check_devices,
    check_flags,
    classification_loss,
    column_name,
    draws_pairs,
    flags_in_use,
    hparam_columns,
    metric_loss,
    numbers,
    rows_per_voice,
)
from vggvox_tf.training_model import TrainingModel
from vggvox_tf.trials import read_trials

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(training_flags)  # --help is of this module


def build_encoder(replicas=1):
    """The encoder that the flags describe, with an embedding layer where they ask for one."""
    if FLAGS.init_from:
        encoder = SpeakerEncoder.load(f"{FLAGS.init_from}/encoder.keras").model
        if encoders.is_fused(encoder):
            raise flags.Error(f"--init_from={FLAGS.init_from}: fused of several encoders; train those, and fuse anew.")
    else:
        try:
            encoder = encoders.build_encoder(
                FLAGS.encoder, FLAGS.width, int(FLAGS.rows), FLAGS.mel_bands, FLAGS.compression, FLAGS.normalisation,
                FLAGS.pooling, FLAGS.squeeze_excitation, int(FLAGS.stem_stride),
            )  # fmt: skip
        except ValueError as error:
            raise flags.Error(str(error)) from None
    names = {layer.name for layer in encoder.layers}
    has_embedding = "embedding" in names
    if not has_embedding and metric_loss():
        encoder = encoders.with_embedding(encoder, FLAGS.embedding_dim or 512, FLAGS.unit_length)
    elif not has_embedding and FLAGS.embedding_dim:
        encoder = encoders.with_projection(encoder, FLAGS.embedding_dim)
    elif has_embedding and FLAGS.embedding_dim not in (None, encoder.output_shape[-1]):
        raise flags.Error(
            f"--embedding_dim={FLAGS.embedding_dim}, but the embeddings of {FLAGS.init_from} have "
            f"{encoder.output_shape[-1]} dimensions: leave it out."
        )
    elif has_embedding and metric_loss() and FLAGS.unit_length and "unit_length" not in names:
        encoder = encoders.with_unit_length(encoder)  # a classifier's projection has none
    if FLAGS.mixed_precision:
        encoder = encoders.with_precision(encoder, "mixed_bfloat16")
    for layer in encoder.layers:
        for norm in (layer, getattr(layer, "statistics", None)):
            if isinstance(norm, keras.layers.BatchNormalization):
                norm.synchronized = replicas > 1
    if FLAGS.init_from:
        for layer in encoder.layers:
            is_norm = isinstance(layer, keras.layers.BatchNormalization)
            # A batch norm that is not trainable also uses its running statistics instead of the batch's.
            if (FLAGS.freeze_trunk and layer.name != "embedding") or (FLAGS.freeze_batch_norm and is_norm):
                layer.trainable = False
            if FLAGS.freeze_batch_norm and getattr(layer, "normalisation", "") == "running":
                layer.statistics.trainable = False
    return encoder


def build_heads(encoder, classes, replicas=1):
    """What the losses are taken of, in the order classification, metric: Keras tensors of the encoder's output."""
    embeddings, outputs = encoder.output, []
    if replicas > 1:
        embeddings = heads.GlobalBatch(name="global_batch")(embeddings)
    if classification_loss():
        outputs.append(encoders.classifier(classes, cosine=classification_loss() != "softmax")(embeddings))
    metric = metric_loss()
    if metric in ("prototypical", "angular_prototypical"):
        angular = metric == "angular_prototypical"
        outputs.append(heads.Prototypes(FLAGS.utterances_per_speaker, angular, name="prototypes")(embeddings))
    elif metric:
        outputs.append(embeddings)
    return outputs


def build_losses():
    """The losses of --loss in the order classification, metric."""
    margin = {} if FLAGS.margin is None else {"margin": FLAGS.margin}
    share = {} if FLAGS.hardest_share is None else {"hardest_share": FLAGS.hardest_share}
    build = {
        "softmax": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "am": lambda: losses.AdditiveMarginLoss(FLAGS.class_margin, FLAGS.class_scale),
        "aam": lambda: losses.AdditiveAngularMarginLoss(FLAGS.class_margin, FLAGS.class_scale),
        "contrastive": lambda: (
            losses.ContrastiveLoss(**margin)
            if draws_pairs()
            else losses.MinedContrastiveLoss(**margin, mining=FLAGS.mining, **share)
        ),
        "triplet": lambda: losses.TripletLoss(**margin, mining=FLAGS.mining),
        "trihard": lambda: losses.TriHardLoss(**margin, soft=FLAGS.soft_margin),
        "quadruplet": lambda: losses.QuadrupletLoss(**margin, second_margin=FLAGS.second_margin),
        "msml": lambda: losses.MSMLLoss(**margin),
        "prototypical": losses.PrototypeCrossEntropy,
        "angular_prototypical": losses.PrototypeCrossEntropy,
    }
    return [build[name]() for name in (classification_loss(), metric_loss()) if name]


def build_metrics():
    """What is measured on the training batches besides the losses, for each of them."""
    measured = []
    if classification_loss():
        measured.append(["accuracy"])
    if metric_loss() == "contrastive":
        pairs = losses.drawn_pairs if draws_pairs() else losses.all_pairs
        measure = keras.metrics.MeanMetricWrapper
        measured.append(
            [
                measure(losses.active_pairs, "active_pairs", pairs=pairs, margin=FLAGS.margin or 1.0),
                measure(losses.positive_distance, "positive_distance", pairs=pairs),
                measure(losses.negative_distance, "negative_distance", pairs=pairs),
            ]
        )
    elif metric_loss():
        measured.append([])
    return measured


def build_sampler(corpus, mined=None):
    if not metric_loss():
        return sampling.UtteranceSampler(corpus, FLAGS.batch_size, FLAGS.seed)
    if draws_pairs():
        return sampling.PairSampler(
            corpus, FLAGS.batch_size // 2, FLAGS.positive_share, FLAGS.seed, FLAGS.same_gender_share, mined
        )
    speakers = FLAGS.batch_size // FLAGS.utterances_per_speaker
    return sampling.SpeakerSampler(corpus, speakers, FLAGS.utterances_per_speaker, FLAGS.seed)


def build_augmentation():
    """The augmentation of waveforms and of spectrograms that the flags describe; None where they ask for none."""
    samples = crop_samples(FLAGS.crop_seconds)
    low, high = numbers("snr", -100)
    steps = []
    if FLAGS.speeds:
        steps.append(augment.SpeedPerturbation(numbers("speeds", 0), samples, rows_per_voice()))
    if FLAGS.reverberation:
        responses = augment.load_responses(FLAGS.reverberation, seed=FLAGS.seed)
        steps.append(augment.Reverberation(responses, FLAGS.reverberation_share))
    if FLAGS.noise:
        noises = augment.load_noises(FLAGS.noise, FLAGS.crop_seconds, seed=FLAGS.seed)
        steps.append(augment.AdditiveNoise(noises, FLAGS.noise_share, (low, high)))
    if FLAGS.babble_share:
        steps.append(augment.Babble(FLAGS.babble_share, (low, high)))
    if FLAGS.gain:
        steps.append(augment.Gain(FLAGS.gain))
    if FLAGS.filter:
        steps.append(augment.Filter(FLAGS.filter))
    mask = None
    if FLAGS.frequency_mask or FLAGS.time_mask:
        mask = augment.SpecAugment(FLAGS.frequency_mask, FLAGS.time_mask)
    return augment.WaveformAugmentation(steps) if steps else None, mask


def build_optimizer(steps):
    schedule = schedules.learning_rate(
        FLAGS.schedule, FLAGS.learning_rate, FLAGS.final_learning_rate, max(1, steps // (FLAGS.accumulate or 1)),
        FLAGS.warmup_steps, FLAGS.cycles,
    )  # fmt: skip
    common = {"weight_decay": FLAGS.weight_decay or None, "gradient_accumulation_steps": FLAGS.accumulate}
    if FLAGS.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(schedule, momentum=FLAGS.momentum, **common)
    else:
        optimizer = {"adam": keras.optimizers.Adam, "muon": muon.Muon}[FLAGS.optimizer](schedule, **common)
    if FLAGS.weight_decay:  # kernels only: biases, and scales and means of single rows, have no scale to lose
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "scale", "offset", "mean"])
    return optimizer


def few(recordings, count=3):
    """Paths of a few recordings, spread evenly over a corpus or a trial list."""
    spread = np.linspace(0, len(recordings.paths) - 1, min(count, len(recordings.paths))).astype(int)
    return [recordings.root / recordings.paths[index] for index in spread]


@dataclasses.dataclass
class Training:
    """What a run trains with."""

    model: TrainingModel
    encoder: keras.Model  # inside the model
    class_names: list[str] | None  # of the classifier
    sampler: object
    mined: mining.MinedPairs | None
    dataset: Callable  # (recordings, first step, last step) -> this worker's part of the batches


def build_training(strategy, corpus, steps_per_epoch):
    """Builds all that the flags describe, the same every time."""
    keras.utils.set_random_seed(FLAGS.seed)
    replicas = strategy.num_replicas_in_sync
    mined = (
        mining.MinedPairs(steps_per_epoch * FLAGS.mine_every) if FLAGS.mining == "offline" and draws_pairs() else None
    )
    sampler = build_sampler(corpus, mined)
    speeds, voices, class_names = numbers("speeds", 0), None, corpus.speaker_names
    if speeds and FLAGS.speeds_are_speakers:  # each replica plays its part of a batch at all speeds
        voices = np.tile(augment.speed_of_rows(FLAGS.batch_size // replicas, speeds, rows_per_voice()), replicas)
        class_names = [f"{name}@{speed:g}" for name in class_names for speed in speeds]
    with strategy.scope():
        encoder = build_encoder(replicas)
        waveforms, spectrograms = build_augmentation()
        model = TrainingModel(
            encoder.input, build_heads(encoder, len(class_names), replicas), "training", waveforms, spectrograms,
            FLAGS.seed, FLAGS.weight_average,
        )  # fmt: skip
        if classification_loss() and FLAGS.init_from:
            take_over_classifier(model.get_layer("classifier"), class_names)
        weights = [1.0, FLAGS.metric_weight] if len(model.outputs) == 2 else None
        # XLA is slower than oneDNN on a CPU, and Keras would switch it on by itself.
        model.compile(
            build_optimizer(steps_per_epoch * FLAGS.epochs), build_losses(), loss_weights=weights,
            metrics=build_metrics(), jit_compile=bool(FLAGS.jit_compile),
        )  # fmt: skip
        if replicas > 1:
            model.build_variables(FLAGS.batch_size // replicas, crop_length())
    part = devices.workers(strategy)
    return Training(
        model, encoder, class_names if classification_loss() else None, sampler, mined,
        lambda recordings, first, last: pipeline.dataset(
            recordings, sampler, FLAGS.seed, first, last, voices, part, replicas
        ),
    )  # fmt: skip


def crop_length():
    """Samples of the crops that the flags ask for, long enough for the fastest of --speeds."""
    samples = crop_samples(FLAGS.crop_seconds)
    speeds = numbers("speeds", 0)
    return augment.input_samples(samples, speeds) if speeds else samples


def recordings_of(corpus):
    """Reads the crops that the flags ask for."""
    number = FLAGS.decode_processes
    if number is None and tf.config.list_physical_devices("GPU"):
        number = min(os.cpu_count(), 16)  # 14,000 crops of 3 s a second from m4a
    processes = decoding.Processes(number) if number and not FLAGS.cache else None
    return pipeline.Recordings(corpus, crop_length(), FLAGS.max_bad_share, processes, FLAGS.cache)


# What a container may use, in versions 2 and 1 of Linux's control groups.
MEMORY_LIMITS = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]


def memory():
    """Bytes of the machine's memory, or of the share of it that a container is limited to."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no control groups; "max", which is no limit
            limits.append(int(path.read_text()))
    return min(limits)


def check_cache(corpus):
    """Raises flags.Error where the decoded recordings, by the length of some of them, do not fit into the memory."""
    lengths = []
    for path in few(corpus, 200):
        with contextlib.suppress(audio.AudioError):  # counted, named and reported when it is to be trained on
            lengths.append(audio.num_samples(path))
    needed = 2 * np.mean(lengths or [0]) * len(corpus)
    if needed > 0.7 * memory():
        raise flags.Error(
            f"--cache: the {len(corpus)} recordings of --corpus take about {needed / 1e9:.1f} GB decoded, there are "
            f"{memory() / 1e9:.1f} GB of memory: leave it out."
        )
    logging.info("The decoded recordings will take %.2f GB of memory (--cache).", needed / 1e9)


@contextlib.contextmanager
def explaining(recordings, workers=1):
    """Puts what ended training in the place of TensorFlow's error: one of the recordings, or another worker's end."""
    try:
        yield
    except tf.errors.OpError as error:
        if recordings.failure:
            raise recordings.failure from None
        if workers > 1 and isinstance(error, tf.errors.UnavailableError | tf.errors.AbortedError):
            logging.warning("%s", error.message)
            raise Terminated(
                "another worker has ended, or cannot be reached: started again on all workers, the same command goes "
                "on from the last checkpoint"
            ) from None
        raise


def take_over_classifier(layer, class_names):
    """Gives a classifier the weights that --init_from's has for the same speakers; others keep their own."""
    path = Path(FLAGS.init_from) / "classifier.npz"
    if not path.exists():
        return
    with np.load(path) as kept:
        rows = {name: row for row, name in enumerate(kept["names"])}
        common = [(index, rows[name]) for index, name in enumerate(class_names) if name in rows]
        sizes = [kept[f"weight_{number}"].shape[:-1] for number in range(len(kept.files) - 1)]
        if not common or sizes != [weight.shape[:-1] for weight in layer.weights]:
            return  # of embeddings of another size, or with another kind of loss
        ours, theirs = np.array(common).T
        for number, weight in enumerate(layer.weights):
            value = weight.numpy()
            value[..., ours] = kept[f"weight_{number}"][..., theirs]
            weight.assign(value)
    logging.info("Took over the classifier's weights of %d of %d classes.", len(common), len(class_names))


def steps_in_budget(strategy, corpus, trials, recordings, started):
    """Steps of each epoch with which the run ends --time_budget minutes after `started`, by timing a few of them."""
    training = build_training(strategy, corpus, 1)
    if training.mined:  # any pair will do; the first and the last utterance are of different speakers
        training.mined.put(0, np.array([[0, len(corpus) - 1]]))
        training.mined.steps = callbacks.StepTimer.STEPS
    timers = [callbacks.StepTimer() for _ in range(2 if FLAGS.cache else 1)]  # the second finds its recordings cached
    for timer in timers:
        with explaining(recordings):
            dataset = devices.distribute(strategy, training.dataset(recordings, 0, timer.STEPS))
            training.model.fit(dataset, steps_per_epoch=timer.STEPS, shuffle=False, verbose=0, callbacks=[timer])
    per_step = timers[-1].seconds_per_step
    decoding = max(0.0, timers[0].seconds_per_step - per_step) * len(corpus) / FLAGS.batch_size  # of each once
    encoder, embedded, per_recording = SpeakerEncoder(training.encoder), 0, 0.0
    if trials or training.mined:
        paths = few(trials or corpus, 200)
        encoder.embed_files(paths[:8], errors={})  # traces
        begun = time.monotonic()
        encoder.embed_files(paths, errors={})
        per_recording = (time.monotonic() - begun) / len(paths)
        embedded = len(trials.paths) if trials else 0
        if training.mined:
            embedded += min(len(corpus), mining.RECORDINGS) / FLAGS.mine_every
    # Scores, curves and the projector take 1 to 2 s beside the embedding; reading and checking lengths a share of it.
    per_epoch = 1.3 * per_recording * embedded + 2
    left = 60 * FLAGS.time_budget - (time.monotonic() - started) - timers[0].first_step - decoding - per_epoch
    try:  # the first steps of a run have been up to a tenth faster than its mean
        steps = schedules.steps_in_time(0.9 * left, FLAGS.epochs, per_step, per_epoch)
    except ValueError as error:
        raise flags.Error(
            f"--time_budget={FLAGS.time_budget:g} minutes: {error}. Give more, or fewer --epochs."
        ) from None
    logging.info(
        "A step takes %.3f s and the end of an epoch %.1f s: %d steps in each of %d epochs fit into %g minutes.",
        per_step, per_epoch, steps, FLAGS.epochs, FLAGS.time_budget,
    )  # fmt: skip
    keras.utils.clear_session()
    return steps


def plan_steps(strategy, corpus, trials, recordings, started):
    """Steps of an epoch: as the flags say, as a run in its folder has planned them, or as fit into the time budget."""
    if FLAGS.time_budget:  # what the run's flags keep is the steps
        kept = Path(FLAGS.run) / "flags.cfg"
        planned = re.search(r"^--steps_per_epoch=(\d+)$", kept.read_text(), re.MULTILINE) if kept.exists() else None
        FLAGS.steps_per_epoch = (
            int(planned[1]) if planned else steps_in_budget(strategy, corpus, trials, recordings, started)
        )
    return FLAGS.steps_per_epoch or max(1, len(corpus) // FLAGS.batch_size)


def writing_callbacks(training, run, values, corpus, trials):
    """What evaluates and leaves something behind, in the order it has to have."""
    encoder, best_eer = training.encoder, run.lowest_eer()
    shown = {"train": few(corpus)}
    evaluation, of_trials = None, []
    if trials:
        shown["validation"] = few(trials)
        evaluation = callbacks.TrialEvaluation(
            encoder, trials, FLAGS.margin or 1.0, trials.known_speakers_note(corpus.speaker_names)
        )
    events = callbacks.EventFiles(run.folder, evaluation)
    if evaluation:
        of_trials = [
            evaluation,
            callbacks.ProjectorExport(evaluation, events, FLAGS.seed, FLAGS.projector_every, sprite=FLAGS.sprites),
            callbacks.TrialPictures(evaluation, events, FLAGS.listen),
        ]
    compared = {column_name(name): value for name, value in values.items() if name not in NOT_COMPARED}
    compared["encoder"] = encoder.name
    return [
        *of_trials,
        callbacks.SpectrogramPictures(events, encoder, shown, crop_samples(FLAGS.crop_seconds)),
        callbacks.HParams(events, hparam_columns(), compared, best_eer),
        events,
        callbacks.History(run),
        callbacks.Checkpoints(run, training.model, encoder, training.class_names, best_eer),
    ]


def fit(training, run, values, corpus, trials, recordings, steps_per_epoch, epochs):
    """Trains from the step that the model is at to the end of epoch number `epochs`."""
    model = training.model
    strategy = model.distribute_strategy
    _, workers = devices.workers(strategy)
    step = model.steps_done
    done = step // steps_per_epoch
    if done >= epochs:
        return
    throughput = callbacks.Throughput(FLAGS.batch_size)
    dataset = training.dataset(recordings, step, epochs * steps_per_epoch)
    optional = []
    if FLAGS.margin_warmup_epochs and classification_loss() in ("am", "aam"):
        warmup = FLAGS.margin_warmup_epochs * steps_per_epoch
        optional.append(callbacks.MarginWarmUp(model.loss[0], FLAGS.class_margin, warmup, step))
    if FLAGS.weight_average:
        optional.append(callbacks.AveragedWeights(model.weight_average))
    if FLAGS.profile_steps and run.writes:
        optional.append(callbacks.Profile(run.folder, step, *map(int, numbers("profile_steps", -1))))
    writing, last = writing_callbacks(training, run, values, corpus, trials) if run.writes else [], []
    if training.mined:
        share = FLAGS.hardest_share or 0.01
        rounds = FLAGS.mine_every, FLAGS.epochs, done
        last.append(mining.Mining(run, training.encoder, corpus, training.mined, share, FLAGS.seed, *rounds))
    if FLAGS.early_stopping and run.writes:
        last.append(callbacks.EarlyStopping(run, FLAGS.early_stopping))
    if workers > 1:
        if not run.writes:  # the chief saves, ends, and so ends the others
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        last.append(callbacks.InStep())
    with explaining(recordings, workers):
        model.fit(
            devices.distribute(strategy, throughput.timed(dataset)),
            epochs=epochs,
            initial_epoch=done,
            steps_per_epoch=steps_per_epoch - step % steps_per_epoch,
            shuffle=False,  # the sampler has put them in order
            # The bar redraws its line, which only a terminal shows as one.
            verbose=(1 if sys.stdout.isatty() else 2) if run.writes else 0,
            callbacks=[
                throughput,
                callbacks.FiniteLoss(run, corpus, training.sampler, step),
                callbacks.BadRecordingReport(recordings),
                *optional,
                *writing,
                *last,
            ],
        )


def stopped_early(strategy, run):
    """Whether the run has ended by --early_stopping; of several workers the chief knows."""
    return bool(devices.from_chief(strategy, run.has_stopped_early(FLAGS.early_stopping)))


def main(_):
    started = time.monotonic()
    check_flags()
    strategy = devices.strategy(FLAGS.strategy)
    worker, workers = devices.workers(strategy)
    check_devices(strategy)
    corpus = read_corpus(FLAGS.corpus, FLAGS.corpus_root)
    trials = None
    if FLAGS.trials:
        trials = read_trials(FLAGS.trials, FLAGS.trials_root)
        trials.check_files()
    if FLAGS.cache:
        check_cache(corpus)
    recordings = recordings_of(corpus)
    steps_per_epoch = plan_steps(strategy, corpus, trials, recordings, started)
    training = build_training(strategy, corpus, steps_per_epoch)
    model, encoder = training.model, training.encoder
    # Only now, so that a mistake in the flags above leaves no folder behind that is bound to them.
    values = {name: FLAGS[name].value for name in flags_in_use() if FLAGS[name].value not in (None, [])}
    values = {name: ",".join(value) if isinstance(value, list) else value for name, value in values.items()}
    run = Run(FLAGS.run, values, writes=worker == 0)
    run.keep_log()
    if run.checkpoint:
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        model.load_weights(run.checkpoint)
    step = model.steps_done
    if workers > 1 and devices.from_chief(strategy, step) != step:
        raise RunError(
            f"worker {worker} found step {step} in {FLAGS.run}, the chief another: --run must be on a file system that "
            "all workers see."
        )
    done, within = divmod(step, steps_per_epoch)
    run.rewind_history(done)
    device = (tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU"))[-1].name
    if strategy.num_replicas_in_sync > 1:
        device = f"{strategy.num_replicas_in_sync} devices like {device}" + f" of {workers} workers" * (workers > 1)
    known = training_speakers(f"{FLAGS.init_from}/encoder.keras") if FLAGS.init_from else None
    run.record_start(sorted({*corpus.speaker_names, *(known or ())}), device)
    logging.info(
        "%d training speakers, %d utterances; %s with %s parameters on %s; %d epochs of %d steps of %d utterances",
        len(corpus.speaker_names), len(corpus), encoder.name, f"{encoder.count_params():,}", device, FLAGS.epochs,
        steps_per_epoch, FLAGS.batch_size,
    )  # fmt: skip
    if "CPU" in device and devices.cpu_has_bfloat16() and not FLAGS.mixed_precision:
        logging.info("This CPU has bfloat16: with --mixed_precision it trains faster (docs/performance.md).")
    if done >= FLAGS.epochs or stopped_early(strategy, run):
        logging.info("%s is complete: nothing to do.", run.folder)
        return
    if done or within:
        logging.info("Continuing %s after epoch %d%s.", run.folder, done, f" and {within} steps" if within else "")
    if within:  # Keras has epochs of one length in a fit
        fit(training, run, values, corpus, trials, recordings, steps_per_epoch, done + 1)
    if not stopped_early(strategy, run):
        fit(training, run, values, corpus, trials, recordings, steps_per_epoch, FLAGS.epochs)
    if FLAGS.time_budget:
        logging.info("Took %.1f of %g minutes.", (time.monotonic() - started) / 60, FLAGS.time_budget)


if __name__ == "__main__":
    if not tf.config.list_physical_devices("GPU"):
        # oneDNN sums a convolution's kernel gradient in another order when other operations take threads away from it,
        # and a run would not give the same weights again. One operation at a time still uses every core. It has to be
        # said before TensorFlow does anything else.
        tf.config.threading.set_inter_op_parallelism_threads(1)
    cli.start(main)
