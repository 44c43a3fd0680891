"""What TensorBoard shows of a trial list and of an encoder's input.

Every function writes to tf.summary's default writer, `with writer.as_default():`.
"""

import io

import numpy as np
import tensorflow as tf
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.pr_curve import summary as pr_curve

from vggvox_tf import audio, plots
from vggvox_tf.frontend import SAMPLE_RATE

BINS = 40  # of the histograms, over distances from 0 to 2
PR_THRESHOLDS = 201  # a hundredth of cosine apart
LISTEN_SAMPLES = 6 * SAMPLE_RATE  # of each recording of a trial
PAUSE_SAMPLES = SAMPLE_RATE // 2


def unit_distances(cosines):
    """Euclidean distances between vectors of unit length, in [0, 2]: d² = 2 − 2·cos."""
    return np.sqrt(np.clip(2 - 2 * cosines, 0, 4))


def trial_distances(cosines, labels, step):
    """Histograms of the target and of the non-target trials' distances, both from 0 to 2: one sees them come apart.

    tf.summary.histogram would give each of them, at every step, bins of its own range.
    """
    distances = unit_distances(cosines)
    for name, kind in (("targets", labels), ("non-targets", ~labels)):
        counts, edges = np.histogram(distances[kind], BINS, (0, 2))
        tf.summary.write(
            f"trial_distance/{name}",
            np.stack([edges[:-1], edges[1:], counts], axis=1),  # (BINS, 3), as the histogram plugin reads it
            step,
            histogram_metadata.create_summary_metadata(None, f"Euclidean distances of the {name} at unit length."),
        )


def trial_curves(cosines, labels, eer_threshold, step, when):
    """ROC, DET and both histograms in one as images, and the precision-recall curve.

    Args:
      eer_threshold: cosine of equal error rates.
      when: for the titles, "epoch 3".
    """
    curves = [("trial list", cosines, labels)]
    distances, threshold = unit_distances(cosines), unit_distances(eer_threshold)
    image("trials/distances", step, plots.histogram, distances, labels, {"EER": threshold}, title=f"Distances, {when}",
          xlabel="Euclidean distance at unit length")  # fmt: skip
    image("trials/ROC", step, plots.roc, curves, title=f"ROC, {when}")
    image("trials/DET", step, plots.det, curves, title=f"DET, {when}")
    # The plugin knows thresholds from 0 to 1 only.
    similarities = np.clip((1 + cosines) / 2, 0, 1)
    summary = pr_curve.pb(
        "trials", labels, similarities, PR_THRESHOLDS,
        description="Threshold t accepts the trials of (1 + cosine) / 2 ≥ t.",
    )  # fmt: skip
    tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step)


def image(name, step, draw, *args, **kwargs):
    """What a function of plots draws, as an image summary."""
    png = io.BytesIO()
    draw(*args, path=png, **kwargs)
    tf.summary.image(name, tf.io.decode_png(png.getvalue(), channels=3)[tf.newaxis], step)


def spectrograms(name, encoder, recordings, samples, step):
    """What the encoder's front end makes of the middle of each recording: time to the right, high frequencies above.

    Args:
      encoder: a Keras model with a "spectrogram" layer.
      recordings: paths. Those that cannot be used are left out.
      samples: length of the crop that is shown.
    """
    crops, shown = [], []
    for path in recordings:
        try:
            crops.append(audio.load_crop(path, 0.5, samples))
        except audio.AudioError:
            continue
        shown.append(f"`{path}`")
    if crops:
        pictures = encoder.get_layer("spectrogram")(np.stack(crops)).numpy()[:, ::-1]  # (B, F, T, 1)
        faint, loud = np.percentile(pictures, [5, 99])
        pictures = np.clip((loud - pictures) / (loud - faint), 0, 1)  # energy dark on light, as printed
        tf.summary.image(name, pictures, step, len(crops), description=", ".join(shown))


def hardest_trials(trials, cosines, eer_threshold, count, step, when):
    """The trials furthest on the wrong side of the threshold, to listen to: both recordings, half a second apart.

    TensorBoard keeps one description a tag, not one a step: so every epoch's have tags of their own.
    """
    wrong_by = np.where(trials.labels, eer_threshold - cosines, cosines - eer_threshold)
    for rank, trial in enumerate(np.argsort(-wrong_by, kind="stable")[:count], start=1):
        paths = [trials.paths[side[trial]] for side in (trials.enrol, trials.test)]
        enrol, test = (audio.load(trials.root / path)[:LISTEN_SAMPLES] for path in paths)
        waveform = np.concatenate([enrol, np.zeros(PAUSE_SAMPLES, np.float32), test])
        kind = "Target" if trials.labels[trial] else "Non-target"
        tf.summary.audio(
            f"hardest trials, {when}/{rank}", waveform[np.newaxis, :, np.newaxis], SAMPLE_RATE, step,
            description=f"{kind}, cosine {cosines[trial]:.3f}, threshold {eer_threshold:.3f}: `{'`, `'.join(paths)}`",
        )  # fmt: skip
