"""Keras callbacks: evaluation on the trial list, projector export, throughput, bad recordings, checkpoints."""

import time

import keras
import numpy as np
from absl import logging

from vggvox_tf import losses, metrics, projector, scoring
from vggvox_tf.speaker_encoder import SpeakerEncoder
from vggvox_tf.trials import speaker_of


class TrialEvaluation(keras.callbacks.Callback):
    """Embeds the recordings of a trial list at the end of each epoch and adds EER, minDCF and loss to the logs.

    The loss is the contrastive one between embeddings of unit length, with targets and non-targets weighted equally,
    so that both training stages are measured with the same rule.

    Args:
      encoder: the Keras model of the encoder, inside the model that is trained.
      note: appended to every EER that is logged; see Trials.known_speakers_note.

    Attributes:
      embeddings: (U, D) of the last epoch, in the order of trials.paths, for callbacks that come after.
    """

    def __init__(self, encoder, trials, margin, note=""):
        super().__init__()
        self.encoder = SpeakerEncoder(encoder)
        self.trials = trials
        self.note = note
        self.margin = margin
        self.embeddings = None

    def on_epoch_end(self, epoch, logs=None):
        start = time.monotonic()
        self.embeddings = self.encoder.embed_files(self.trials.paths, self.trials.root)
        labels = self.trials.labels
        cosines = scoring.score(self.trials, self.embeddings)
        summary = metrics.summary(cosines, labels)
        cost = summary["detection_costs"][0]
        # Unit vectors: d² = 2 − 2·cos.
        distances = np.sqrt(np.maximum(2 - 2 * cosines, 0))
        pair_losses = losses.contrastive(distances, labels, self.margin).numpy()
        logs["val_loss"] = float(pair_losses[labels].mean() + pair_losses[~labels].mean()) / 2
        logs["val_eer"] = summary["eer"]
        logs["val_min_dcf"] = cost["min_dcf"]
        logs["val_auc"] = summary["auc"]
        logging.info(
            "Epoch %d: loss %.4f; trial list: EER %.2f %%, minDCF(p_target=%g) %.3f, loss %.4f (%.1f s). %s",
            epoch + 1,
            logs["loss"],
            100 * summary["eer"],
            cost["p_target"],
            cost["min_dcf"],
            logs["val_loss"],
            time.monotonic() - start,
            self.note,
        )


class ProjectorExport(keras.callbacks.Callback):
    """Exports the embeddings of the trial list's recordings to TensorBoard's projector at the end of each epoch.

    Args:
      evaluation: the TrialEvaluation that comes before this callback.
      folder: a TensorBoard run, that is, a folder with an event file.
      seed: draws the recordings that are shown where there are more than the projector takes, the same every epoch.
    """

    def __init__(self, evaluation, folder, seed):
        super().__init__()
        self.evaluation = evaluation
        self.folder = folder
        paths = evaluation.trials.paths
        self.rows = np.arange(len(paths))
        if len(paths) > projector.MAX_ROWS:
            rows = np.random.default_rng(seed).choice(len(paths), projector.MAX_ROWS, replace=False)
            self.rows = np.sort(rows)
        shown = [paths[row] for row in self.rows]
        self.metadata = {"speaker": [speaker_of(path) for path in shown], "utterance": shown}

    def on_epoch_end(self, epoch, logs=None):
        projector.export(
            self.folder,
            f"epoch-{epoch + 1:04d}",
            self.evaluation.embeddings[self.rows],
            self.metadata,
            title=f"epoch {epoch + 1:02} (EER {100 * logs['val_eer']:.1f} %)",
            replace=True,  # a resumed run exports its first epoch a second time
        )


class Throughput(keras.callbacks.Callback):
    """Adds the utterances trained on per second, input included and evaluation excluded, to the logs."""

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def on_epoch_begin(self, epoch, logs=None):
        self.steps = 0
        self.start = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        self.end = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        logs["utterances_per_second"] = self.steps * self.batch_size / (self.end - self.start)


class BadRecordingReport(keras.callbacks.Callback):
    """Says at the end of each epoch how many training recordings were skipped, and which are new since the last."""

    def __init__(self, recordings):
        super().__init__()
        self.recordings = recordings
        self.reported = set()

    def on_epoch_end(self, epoch, logs=None):
        bad = dict(self.recordings.bad)
        logs["bad_recordings"] = len(bad)
        for index in sorted(bad.keys() - self.reported):
            logging.warning("Bad recording: %s", bad[index])
        if bad:
            logging.warning(
                "%d of %d training recordings are bad and were skipped.", len(bad), len(self.recordings.corpus)
            )
        self.reported |= bad.keys()


class Checkpoints(keras.callbacks.Callback):
    """Saves the state of training, the encoder, and the encoder of the best EER so far, at the end of each epoch.

    Comes last, so that whatever the others write of an epoch is there once its checkpoint is. A loss that is no longer
    finite is raised as FloatingPointError instead of being saved over the last good checkpoint.

    Args:
      run: the run.Run to save into.
      encoder: the encoder inside the model that is trained.
      best_eer: the lowest EER of the epochs before this start.
    """

    def __init__(self, run, encoder, best_eer=float("inf")):
        super().__init__()
        self.run = run
        self.encoder = encoder
        self.best_eer = best_eer

    def on_epoch_end(self, epoch, logs=None):
        if not np.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"the loss is {logs['loss']} in epoch {epoch + 1}; {self.run.folder} keeps the state of the epoch "
                "before. Lower --learning_rate."
            )
        self.run.save(self.encoder.save, "encoder.keras")
        if logs.get("val_eer", float("inf")) < self.best_eer:
            self.best_eer = logs["val_eer"]
            self.run.save(self.encoder.save, "encoder_best.keras")
        self.run.save(self.model.save_weights, "checkpoint.weights.h5")
