"""Trains a speaker encoder: python -m vggvox_tf.train --flagfile=configs/vggm_softmax.cfg --corpus=… --run=…

Stage 1 (--stage=softmax) trains the trunk as a classifier of the training speakers. Stage 2 (--stage=contrastive
--init_from=RUN) puts an embedding layer in the classifier's place and trains both with the contrastive loss. Started
again with the same flags, a run goes on after its last complete epoch.
"""

import sys

import keras
import numpy as np
import tensorflow as tf
from absl import flags, logging
from tensorboard.plugins.hparams import api as hparams

from vggvox_tf import callbacks, cli, encoders, losses, pipeline, sampling
from vggvox_tf.corpus import read_corpus
from vggvox_tf.frontend import FFT_LENGTHS, crop_samples
from vggvox_tf.run import Run, training_speakers
from vggvox_tf.speaker_encoder import SpeakerEncoder
from vggvox_tf.training_model import TrainingModel
from vggvox_tf.trials import read_trials

FLAGS = flags.FLAGS

flags.DEFINE_string("run", None, "Folder for everything of this run; an unfinished run in it is continued.")
flags.DEFINE_enum("stage", None, ["softmax", "contrastive"], "Training stage: 1 is softmax, 2 is contrastive.")
flags.DEFINE_integer("seed", 0, "Seed of the initial weights, the order of the data and the crops.", lower_bound=0)

flags.DEFINE_string("corpus", None, "Training recordings: a manifest (.tsv), or a folder with one per speaker.")
flags.DEFINE_string("corpus_root", None, "Folder the manifest's paths start from; default: the manifest's own.")
flags.DEFINE_string("trials", None, "Trial list evaluated after each epoch, as 'LABEL ENROL TEST' lines; optional.")
flags.DEFINE_string("trials_root", None, "Folder the trial list's paths start from; default: the list's own.")
flags.DEFINE_integer("projector_every", 1, "Epochs from one tensor in the projector to the next. With --trials.", 1)
flags.DEFINE_boolean("sprites", False, "Draw the projector's points as pictures of their spectrograms. With --trials.")
flags.DEFINE_integer("listen", 0, "Hardest trials of each epoch to hear in TensorBoard. With --trials.", 0)
flags.DEFINE_float(
    "max_bad_share", 0.1, "Stop when more than this share of the recordings tried is unusable.", 0.0, 1.0
)

flags.DEFINE_enum("encoder", "vggm", sorted(encoders.TRUNKS), "Trunk of the encoder.")
flags.DEFINE_float("width", 1.0, "Multiplies the filters of every layer; below 1 for small machines.", 0.01, 4.0)
flags.DEFINE_enum("rows", "512", [str(n) for n in FFT_LENGTHS], "Frequency rows: 512 as in the paper, or 257.")
flags.DEFINE_boolean("log_magnitude", False, "Logarithm of the magnitude, instead of the paper's linear one.")
flags.DEFINE_float("crop_seconds", 3.0, "Length of the training crops in seconds (100 frames each).", 0.5)

flags.DEFINE_integer("batch_size", 64, "Utterances in a step; in stage 2 both sides of its pairs count.", 2)
flags.DEFINE_integer("epochs", 10, "Epochs to train; each ends with an evaluation and a checkpoint.", 1)
flags.DEFINE_integer("steps_per_epoch", 0, "Steps in an epoch; 0: as many as the corpus has batches.", 0)
flags.DEFINE_enum("optimizer", "sgd", ["sgd", "adam"], "SGD with momentum, or Adam.")
flags.DEFINE_float("momentum", 0.9, "Momentum of SGD.", 0.0, 1.0)
flags.DEFINE_float("learning_rate", 1e-2, "Learning rate at the first step.", 1e-12)
flags.DEFINE_float("final_learning_rate", 1e-5, "Learning rate at the last step; log-linear from the first.", 1e-12)
flags.DEFINE_float(
    "weight_decay",
    0.0,
    "Share of each kernel that is taken off per step, per unit of learning rate (decoupled). The papers' 5e-4, an L2 "
    "penalty under momentum 0.9, corresponds to 5e-4 / (1 − 0.9) = 5e-3 here.",
    0.0,
)

flags.DEFINE_string("init_from", None, "Run folder whose encoder stage 2 starts from.")
flags.DEFINE_integer("embedding_dim", 512, "Size of stage 2's embeddings.", 1)
flags.DEFINE_boolean("unit_length", True, "L2-normalise the embeddings, so that distances lie in [0, 2].")
flags.DEFINE_float("margin", 1.0, "Contrastive margin: how far apart different speakers should be.", 1e-6)
flags.DEFINE_enum(
    "pairs",
    "hard",
    ["hard", "random"],
    "hard: all positive and the hardest negative pairs of a P×K batch. random: pairs drawn at random.",
)
flags.DEFINE_integer("utterances_per_speaker", 2, "K of the P×K batch; P is batch_size / K. With --pairs=hard.", 2)
flags.DEFINE_float("hardest_share", 0.1, "Share of a batch's negative pairs used. With --pairs=hard.", 1e-6, 1.0)
flags.DEFINE_float("positive_share", 0.5, "Share of pairs of the same speaker. With --pairs=random.", 0.0, 1.0)
flags.DEFINE_float(
    "same_gender_share",
    None,
    "Share of the negative pairs that are of one gender; default: as it comes. With --pairs=random.",
    0.0,
    1.0,
)
flags.DEFINE_boolean("freeze_trunk", False, "Train stage 2's embedding layer only.")
flags.DEFINE_boolean("freeze_batch_norm", False, "Keep stage 1's batch norm statistics and scales in stage 2.")

flags.mark_flags_as_required(["run", "stage", "corpus"])

ALWAYS = {
    "stage", "seed", "corpus", "corpus_root", "trials", "trials_root", "max_bad_share", "crop_seconds", "batch_size",
    "epochs", "steps_per_epoch", "optimizer", "learning_rate", "final_learning_rate", "weight_decay",
}  # fmt: skip
# A run with others of these is the same run.
NOT_KEPT = {"run", "projector_every", "sprites", "listen"}
# Not among the columns of TensorBoard's table of runs: where things lie, and what does not change the training.
NOT_COMPARED = NOT_KEPT | {"corpus", "corpus_root", "trials", "trials_root", "init_from", "max_bad_share"}


def flags_in_use():
    """Names of the flags that have a bearing on the run that the flags describe."""
    names = set(ALWAYS)
    if FLAGS.optimizer == "sgd":
        names |= {"momentum"}
    if FLAGS.stage == "contrastive":
        names |= {"init_from", "embedding_dim", "unit_length", "margin", "pairs", "freeze_trunk", "freeze_batch_norm"}
        hard = FLAGS.pairs == "hard"
        names |= {"utterances_per_speaker", "hardest_share"} if hard else {"positive_share", "same_gender_share"}
    if not FLAGS.init_from:
        names |= {"encoder", "width", "rows", "log_magnitude"}
    return names


def check_flags():
    """Raises flags.Error for combinations of flags that contradict each other or would be ignored."""
    in_use = flags_in_use()
    ours = {flag.name for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__])}
    for name in sorted(ours - in_use - NOT_KEPT):
        if FLAGS[name].present:
            given = [f"--stage={FLAGS.stage}", f"--optimizer={FLAGS.optimizer}"]
            given += [f"--pairs={FLAGS.pairs}"] if FLAGS.stage == "contrastive" else []
            given += ["--init_from, whose encoder brings its own"] if FLAGS.init_from else []
            raise flags.Error(f"--{name} has no effect with {', '.join(given)}: leave it out.")
    if FLAGS.final_learning_rate > FLAGS.learning_rate:
        raise flags.Error("--final_learning_rate must not be above --learning_rate.")
    if FLAGS.trials_root and not FLAGS.trials:
        raise flags.Error("--trials_root is given without --trials.")
    for name in ("projector_every", "sprites", "listen"):
        if FLAGS[name].present and not FLAGS.trials:
            raise flags.Error(f"--{name} is given without --trials.")
    if FLAGS.stage == "contrastive":
        unit = FLAGS.utterances_per_speaker if FLAGS.pairs == "hard" else 2
        if FLAGS.batch_size % unit or FLAGS.batch_size < 2 * unit:
            raise flags.Error(f"--batch_size={FLAGS.batch_size} must be a multiple of {unit}, at least {2 * unit}.")
        if FLAGS.freeze_trunk and not FLAGS.init_from:
            raise flags.Error("--freeze_trunk needs a trained trunk: give --init_from.")
        if FLAGS.unit_length and FLAGS.margin > 2:
            raise flags.Error(
                f"--margin={FLAGS.margin} cannot be reached: embeddings of unit length are at most 2 apart."
            )


def build_encoder():
    """The encoder that the flags describe, with stage 2's embedding layer where the stage asks for it."""
    if FLAGS.init_from:
        encoder = SpeakerEncoder.load(f"{FLAGS.init_from}/encoder.keras").model
    else:
        encoder = encoders.build_encoder(FLAGS.encoder, FLAGS.width, int(FLAGS.rows), FLAGS.log_magnitude)
    if FLAGS.stage == "contrastive":
        encoder = encoders.with_embedding(encoder, FLAGS.embedding_dim, FLAGS.unit_length)
        for layer in encoder.layers:
            is_norm = isinstance(layer, keras.layers.BatchNormalization)
            # A batch norm that is not trainable also uses its running statistics instead of the batch's.
            if (FLAGS.freeze_trunk and layer.name != "embedding") or (FLAGS.freeze_batch_norm and is_norm):
                layer.trainable = False
    return encoder


def build_loss():
    if FLAGS.stage == "softmax":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if FLAGS.pairs == "hard":
        return losses.HardNegativeContrastiveLoss(FLAGS.margin, FLAGS.hardest_share)
    return losses.ContrastiveLoss(FLAGS.margin)


def build_metrics():
    """What is measured on the training batches besides the loss."""
    if FLAGS.stage == "softmax":
        return ["accuracy"]
    pairs = losses.all_pairs if FLAGS.pairs == "hard" else losses.drawn_pairs
    measure = keras.metrics.MeanMetricWrapper
    return [
        measure(losses.active_pairs, "active_pairs", pairs=pairs, margin=FLAGS.margin),
        measure(losses.positive_distance, "positive_distance", pairs=pairs),
        measure(losses.negative_distance, "negative_distance", pairs=pairs),
    ]


def build_sampler(corpus):
    if FLAGS.stage == "softmax":
        return sampling.UtteranceSampler(corpus, FLAGS.batch_size, FLAGS.seed)
    if FLAGS.pairs == "hard":
        speakers = FLAGS.batch_size // FLAGS.utterances_per_speaker
        return sampling.SpeakerSampler(corpus, speakers, FLAGS.utterances_per_speaker, FLAGS.seed)
    return sampling.PairSampler(
        corpus, FLAGS.batch_size // 2, FLAGS.positive_share, FLAGS.seed, FLAGS.same_gender_share
    )


def build_optimizer(steps):
    schedule = keras.optimizers.schedules.ExponentialDecay(
        FLAGS.learning_rate, steps, FLAGS.final_learning_rate / FLAGS.learning_rate
    )
    decay = FLAGS.weight_decay or None
    if FLAGS.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(schedule, momentum=FLAGS.momentum, weight_decay=decay)
    else:
        optimizer = keras.optimizers.Adam(schedule, weight_decay=decay)
    if decay:  # not of biases and of batch norm's scales, which have no scale to lose
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def hparam_columns():
    """Every flag that can differ between runs, of both stages, as a column of TensorBoard's table of runs."""
    columns = []
    for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__]):
        if flag.name in NOT_COMPARED:
            continue
        if flag.flag_type() == "bool":
            domain = hparams.Discrete([False, True])
        elif flag.flag_type() == "string enum":
            domain = hparams.Discrete(flag.parser.enum_values)
        else:
            low, high = flag.parser.lower_bound, flag.parser.upper_bound
            domain = hparams.RealInterval(float(low), 1e9 if high is None else float(high))
        columns.append(hparams.HParam(flag.name, domain))
    return columns


def few(recordings, count=3):
    """Paths of a few recordings, spread evenly over a corpus or a trial list."""
    spread = np.linspace(0, len(recordings.paths) - 1, min(count, len(recordings.paths))).astype(int)
    return [recordings.root / recordings.paths[index] for index in spread]


def main(_):
    check_flags()
    keras.utils.set_random_seed(FLAGS.seed)
    corpus = read_corpus(FLAGS.corpus, FLAGS.corpus_root)
    trials = None
    if FLAGS.trials:
        trials = read_trials(FLAGS.trials, FLAGS.trials_root)
        trials.check_files()
    steps_per_epoch = FLAGS.steps_per_epoch or max(1, len(corpus) // FLAGS.batch_size)
    steps = steps_per_epoch * FLAGS.epochs

    sampler = build_sampler(corpus)
    encoder = build_encoder()
    model = encoder
    if FLAGS.stage == "softmax":
        model = encoders.with_classifier(encoder, len(corpus.speaker_names))
    model = TrainingModel(model.input, model.output, name=model.name)
    # XLA is slower than oneDNN on a CPU, and Keras would switch it on by itself.
    model.compile(build_optimizer(steps), build_loss(), metrics=build_metrics(), jit_compile=False)
    # Only now, so that a mistake in the flags above leaves no folder behind that is bound to them.
    values = {name: FLAGS[name].value for name in flags_in_use() if FLAGS[name].value is not None}
    run = Run(FLAGS.run, values)
    run.keep_log()
    if run.checkpoint:
        model.optimizer.build(model.trainable_variables)
        model.load_weights(run.checkpoint)
    done = int(model.optimizer.iterations) // steps_per_epoch
    best_eer = run.rewind_history(done)
    device = (tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU"))[-1].name
    known = training_speakers(f"{FLAGS.init_from}/encoder.keras") if FLAGS.init_from else None
    run.record_start(sorted({*corpus.speaker_names, *(known or ())}), device)
    logging.info(
        "%d training speakers, %d utterances; %s with %s parameters on %s; %d epochs of %d steps of %d utterances",
        len(corpus.speaker_names), len(corpus), encoder.name, f"{encoder.count_params():,}", device, FLAGS.epochs,
        steps_per_epoch, FLAGS.batch_size,
    )  # fmt: skip
    if done >= FLAGS.epochs:
        logging.info("%s is complete: nothing to do.", run.folder)
        return
    if done:
        logging.info("Continuing %s after epoch %d.", run.folder, done)

    samples = crop_samples(FLAGS.crop_seconds)
    recordings = pipeline.Recordings(corpus, samples, FLAGS.max_bad_share)
    throughput = callbacks.Throughput(FLAGS.batch_size)
    dataset = pipeline.dataset(recordings, sampler, FLAGS.seed, done * steps_per_epoch, steps)
    shown = {"train": few(corpus)}
    evaluation, trial_callbacks = None, []
    if trials:
        shown["validation"] = few(trials)
        evaluation = callbacks.TrialEvaluation(
            encoder, trials, FLAGS.margin, trials.known_speakers_note(corpus.speaker_names)
        )
    events = callbacks.EventFiles(run.folder, evaluation)
    if trials:
        trial_callbacks = [
            evaluation,
            callbacks.ProjectorExport(evaluation, events, FLAGS.seed, FLAGS.projector_every, sprite=FLAGS.sprites),
            callbacks.TrialPictures(evaluation, events, FLAGS.listen),
        ]
    compared = {name: value for name, value in values.items() if name not in NOT_COMPARED} | {"encoder": encoder.name}
    try:
        model.fit(
            throughput.timed(dataset),
            epochs=FLAGS.epochs,
            initial_epoch=done,
            steps_per_epoch=steps_per_epoch,
            shuffle=False,  # the sampler has put them in order
            # The bar redraws its line, which only a terminal shows as one.
            verbose=1 if sys.stdout.isatty() else 2,
            callbacks=[
                throughput,
                callbacks.BadRecordingReport(recordings),
                *trial_callbacks,
                callbacks.SpectrogramPictures(events, encoder, shown, samples),
                callbacks.HParams(events, hparam_columns(), compared, best_eer),
                events,
                callbacks.History(run),
                callbacks.Checkpoints(run, encoder, best_eer),
            ],
        )
    except tf.errors.OpError:
        if recordings.failure:
            raise recordings.failure from None
        raise


if __name__ == "__main__":
    if not tf.config.list_physical_devices("GPU"):
        # oneDNN sums a convolution's kernel gradient in another order when other operations take threads away from it,
        # and a run would not give the same weights again. One operation at a time still uses every core. It has to be
        # said before TensorFlow does anything else.
        tf.config.threading.set_inter_op_parallelism_threads(1)
    cli.start(main)
