"""The input pipeline: step numbers → utterance indices → decoded crops → batches of waveforms, by tf.data.

step n ──sampler──► indices (N,) ──audio.load_crop, in parallel──► waveforms (N, samples), class ids (N,)
"""

import os
import threading

import numpy as np
import tensorflow as tf
from absl import logging

from vggvox_tf import audio, sampling

# Below this many files tried, the share of bad ones says little: with a limit of 10 %, ten bad files are always borne.
FILES_BEFORE_JUDGING = 100


class TooManyBadFilesError(RuntimeError):
    """More than the set share of the training recordings could not be used."""


class Recordings:
    """Reads crops of a corpus's recordings, and keeps account of those that cannot be used.

    A bad recording is replaced by the next usable one in the order of the corpus, almost always one of the same
    speaker; the index that is returned says which was read, so labels always fit. The replacement depends on the
    files alone, so a step's batch is the same whenever it is computed.

    Args:
      corpus: a corpus.Corpus.
      samples: length of the crops, in 16 kHz samples.
      max_bad_share: stop when more than this share of the recordings tried so far is bad.
    """

    def __init__(self, corpus, samples, max_bad_share):
        self.corpus = corpus
        self.samples = samples
        self.max_bad_share = max_bad_share
        self.bad = {}  # index -> what is wrong with it
        self.failure = None  # the error that ended reading; TensorFlow hands on its text only
        self._tried = np.zeros(len(corpus), bool)
        self._lock = threading.Lock()

    def crop(self, index, position):
        """A crop (samples,) float32 of recording `index`, or of the next usable one, and the index of that one.

        Args:
          position: where the crop lies, from 0 (the beginning of the recording) to just below 1 (its end).
        """
        while True:
            if self.failure:  # another thread's: without it, this one would look for a good recording for ever
                raise self.failure
            if index not in self.bad:
                self._tried[index] = True
                try:
                    path = self.corpus.root / self.corpus.paths[index]
                    return audio.load_crop(path, position, self.samples), index
                except audio.AudioError as error:
                    self._note_bad(index, error)
            index = (index + 1) % len(self.corpus)

    def _note_bad(self, index, error):
        with self._lock:
            if index not in self.bad:
                self.bad[index] = str(error)
                logging.warning("Skipping a bad recording: %s", error)
            tried = int(self._tried.sum())
            if len(self.bad) > self.max_bad_share * max(tried, FILES_BEFORE_JUDGING) or len(self.bad) == len(
                self.corpus
            ):
                self.failure = TooManyBadFilesError(
                    f"{len(self.bad)} of the {tried} recordings tried are bad, more than --max_bad_share="
                    f"{self.max_bad_share:g} allows. The last: {error}. Check that the corpus lies where --corpus and "
                    "--corpus_root say, or leave the bad files out of the manifest."
                )
                raise self.failure


def dataset(recordings, sampler, seed, first_step, last_step, voices=None, threads=None, part=(0, 1), replicas=1):
    """Batches of steps first_step … last_step − 1: float32 waveforms (N, samples), int32 class ids (N,).

    The order and the crops depend on the seed and the step only, also with parallel decoding. Of several workers each
    decodes its own rows of the same batches.

    Args:
      voices: int (N,), which of its V voices a speaker has in each row of a batch, where recordings played faster or
        slower count as other speakers; the class is then V · speaker + voice. None: the class is the speaker.
      threads: that decode; None: as many as there are cores.
      part: which of how many equal parts of each batch: worker number and workers.
      replicas: of all workers; a batch comes as one of N / replicas rows after the other.
    """
    worker, workers = part
    rows = slice(*(sampler.batch_size * np.array([worker, worker + 1]) // workers))
    voices = np.zeros(sampler.batch_size, np.int32) if voices is None else np.asarray(voices, np.int32)
    classes = recordings.corpus.speakers * (voices.max() + 1)

    def plan(step):
        positions = sampling.generator(seed, sampling.CROPS, int(step)).random(sampler.batch_size)
        return sampler(int(step))[rows], positions[rows], voices[rows]

    def crop(index, position, voice):
        waveform, used = recordings.crop(int(index), float(position))
        return waveform, classes[used] + voice

    def plan_op(step):
        return tf.numpy_function(plan, [step], [tf.int64, tf.float64, tf.int32], stateful=False)

    def crop_op(*plan):
        waveform, label = tf.numpy_function(crop, plan, [tf.float32, tf.int32], stateful=False)
        return tf.ensure_shape(waveform, [recordings.samples]), tf.ensure_shape(label, [])

    options = tf.data.Options()
    # Decoding has threads of its own, so that it neither waits for the model's operations nor takes theirs. One more is
    # for a plan that waits for mined pairs: with its map not made parallel, no more than one plan waits at a time.
    options.threading.private_threadpool_size = (threads or os.cpu_count()) + 1
    options.experimental_optimization.map_parallelization = False
    return (
        tf.data.Dataset.range(first_step, last_step)
        .map(plan_op)
        .unbatch()
        .map(crop_op, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(sampler.batch_size // replicas, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )
