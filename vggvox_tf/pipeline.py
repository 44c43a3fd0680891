"""The input pipeline: step numbers → utterance indices → decoded crops → batches of waveforms, by tf.data.

step n ──sampler──► indices (N,) ──Recordings.crops, in parallel──► waveforms (N, samples), class ids (N,)
"""

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
      processes: decoding.Processes that decode; None: the calling thread does.
      cache: decode each recording once, as a whole, and keep it in memory: 2 bytes a sample, 115 MB an hour.
    """

    def __init__(self, corpus, samples, max_bad_share, processes=None, cache=False):
        self.corpus = corpus
        self.samples = samples
        self.max_bad_share = max_bad_share
        self.processes = processes
        self.bad = {}  # index -> what is wrong with it
        self.failure = None  # the error that ended reading; TensorFlow hands on its text only
        self._whole = {} if cache else None  # index -> int16 (n,)
        self._tried = np.zeros(len(corpus), bool)
        self._lock = threading.Lock()

    def crops(self, indices, positions):
        """Crops of recordings, or of the next usable ones.

        Args:
          indices: int (N,).
          positions: (N,), where the crops lie, from 0 (the beginning of the recording) to just below 1 (its end).

        Returns:
          int16 (N, samples), and int (N,), the recordings that were read.
        """
        used = np.array(indices)
        crops, missing = None, np.arange(len(used))
        while missing.size:
            used[missing] = [self._usable(index) for index in used[missing]]
            self._tried[used[missing]] = True
            loaded, errors = self._load(used[missing], positions[missing])
            if crops is None:
                crops = loaded
            else:
                crops[missing] = loaded
            for row, error in errors.items():
                self._note_bad(int(used[missing[row]]), error)
            missing = missing[sorted(errors)]
        return crops, used

    def _usable(self, index):
        """The next recording, from `index` on, that is not known to be bad."""
        while True:
            if self.failure:  # another thread's: without it, this one would look for a good recording for ever
                raise self.failure
            if index not in self.bad:
                return index
            index = (index + 1) % len(self.corpus)

    def _path(self, index):
        return str(self.corpus.root / self.corpus.paths[index])

    def _load(self, indices, positions):
        """int16 (N, samples), and the AudioErrors by row."""
        if self._whole is None:
            load = self.processes.load_crops if self.processes else audio.load_crops
            return load(
                [str(self.corpus.root / self.corpus.paths[index]) for index in indices], positions, self.samples
            )
        crops, errors = np.empty((len(indices), self.samples), np.int16), {}
        for row, (index, position) in enumerate(zip(indices.tolist(), positions, strict=True)):
            try:
                if index not in self._whole:
                    self._whole[index] = audio.to_pcm16(audio.load(self._path(index)))
                crops[row] = audio.crop_of(self._whole[index], position, self.samples, audio.SILENCE * audio.FULL_SCALE)
            except audio.AudioError as error:
                errors[row] = error
        return crops, errors

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


def dataset(recordings, sampler, seed, first_step, last_step, voices=None, part=(0, 1), replicas=1):
    """Batches of steps first_step … last_step − 1: waveforms (N, samples) as 16-bit PCM, int32 class ids (N,).

    The order and the crops depend on the seed and the step only, also with parallel decoding. Of several workers each
    decodes its own rows of the same batches.

    Args:
      voices: int (N,), which of its V voices a speaker has in each row of a batch, where recordings played faster or
        slower count as other speakers; the class is then V · speaker + voice. None: the class is the speaker.
      part: which of how many equal parts of each batch: worker number and workers.
      replicas: of all workers; a batch comes as one of N / replicas rows after the other.
    """
    worker, workers = part
    size = sampler.batch_size // replicas
    rows = np.arange(sampler.batch_size).reshape(workers, -1, size)[worker]  # (this worker's replicas, size)
    voices = np.zeros(sampler.batch_size, np.int32) if voices is None else np.asarray(voices, np.int32)
    classes = recordings.corpus.speakers * (voices.max() + 1)

    def plan(step):
        positions = sampling.generator(seed, sampling.CROPS, int(step)).random(sampler.batch_size)
        return sampler(int(step))[rows], positions[rows], voices[rows]

    def crops(indices, positions, voices):
        waveforms, used = recordings.crops(indices, positions)
        return waveforms, classes[used] + voices

    def plan_op(step):
        return tf.numpy_function(plan, [step], [tf.int64, tf.float64, tf.int32], stateful=False)

    def crops_op(*plan):
        waveforms, labels = tf.numpy_function(crops, plan, [tf.int16, tf.int32], stateful=False)
        return tf.ensure_shape(waveforms, [size, recordings.samples]), tf.ensure_shape(labels, [size])

    # In this process one thread: several would wait for each other, under Python's lock, more than they gain.
    threads = recordings.processes.number if recordings.processes else 1
    options = tf.data.Options()
    # Decoding has threads of its own, so that it neither waits for the model's operations nor takes theirs. One more is
    # for a plan that waits for mined pairs: with its map not made parallel, no more than one plan waits at a time.
    options.threading.private_threadpool_size = threads + 1
    options.experimental_optimization.map_parallelization = False
    return (
        tf.data.Dataset.range(first_step, last_step)
        .map(plan_op)
        .unbatch()
        .map(crops_op, num_parallel_calls=threads, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )
