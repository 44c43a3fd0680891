"""Keras callbacks: evaluation on the trial list, what TensorBoard shows, throughput, bad recordings, checkpoints."""

import dataclasses
import signal
import threading
import time

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.plugins.hparams.summary import session_end_pb

from vggvox_tf import clusters, devices, losses, maps, metrics, projector, scoring, sprites, summaries
from vggvox_tf.corpus import read_genders
from vggvox_tf.encoders import with_precision
from vggvox_tf.frontend import SAMPLE_RATE
from vggvox_tf.run import Terminated
from vggvox_tf.speaker_encoder import SpeakerEncoder
from vggvox_tf.trials import speaker_of

# Share of the time spent waiting for input from which on it is worth a line in the log.
WAIT_WORTH_SAYING = 0.1


class TrialEvaluation(keras.callbacks.Callback):
    """Embeds the recordings of a trial list before training and at the end of each epoch; adds `val_…` to the logs.

    These are the loss, EER, minDCF, AUC, and accuracy, precision and recall at the threshold of the EER. The loss is
    the contrastive one between embeddings of unit length, with targets and non-targets weighted equally, so that both
    training stages are measured with the same rule.

    Args:
      encoder: the Keras model of the encoder, inside the model that is trained.
      note: appended to every EER that is logged; see Trials.known_speakers_note.

    Attributes, of the last evaluation, for callbacks that come after (a resumed run is not evaluated before training):
      logs: what was added to the logs, by name; empty before the first evaluation.
      embeddings: (U, D), in the order of trials.paths.
      cosines: (M,), in the order of the trials.
      eer_threshold: cosine of equal error rates.
    """

    def __init__(self, encoder, trials, margin, note=""):
        super().__init__()
        self.encoder = SpeakerEncoder(encoder)
        self.trials = trials
        self.note = note
        self.margin = margin
        self.logs = {}
        self.embeddings = self.cosines = self.eer_threshold = None

    def on_train_begin(self, logs=None):
        if self.model.steps_done == 0:
            self._evaluate("Before training")

    def on_epoch_end(self, epoch, logs=None):
        self._evaluate(f"Epoch {epoch + 1}: loss {logs['loss']:.4f}")
        logs.update(self.logs)

    def _evaluate(self, when):
        start = time.monotonic()
        errors = {}
        embeddings = self.encoder.embed_files(self.trials.paths, self.trials.root, errors=errors)
        if errors:
            self._leave_out(embeddings, errors)
        self.embeddings = embeddings
        self.cosines = scoring.score(self.trials, self.embeddings)
        labels = self.trials.labels
        summary = metrics.summary(self.cosines, labels)
        self.eer_threshold = summary["eer_threshold"]
        cost, at_eer = summary["detection_costs"][0], summary["operating_points"]["eer"]
        pair_losses = losses.contrastive(summaries.unit_distances(self.cosines), labels, self.margin).numpy()
        self.logs = {
            "val_loss": float(pair_losses[labels].mean() + pair_losses[~labels].mean()) / 2,
            "val_eer": summary["eer"],
            "val_min_dcf": cost["min_dcf"],
            "val_auc": summary["auc"],
            "val_accuracy_at_eer": at_eer["accuracy"],
            "val_precision_at_eer": at_eer["precision"],
            "val_recall_at_eer": at_eer["recall"],
        }
        logging.info(
            "%s; trial list: EER %.2f %%, minDCF(p_target=%g) %.3f, loss %.4f (%.1f s). %s",
            when,
            100 * summary["eer"],
            cost["p_target"],
            cost["min_dcf"],
            self.logs["val_loss"],
            time.monotonic() - start,
            self.note,
        )

    def _leave_out(self, embeddings, errors):
        """Drops the trials of recordings that could be read at the last evaluation and no longer can."""
        if self.embeddings is None:  # nothing is lost yet
            raise next(iter(errors.values()))
        rows = list(errors)
        embeddings[rows] = self.embeddings[rows]  # they keep their places in the projector
        kept = ~(np.isin(self.trials.enrol, rows) | np.isin(self.trials.test, rows))
        if kept.all():  # since an evaluation before
            return
        for error in errors.values():
            logging.warning("A recording of the trial list cannot be read any more: %s", error)
        logging.warning(
            "EERs from here on are without %d of the %d trials.", np.count_nonzero(~kept), len(self.trials.labels)
        )
        self.trials = dataclasses.replace(
            self.trials, **{name: getattr(self.trials, name)[kept] for name in ("labels", "enrol", "test")}
        )


class ProjectorExport(keras.callbacks.Callback):
    """Exports recordings of the trial list to TensorBoard's projector before training, after epochs, and at the end.

    Adds to the logs how well the speakers shown are clusters: val_nearest_neighbour_share and val_silhouette. At the
    end of training it draws a map of the last epoch, map.png in the run's folder and on the Images tab.

    Args:
      evaluation: the TrialEvaluation that comes before this callback.
      events: the EventFiles that comes after it; the projector's files lie in its validation/.
      seed: draws what is shown, the same every epoch, and places the points of the map.
      every: epochs from one tensor to the next; the last epoch always has one.
      speakers, utterances: the most speakers, and utterances of each, to show; None: as many as the projector takes.
      sprite: draw every point as a picture of its spectrogram.
    """

    def __init__(self, evaluation, events, seed, every=1, speakers=None, utterances=None, sprite=False):
        super().__init__()
        self.evaluation = evaluation
        self.events = events
        self.seed = seed
        self.every = every
        self.sprite = sprite
        self.pictures = None
        self.epoch = None
        trials = evaluation.trials
        every_speaker = np.array([speaker_of(path) for path in trials.paths])
        self.rows = projector.subset(every_speaker, seed, speakers, utterances)
        self.speakers = every_speaker[self.rows]
        self.metadata = None

    @property
    def folder(self):
        return self.events.folder / "validation"

    def on_train_begin(self, logs=None):
        encoder, root = self.evaluation.encoder, self.evaluation.trials.root
        paths = self.evaluation.trials.paths[self.rows]
        genders = read_genders(root)
        self.metadata = {
            "speaker": self.speakers,
            "session": [path.split("/")[-2] if path.count("/") > 1 else "" for path in paths],
            "gender": [genders.get(speaker, "") for speaker in self.speakers],
            "seconds": [f"{samples / SAMPLE_RATE:.2f}" for samples in encoder.lengths(paths, root)],
            "file": paths,
        }
        if self.sprite:
            pictures = sprites.thumbnails(encoder.model, root, paths, projector.sprite_size(len(paths)))
            self.pictures = projector.write_sprite(self.folder, pictures)
        if self.evaluation.logs:
            self._measure()
            self._export("before-training", "before training")

    def on_epoch_end(self, epoch, logs=None):
        logs.update(self._measure())
        self.epoch = epoch
        if (epoch + 1) % self.every == 0:
            self._export_epoch()

    def on_train_end(self, logs=None):
        if self.epoch is None:
            return
        embeddings = self.evaluation.embeddings[self.rows]
        shown = maps.sample(len(embeddings), self.seed)
        places = maps.t_sne(embeddings[shown], self.seed)
        self._export_epoch(places if len(shown) == len(embeddings) else None)
        title = f"{len(shown):,} utterances of {len(set(self.speakers[shown])):,} speakers after epoch {self.epoch + 1}"
        picture = maps.draw(places, self.speakers[shown], self.events.folder / "map.png", f"{title} (t-SNE)")
        with self.events.writer("validation").as_default():
            tf.summary.image("map", picture[np.newaxis], self.epoch)

    def _measure(self):
        """Adds the numbers on clusters to those of the evaluation, and returns them."""
        embeddings = self.evaluation.embeddings[self.rows]
        numbers = {
            "val_nearest_neighbour_share": clusters.nearest_neighbour_share(embeddings, self.speakers, self.seed),
            "val_silhouette": clusters.silhouette(embeddings, self.speakers),
        }
        self.evaluation.logs |= numbers
        return numbers

    def _export_epoch(self, places=None):
        self._export(f"epoch-{self.epoch + 1:04d}", f"epoch {self.epoch + 1:02}", places)

    def _export(self, name, when, places=None):
        projector.export_speakers(
            self.folder,
            name,
            self.evaluation.embeddings[self.rows],
            self.metadata,
            title=f"{when} (EER {100 * self.evaluation.logs['val_eer']:.1f} %)",
            sprite=self.pictures,
            tsne=places,
        )


class Throughput(keras.callbacks.Callback):
    """Adds to the logs the utterances trained on per second, and the share of that time spent waiting for batches.

    The time of an epoch goes from its beginning to the end of its last step, input included and evaluation excluded.
    Keras asks the dataset for a batch inside its compiled step, between on_train_batch_begin and on_train_batch_end,
    so that callbacks alone cannot tell waiting from computing. `timed` has the dataset itself note the time from each
    request of a batch until it was there. Since a callback with an on_train_batch_end makes Keras read the loss of each
    step, a step is over, on a GPU as well, before the next batch is asked for: no step goes on while a batch is waited
    for.
    """

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size
        with tf.device("CPU:0"):
            self.waited = tf.Variable(0.0, trainable=False, dtype=tf.float64)  # seconds in this epoch

    def timed(self, dataset):
        """The same batches from a dataset that counts how long each was waited for."""
        requested = tf.data.Dataset.counter().map(lambda _: tf.timestamp())

        def arrived(requested, batch):
            self.waited.assign_add(tf.timestamp() - requested)
            return batch

        options = tf.data.Options()
        # Otherwise tf.data appends a buffer by itself, and what waits for it would go unnoticed.
        options.experimental_optimization.inject_prefetch = False
        # A zip asks its parts one after the other: first for the time, then for the batch.
        return tf.data.Dataset.zip(requested, dataset).map(arrived).with_options(options)

    def on_epoch_begin(self, epoch, logs=None):
        self.steps = 0
        self.waited.assign(0)
        self.start = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        self.end = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        seconds = self.end - self.start
        logs["utterances_per_second"] = self.steps * self.batch_size / seconds
        logs["input_wait_share"] = share = float(self.waited) / seconds
        if share > WAIT_WORTH_SAYING:
            logging.warning(
                "Epoch %d: %.0f %% of the time was spent waiting for recordings: they are read and decoded more slowly "
                "than they are trained on. Give --cache where they fit into memory; more --decode_processes where CPU "
                "cores are idle or the disk answers late; else keep the recordings as wav or flac, on a local disk or "
                "in shards (tools/make_shards.py), and name that --corpus.",
                epoch + 1,
                100 * share,
            )


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


class EventFiles(keras.callbacks.Callback):
    """Writes an epoch's logs, and the learning rate, as scalars: `val_…` into validation/, the others into train/.

    Names and steps are those of keras.callbacks.TensorBoard, whose place this takes: TensorBoard without its fast
    loader reads one event file of a folder at a time, so all that goes into a folder has to go through one writer.
    Epoch 1 is step 0, and what comes before training step −1. Comes after the callbacks that use its writers, since it
    closes them in the end.

    Args:
      folder: the run's.
      evaluation: the TrialEvaluation that comes before this callback; None without trials.
    """

    def __init__(self, folder, evaluation=None):
        super().__init__()
        self.folder = folder
        self.evaluation = evaluation
        self.writers = {}

    def writer(self, name):
        """The tf.summary writer of folder `name` inside the run's, "" for that itself; created when first asked for."""
        if name not in self.writers:
            self.writers[name] = tf.summary.create_file_writer(str(self.folder / name))
        return self.writers[name]

    def write(self, logs, step):
        for folder, prefix in (("validation", "val_"), ("train", "")):
            chosen = {name: value for name, value in logs.items() if name.startswith("val_") == bool(prefix)}
            if chosen:
                with self.writer(folder).as_default(step):
                    for name, value in chosen.items():
                        tf.summary.scalar(f"epoch_{name.removeprefix(prefix)}", value)

    def on_train_begin(self, logs=None):
        if self.evaluation:
            self.write(self.evaluation.logs, -1)

    def on_epoch_end(self, epoch, logs=None):
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)
        self.write(logs, epoch)
        for writer in self.writers.values():
            writer.flush()  # before the checkpoint after which the epoch is not trained again

    def on_train_end(self, logs=None):
        for writer in self.writers.values():
            writer.close()


class TrialPictures(keras.callbacks.Callback):
    """Writes distances, curves and the hardest trials of the trial list, before training and after each epoch.

    Args:
      evaluation: the TrialEvaluation that comes before this callback.
      events: the EventFiles, whose writer of validation/ is used.
      listen: number of the hardest trials of each epoch to write as audio.
    """

    def __init__(self, evaluation, events, listen=0):
        super().__init__()
        self.evaluation = evaluation
        self.events = events
        self.listen = listen

    def on_train_begin(self, logs=None):
        if self.evaluation.logs:
            self._write(-1, "before training")

    def on_epoch_end(self, epoch, logs=None):
        self._write(epoch, f"epoch {epoch + 1:02}")

    def _write(self, step, when):
        trials, cosines, threshold = self.evaluation.trials, self.evaluation.cosines, self.evaluation.eer_threshold
        with self.events.writer("validation").as_default():
            summaries.trial_distances(cosines, trials.labels, step)
            summaries.trial_curves(cosines, trials.labels, threshold, step, when)
            summaries.hardest_trials(trials, cosines, threshold, self.listen, step, when)


class SpectrogramPictures(keras.callbacks.Callback):
    """Writes what the encoder's front end makes of a few recordings, once, before training.

    Args:
      events: the EventFiles.
      recordings: folder of event files ("train", "validation") -> paths.
      samples: length of the crop that is shown.
    """

    def __init__(self, events, encoder, recordings, samples):
        super().__init__()
        self.events = events
        self.encoder = encoder
        self.recordings = recordings
        self.samples = samples

    def on_train_begin(self, logs=None):
        if self.model.steps_done == 0:
            for folder, paths in self.recordings.items():
                with self.events.writer(folder).as_default():
                    summaries.spectrograms("spectrograms", self.encoder, paths, self.samples, -1)


class HParams(keras.callbacks.Callback):
    """Makes the run a row of TensorBoard's HParams table: its flags against its EER, minDCF and loss.

    The row lies in the run's own folder, whose name it takes, and a resumed run has one. Its metrics are scalars in the
    same place, `eer`, `best_eer`, `min_dcf` and `loss`, since the plugin does not find those of validation/ where the
    run's folder is TensorBoard's logdir itself.

    Args:
      events: the EventFiles.
      columns: an HParam for each column of the table, also those of other runs.
      values: name -> value of the flags of this run.
      best_eer: as of Checkpoints.
    """

    METRICS = ("best_eer", "eer", "min_dcf", "loss")

    def __init__(self, events, columns, values, best_eer=float("inf")):
        super().__init__()
        self.events = events
        self.columns = columns
        self.values = values
        self.best_eer = best_eer

    def on_train_begin(self, logs=None):
        shown = [hparams.Metric(name, display_name=name) for name in self.METRICS]
        # Without a name for a group of runs, each run has its own row.
        self._write(hparams.hparams_config_pb(self.columns, shown), hparams.hparams_pb(self.values, trial_id=""))

    def on_epoch_end(self, epoch, logs=None):
        values = {"loss": logs["loss"]}
        if "val_eer" in logs:
            self.best_eer = min(self.best_eer, logs["val_eer"])
            values |= {"best_eer": self.best_eer, "eer": logs["val_eer"], "min_dcf": logs["val_min_dcf"]}
        with self.events.writer("").as_default(epoch):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def on_train_end(self, logs=None):
        self._write(session_end_pb(STATUS_SUCCESS))

    def _write(self, *protos):
        with self.events.writer("").as_default():
            for proto in protos:
                tf.summary.experimental.write_raw_pb(proto.SerializeToString(), step=0)


class History(keras.callbacks.Callback):
    """Adds the logs of each epoch to the run's history.csv."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def on_epoch_end(self, epoch, logs=None):
        self.run.record_epoch(epoch, logs)


class FiniteLoss(keras.callbacks.Callback):
    """Ends training with FloatingPointError at the first step whose loss is not finite, and names its recordings.

    Args:
      run: the run.Run, whose last checkpoint is then that of the epoch before.
      corpus, sampler: say which recordings a step was of.
      done: steps of the run before this start.
    """

    def __init__(self, run, corpus, sampler, done):
        super().__init__()
        self.run = run
        self.corpus = corpus
        self.sampler = sampler
        self.step = done

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]):  # the epoch's mean, which a single step spoils
            paths = "\n  ".join(sorted({self.corpus.paths[index] for index in self.sampler(self.step)}))
            raise FloatingPointError(
                f"the loss is {logs['loss']} at step {self.step}, with a learning rate of "
                f"{float(self.model.optimizer.learning_rate):.3g}; {self.run.folder} keeps the state of the epoch "
                f"before. Lower --learning_rate, or look at the recordings of that step:\n  {paths}"
            )
        self.step += 1


class Profile(keras.callbacks.Callback):
    """Writes a profile of steps `first` to `last` of the run into its folder, for TensorBoard's profile plugin.

    Args:
      done: steps of the run before this start.
    """

    def __init__(self, folder, done, first, last):
        super().__init__()
        self.folder = folder
        self.step = done
        self.first = max(first, done)
        self.last = last

    def on_train_batch_begin(self, batch, logs=None):
        if self.step == self.first <= self.last:
            tf.profiler.experimental.start(str(self.folder))

    def on_train_batch_end(self, batch, logs=None):
        if self.step == self.last:
            tf.profiler.experimental.stop()
            logging.info("Profiled steps %d to %d: tensorboard --logdir=%s", self.first, self.last, self.folder)
        self.step += 1


class MarginWarmUp(keras.callbacks.Callback):
    """Raises the margin of a classification loss linearly from 0 over the first `steps` steps of the run.

    Args:
      loss: a losses.AdditiveMarginLoss or its relative, whose `margin` is a variable.
      done: steps of the run before this start.
    """

    def __init__(self, loss, margin, steps, done):
        super().__init__()
        self.loss = loss
        self.margin = margin
        self.steps = steps
        self.step = done

    def on_train_batch_begin(self, batch, logs=None):
        if self.step <= self.steps:
            self.loss.margin.assign(self.margin * self.step / self.steps)
        self.step += 1


class AveragedWeights(keras.callbacks.Callback):
    """Puts the averaged weights into the model at the end of an epoch, for the callbacks after it, and takes them out.

    A checkpoint holds the averages as weights and the weights as averages; the next epoch's beginning puts both right.
    """

    def __init__(self, average):
        super().__init__()
        self.average = average

    def on_epoch_begin(self, epoch, logs=None):
        if self.average.steps.numpy():  # not before a run's first step
            self.average.swap()

    def on_epoch_end(self, epoch, logs=None):
        self.average.swap()


class EarlyStopping(keras.callbacks.Callback):
    """Ends training after `patience` epochs without a lower EER, by the run's history, a killed run's as well."""

    def __init__(self, run, patience):
        super().__init__()
        self.run = run
        self.patience = patience

    def on_epoch_end(self, epoch, logs=None):
        if self.run.has_stopped_early(self.patience):
            logging.info("Stopping: the EER has not fallen for %d epochs.", self.patience)
            self.model.stop_training = True


class InStep(keras.callbacks.Callback):
    """Keeps workers together at the end of an epoch and of training. Comes last, on each of them.

    They wait for what the chief alone does, and end training after the epoch after which the chief ends it.
    """

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = bool(devices.from_chief(self.model.distribute_strategy, self.model.stop_training))

    def on_train_end(self, logs=None):
        devices.from_chief(self.model.distribute_strategy, 0)


class StepTimer(keras.callbacks.Callback):
    """Measures what a step takes, and ends training as soon as that is known.

    Attributes, afterwards:
      first_step: seconds until the first step was done, in which the step is compiled.
      seconds_per_step: mean of the steps after the first SKIPPED, whose batches may have waited in the buffer.
    """

    STEPS, SKIPPED, ENOUGH = 24, 4, 20.0  # steps at most, and seconds after which one measured step is enough

    def on_train_begin(self, logs=None):
        self.times = [time.monotonic()]

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.monotonic())
        skipped = min(self.SKIPPED, len(self.times) - 2)
        measured = self.times[-1] - self.times[skipped]
        self.first_step = self.times[1] - self.times[0]
        if skipped:
            self.seconds_per_step = measured / (len(self.times) - 1 - skipped)
            self.model.stop_training = measured > self.ENOUGH


class Checkpoints(keras.callbacks.Callback):
    """Saves the state of training, the encoder, and the encoder of the best EER so far, at the end of each epoch.

    Comes last, so that whatever the others write of an epoch is there once its checkpoint is. Within an epoch, the
    state of training alone is saved every EVERY seconds.

    After a SIGTERM, which schedulers send before they end a job, it saves once more after the step, or the end of an
    epoch, that is going on, and raises Terminated.

    Args:
      run: the run.Run to save into.
      model: the model that is trained.
      encoder: the encoder inside it.
      class_names: of the layer "classifier", whose weights are then kept by name; None without one.
      best_eer: the lowest EER of the epochs before this start.
    """

    EVERY = 600.0
    terminated = threading.Event()  # of the process

    def __init__(self, run, model, encoder, class_names=None, best_eer=float("inf")):
        super().__init__()
        self.run = run
        self.encoder = encoder
        self.classifier = model.get_layer("classifier") if class_names else None
        self.class_names = class_names
        self.best_eer = best_eer

    def on_train_begin(self, logs=None):
        signal.signal(signal.SIGTERM, lambda *_: self.terminated.set())
        self.saved = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.params["steps"]:
            return  # the epoch is not over before the other callbacks have seen its end
        if self.terminated.is_set() or time.monotonic() > self.saved + self.EVERY:
            self._save_within_epoch()

    def on_epoch_end(self, epoch, logs=None):
        # Whatever it is trained in: float32 is right on every machine.
        encoder = SpeakerEncoder(with_precision(self.encoder, "float32"))
        self.run.save(encoder.save, "encoder.keras")
        if logs.get("val_eer", float("inf")) < self.best_eer:
            self.best_eer = logs["val_eer"]
            self.run.save(encoder.save, "encoder_best.keras")
        if self.classifier:
            self.run.save(self._save_classifier, "classifier.npz")
        self._save_state()

    def _save_within_epoch(self):
        average = self.model.weight_average
        if average:  # a checkpoint has them exchanged; see AveragedWeights
            average.swap()
        self._save_state()
        if average:
            average.swap()

    def _save_state(self):
        self.run.save(self.model.save_weights, "checkpoint.weights.h5")
        self.saved = time.monotonic()
        if self.terminated.is_set():
            step = self.model.steps_done
            raise Terminated(f"terminated after step {step}, which is saved: the same command goes on from there")

    def _save_classifier(self, path):
        weights = {f"weight_{number}": value for number, value in enumerate(self.classifier.get_weights())}
        with open(path, "wb") as file:
            np.savez(file, names=np.array(self.class_names), **weights)
