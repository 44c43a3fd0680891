"""The flags of vggvox_tf.train: what there is, which of them a run uses, and what contradicts what."""

import sys

from absl import flags
from tensorboard.plugins.hparams import api as hparams

from vggvox_tf import devices, encoders, losses
from vggvox_tf.encoders.pooling import POOLINGS
from vggvox_tf.encoders.resnet import STEM_STRIDES
from vggvox_tf.frontend import COMPRESSIONS, FFT_LENGTHS, MAXIMUM_MEL_BANDS, NORMALISATIONS

FLAGS = flags.FLAGS

CLASSIFICATION = ("softmax", "am", "aam")
METRIC = (
    "contrastive", "triplet", "trihard", "quadruplet", "msml", "prototypical", "angular_prototypical",
)  # fmt: skip
MINING = {
    "contrastive": ("hard", "half_hard", "semi_hard", "random", "offline"),
    "triplet": ("hard", "semi_hard", "random"),
}

flags.DEFINE_string("run", None, "Folder for everything of this run; an unfinished run in it is continued.")
flags.DEFINE_integer(
    "seed", 0, "Seed of the initial weights, the order of the data, the crops and the augmentation.", 0
)

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
flags.DEFINE_float("width", 1.0, "Multiplies the filters of every layer; 0.25 makes a thin ResNet.", 0.01, 4.0)
flags.DEFINE_boolean("squeeze_excitation", False, "Squeeze and excitation in the blocks of a ResNet (Hu et al. 2018).")
flags.DEFINE_enum(
    "stem_stride", "4", [str(n) for n in STEM_STRIDES],
    "Of what comes before a ResNet's blocks: 4, with a max pool, as in the papers; 2, without it; or 1: slower.",
)  # fmt: skip
flags.DEFINE_enum("rows", "512", [str(n) for n in FFT_LENGTHS], "Frequency rows: 512 as in the paper, or 257.")
flags.DEFINE_integer("mel_bands", 0, "Mel bands in place of the rows, such as 80; 0: the rows.", 0, MAXIMUM_MEL_BANDS)
flags.DEFINE_enum(
    "compression", "linear", COMPRESSIONS, "Of the magnitude: linear as in the paper, logarithm, power law."
)
flags.DEFINE_enum(
    "normalisation",
    "time",
    NORMALISATIONS,
    "time: mean and variance of each row over the recording's frames, as in the paper. mean: the mean only. running: a "
    "running mean and variance of each row over the training. learned: a trained mean and scale of each row.",
)
flags.DEFINE_enum("pooling", "average", POOLINGS, "Over time; average as in the paper.")
flags.DEFINE_integer(
    "embedding_dim", None, "Size of the embeddings; default 512 with a metric loss, else the trunk's own output.", 1
)
flags.DEFINE_boolean("unit_length", True, "L2-normalise a metric loss's embeddings: distances then lie in [0, 2].")

flags.DEFINE_list(
    "loss",
    None,
    f"A classification loss ({', '.join(CLASSIFICATION)}: softmax with additive or additive angular margin), a metric "
    f"loss ({', '.join(METRIC)}), or one of each, comma-separated.",
)
flags.DEFINE_float("metric_weight", 1.0, "Weight of the metric loss beside a classification loss.", 1e-6)
flags.DEFINE_float("class_margin", 0.2, "Margin of am (of the cosine) and aam (an angle in radians).", 0.0, 1.5)
flags.DEFINE_float("class_scale", 30.0, "Factor of the cosines of am and aam before the softmax.", 1.0)
flags.DEFINE_integer("margin_warmup_epochs", 0, "Epochs over which --class_margin rises from 0.", 0)
flags.DEFINE_float(
    "margin", None, "How far apart a metric loss wants speakers; default: contrastive 1, the others 0.3.", 1e-6
)
flags.DEFINE_float("second_margin", 0.1, "Of quadruplet's second term; below --margin.", 0.0)
flags.DEFINE_boolean("soft_margin", False, "Softplus in place of trihard's margin.")
flags.DEFINE_enum(
    "mining",
    "hard",
    ["hard", "half_hard", "semi_hard", "random", "offline"],
    "Of contrastive's negative pairs. In a P×K batch: hard, the closest --hardest_share; half_hard, half of them so, "
    "half at random (VoxCeleb1); semi_hard, those beyond a positive one. Drawn pairs: random; offline, from "
    "the closest --hardest_share of random pairs (VoxCeleb2). Of triplet: hard, semi_hard, random.",
)
flags.DEFINE_float("hardest_share", None, "Share of the negative pairs used; default 0.1, offline 0.01.", 1e-6, 1.0)
flags.DEFINE_integer("mine_every", 1, "Epochs between two rounds of mining. With --mining=offline.", 1)
flags.DEFINE_integer("utterances_per_speaker", 2, "K of a P×K batch; P is batch_size / K. With a metric loss.", 2)
flags.DEFINE_float("positive_share", 0.5, "Share of pairs of the same speaker. With drawn pairs.", 0.0, 1.0)
flags.DEFINE_float(
    "same_gender_share",
    None,
    "Share of the negative pairs that are of one gender; default: as it comes. With --mining=random.",
    0.0,
    1.0,
)

flags.DEFINE_string(
    "init_from", None, "Run folder whose encoder, and classifier where both have one, this starts from."
)
flags.DEFINE_boolean("freeze_trunk", False, "Train the embedding layer and the heads only.")
flags.DEFINE_boolean("freeze_batch_norm", False, "Keep the batch norm statistics and scales of --init_from.")

flags.DEFINE_string("noise", None, "Folder of noises (MUSAN's, or any) to add in training, at --snr.")
flags.DEFINE_float("noise_share", 0.5, "Share of the utterances that noise is added to.", 0.0, 1.0)
flags.DEFINE_string("reverberation", None, "Folder of room impulse responses (RIRS_NOISES', or any) for training.")
flags.DEFINE_float("reverberation_share", 0.3, "Share of the utterances that are put into a room.", 0.0, 1.0)
flags.DEFINE_float("babble_share", 0.0, "Share of the utterances that other ones of the batch are added to.", 0.0, 1.0)
flags.DEFINE_list("snr", ["5", "20"], "Lowest and highest signal-to-noise ratio of noise and babble, in dB.")
flags.DEFINE_list("speeds", [], "Speeds to play utterances at, such as 0.9,1,1.1; each has as many of a batch.")
flags.DEFINE_boolean("speeds_are_speakers", False, "A speaker at another of --speeds counts as another speaker.")
flags.DEFINE_float("gain", 0.0, "Loudness is changed by up to this, up or down, in dB.", 0.0)
flags.DEFINE_float("filter", 0.0, "Frequencies are raised or lowered by up to this, along a random curve, in dB.", 0.0)
flags.DEFINE_integer("frequency_mask", 0, "Rows that SpecAugment masks at most, twice; 0: none.", 0)
flags.DEFINE_integer("time_mask", 0, "Frames that SpecAugment masks at most, twice; 0: none.", 0)

flags.DEFINE_float("crop_seconds", 3.0, "Length of the training crops in seconds (100 frames each).", 0.5)
flags.DEFINE_integer("batch_size", 64, "Utterances in a step; both sides of pairs count.", 2)
flags.DEFINE_integer(
    "accumulate", None, "Batches whose mean gradient makes one update of the weights; --warmup_steps counts updates.", 2
)
flags.DEFINE_integer("epochs", 10, "Epochs to train; each ends with an evaluation and a checkpoint.", 1)
flags.DEFINE_integer("steps_per_epoch", 0, "Steps in an epoch; 0: as many as the corpus has batches.", 0)
flags.DEFINE_float(
    "time_budget",
    None,
    "Minutes until training shall be over, start-up and evaluations included: a few steps are timed, and "
    "--steps_per_epoch follows from it. The run's flags keep the steps, not the minutes.",
    0.1,
)
flags.DEFINE_integer("early_stopping", 0, "Epochs without a lower EER after which training stops; 0: never.", 0)
flags.DEFINE_enum(
    "optimizer", "sgd", ["sgd", "adam", "muon"], "SGD with momentum, Adam, or Muon for kernels and Adam for the rest."
)
flags.DEFINE_float("momentum", 0.9, "Momentum of SGD.", 0.0, 1.0)
flags.DEFINE_float("learning_rate", 1e-2, "Highest learning rate: at the first step, or after the warm-up.", 1e-12)
flags.DEFINE_float("final_learning_rate", 1e-5, "Learning rate at the last step.", 1e-12)
flags.DEFINE_enum(
    "schedule", "exponential", ["exponential", "cosine", "cyclic"], "From the one learning rate to the other."
)
flags.DEFINE_integer("cycles", 4, "Rises and falls of a cyclic learning rate.", 1)
flags.DEFINE_integer("warmup_steps", 0, "Steps over which the learning rate rises from 0.", 0)
flags.DEFINE_float(
    "weight_decay",
    0.0,
    "Share of each kernel that is taken off per step, per unit of learning rate (decoupled). The papers' 5e-4, an L2 "
    "penalty under momentum 0.9, corresponds to 5e-4 / (1 − 0.9) = 5e-3 here.",
    0.0,
)
flags.DEFINE_float(
    "weight_average", 0.0, "Momentum of the average of the weights that is tested and kept; 0: none.", 0, 1
)

flags.DEFINE_boolean(
    "cache",
    False,
    "Keep the decoded recordings in memory, 115 MB an hour: after its first time a recording costs nothing.",
)
flags.DEFINE_integer(
    "decode_processes",
    None,
    "Processes that read and decode recordings; 0: a thread of this one does. Default: 0; beside a GPU, one for each "
    "CPU core, at most 16.",
    0,
)
flags.DEFINE_boolean("jit_compile", None, "Compile the training step by XLA; on a CPU it is slower than oneDNN.")
flags.DEFINE_boolean(
    "mixed_precision", None, "Convolutions in bfloat16, for NVIDIA GPUs since Ampere and CPUs with AVX512_BF16 or AMX."
)
flags.DEFINE_enum(
    "strategy",
    "auto",
    devices.STRATEGIES,
    "mirrored: on all GPUs of this machine. multiworker: on several machines, each with a TF_CONFIG. auto: by what "
    "there is. Each of R devices has 1/R of --batch_size; --learning_rate is that of the whole batch.",
)
flags.DEFINE_list(
    "profile_steps",
    [],
    "First and last step of the run to profile, such as 100,120, for TensorBoard (its tensorboard-plugin-profile).",
)

flags.mark_flags_as_required(["run", "loss", "corpus"])

ALWAYS = {
    "loss", "seed", "corpus", "corpus_root", "trials", "trials_root", "max_bad_share", "crop_seconds", "batch_size",
    "epochs", "steps_per_epoch", "early_stopping", "optimizer", "learning_rate", "final_learning_rate", "schedule",
    "warmup_steps", "weight_decay", "weight_average", "init_from", "freeze_trunk", "freeze_batch_norm",
    "embedding_dim", "noise", "reverberation", "babble_share", "speeds", "gain", "filter", "frequency_mask",
    "time_mask", "accumulate", "jit_compile", "mixed_precision", "cache",
}  # fmt: skip
# A run with others of these is the same run.
NOT_KEPT = {
    "run", "time_budget", "projector_every", "sprites", "listen", "decode_processes", "profile_steps", "strategy",
}  # fmt: skip
# Not among the columns of TensorBoard's table of runs: where things lie, what does not change the training, and lists
# of numbers, which it has no columns for.
NOT_COMPARED = NOT_KEPT | {
    "corpus", "corpus_root", "trials", "trials_root", "init_from", "noise", "reverberation", "max_bad_share", "snr",
    "speeds",
}  # fmt: skip


def classification_loss():
    """The classification loss in --loss, or None."""
    return next((name for name in FLAGS.loss if name in CLASSIFICATION), None)


def metric_loss():
    """The metric loss in --loss, or None."""
    return next((name for name in FLAGS.loss if name in METRIC), None)


def draws_pairs():
    """Whether a batch is of drawn pairs; otherwise it is P×K, or has no order among speakers."""
    return metric_loss() == "contrastive" and FLAGS.mining in ("random", "offline")


def flags_in_use():
    """Names of the flags that have a bearing on the run that the flags describe."""
    classification, metric = classification_loss(), metric_loss()
    conditions = {
        "momentum": FLAGS.optimizer == "sgd",
        "cycles": FLAGS.schedule == "cyclic",
        "encoder width squeeze_excitation stem_stride": not FLAGS.init_from,
        "rows mel_bands compression normalisation pooling": not FLAGS.init_from,
        "class_margin class_scale margin_warmup_epochs": classification in ("am", "aam"),
        "metric_weight": classification and metric,
        "unit_length": metric,
        "margin": metric in ("contrastive", "triplet", "quadruplet", "msml")
        or (metric == "trihard" and not FLAGS.soft_margin),
        "second_margin": metric == "quadruplet",
        "soft_margin": metric == "trihard",
        "mining": metric in MINING,
        "hardest_share": metric == "contrastive" and FLAGS.mining in ("hard", "half_hard", "offline"),
        "mine_every": metric == "contrastive" and FLAGS.mining == "offline",
        "utterances_per_speaker": metric and not draws_pairs(),
        "positive_share": draws_pairs(),
        "same_gender_share": draws_pairs() and FLAGS.mining == "random",
        "noise_share": FLAGS.noise,
        "snr": FLAGS.noise or FLAGS.babble_share,
        "reverberation_share": FLAGS.reverberation,
        "speeds_are_speakers": FLAGS.speeds,
    }
    return ALWAYS | {name for names, holds in conditions.items() if holds for name in names.split()}


def numbers(name, low):
    """The values of a list flag, as floats above `low`, in ascending order."""
    try:
        values = [float(text) for text in FLAGS[name].value]
    except ValueError:
        values = [low]
    if any(value <= low for value in values) or values != sorted(set(values)):
        raise flags.Error(
            f"--{name}: expected different numbers above {low:g} in ascending order, comma-separated, found "
            f"{','.join(FLAGS[name].value)}."
        )
    return values


def check_flags():
    """Raises flags.Error for combinations of flags that contradict each other or would be ignored."""
    classification, metric = classification_loss(), metric_loss()
    if not FLAGS.loss or set(FLAGS.loss) - {classification, metric} or len(FLAGS.loss) > 2:
        raise flags.Error(
            f"--loss={','.join(FLAGS.loss)}: expected one of {', '.join(CLASSIFICATION)}, one of {', '.join(METRIC)}, "
            "or one of each, comma-separated."
        )
    in_use = flags_in_use()
    ours = {flag.name for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__])}
    for name in sorted(ours - in_use - NOT_KEPT):
        if FLAGS[name].present:
            given = [f"--loss={','.join(FLAGS.loss)}", f"--optimizer={FLAGS.optimizer}", f"--schedule={FLAGS.schedule}"]
            given += [f"--mining={FLAGS.mining}"] if metric in MINING else []
            given += ["--init_from, whose encoder brings its own"] if FLAGS.init_from else []
            raise flags.Error(f"--{name} has no effect with {', '.join(given)}: leave it out.")
    if FLAGS.final_learning_rate > FLAGS.learning_rate:
        raise flags.Error("--final_learning_rate must not be above --learning_rate.")
    for name in ("trials_root", "projector_every", "sprites", "listen", "early_stopping"):
        if FLAGS[name].present and not FLAGS.trials:
            raise flags.Error(f"--{name} is given without --trials.")
    if FLAGS.time_budget and FLAGS.steps_per_epoch:
        raise flags.Error("--steps_per_epoch follows from --time_budget: give one of them.")
    if FLAGS.mel_bands and FLAGS["rows"].present:
        raise flags.Error("--rows has no effect with --mel_bands: leave one of them out.")
    if any(round(speed, 2) != speed for speed in numbers("speeds", 0)):
        raise flags.Error(f"--speeds: expected at most two decimals each, found {','.join(FLAGS.speeds)}.")
    if FLAGS.speeds and FLAGS.speeds_are_speakers and draws_pairs():
        raise flags.Error("--speeds_are_speakers needs P×K batches or a classification loss, not drawn pairs.")
    if len(numbers("snr", -100)) != 2:
        raise flags.Error(f"--snr: expected LOWEST,HIGHEST in dB, found {','.join(FLAGS.snr)}.")
    if FLAGS.profile_steps and len(numbers("profile_steps", -1)) != 2:
        raise flags.Error(f"--profile_steps: expected FIRST,LAST, found {','.join(FLAGS.profile_steps)}.")
    if metric:
        if metric in MINING and FLAGS.mining not in MINING[metric]:
            raise flags.Error(f"--mining={FLAGS.mining} is not for {metric}: expected {', '.join(MINING[metric])}.")
        if classification and draws_pairs():
            raise flags.Error(f"--mining={FLAGS.mining} draws pairs, which a classification loss has no use for.")
        unit = 2 if draws_pairs() else FLAGS.utterances_per_speaker
        if FLAGS.batch_size % unit or FLAGS.batch_size < 2 * unit:
            raise flags.Error(f"--batch_size={FLAGS.batch_size} must be a multiple of {unit}, at least {2 * unit}.")
        if metric == "quadruplet" and FLAGS.second_margin >= (FLAGS.margin or losses.QuadrupletLoss().margin):
            raise flags.Error(f"--second_margin={FLAGS.second_margin} must be below --margin.")
        if FLAGS.unit_length and (FLAGS.margin or 0) > 2:
            raise flags.Error(
                f"--margin={FLAGS.margin} cannot be reached: embeddings of unit length are at most 2 apart."
            )
    if FLAGS.cache and FLAGS.decode_processes:
        raise flags.Error("--decode_processes has no effect with --cache: leave one of them out.")
    for name in ("freeze_trunk", "freeze_batch_norm"):
        if FLAGS[name].value and not FLAGS.init_from:
            raise flags.Error(f"--{name} needs a trained trunk: give --init_from.")


def check_devices(strategy):
    """Raises flags.Error for what the flags ask of several devices, or of workers, that cannot be."""
    replicas, unit = strategy.num_replicas_in_sync, rows_per_voice()
    if FLAGS.batch_size % (replicas * unit):
        raise flags.Error(
            f"--batch_size={FLAGS.batch_size} must be a multiple of {replicas * unit}, for {replicas} devices"
            + (f" and {unit} utterances of a speaker." if unit > 1 else ".")
        )
    if len(numbers("speeds", 0)) > FLAGS.batch_size // replicas // unit:
        raise flags.Error(
            f"--speeds are {len(FLAGS.speeds)}, but each device has {FLAGS.batch_size // replicas // unit} rows or "
            "speakers to share among them: give fewer, or a larger --batch_size."
        )
    if FLAGS.jit_compile and replicas > 1:
        raise flags.Error("--jit_compile is for a single device: leave it out, or give --strategy=single.")
    if FLAGS.accumulate and replicas > 1:
        raise flags.Error("--accumulate is for a single device: a larger --batch_size is shared among several.")
    if FLAGS.time_budget and devices.workers(strategy)[1] > 1:
        raise flags.Error("--time_budget is for a single machine: give --steps_per_epoch.")


def rows_per_voice():
    """Consecutive rows of a batch that are of one speaker and so have one speed."""
    return FLAGS.utterances_per_speaker if metric_loss() and not draws_pairs() else 1


def hparam_columns():
    """Every flag that can differ between runs, of all stages, as a column of TensorBoard's table of runs."""
    columns = []
    for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__]):
        if flag.name in NOT_COMPARED:
            continue
        if flag.flag_type() == "bool":
            domain = hparams.Discrete([False, True])
        elif flag.flag_type() == "string enum":
            domain = hparams.Discrete(flag.parser.enum_values)
        elif flag.name == "loss":
            both = [f"{classification},{metric}" for classification in CLASSIFICATION for metric in METRIC]
            domain = hparams.Discrete([*CLASSIFICATION, *METRIC, *both])
        else:
            low, high = flag.parser.lower_bound, flag.parser.upper_bound
            domain = hparams.RealInterval(float(low), 1e9 if high is None else float(high))
        columns.append(hparams.HParam(column_name(flag.name), domain))
    return columns


def column_name(flag):
    """A flag's column in TensorBoard's table of runs, where a metric is called loss already."""
    return "loss_function" if flag == "loss" else flag
