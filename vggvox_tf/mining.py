"""Offline mining of negative pairs, as in VoxCeleb2: the closest of many random pairs of different speakers.

At a set interval the encoder as it is then embeds training recordings, and the pairs that it confuses most become the
negative pairs of the steps that follow (Chung et al. 2018, section 3.3, which keep the closest 1 %).
"""

import threading
import time

import keras
import numpy as np
from absl import logging

from vggvox_tf import sampling, scoring
from vggvox_tf.speaker_encoder import SpeakerEncoder

# Recordings embedded, and pairs drawn from them, each time. 20,000 recordings have 2·10⁸ pairs, of which a million is
# a sample that holds 10,000 in its closest 1 %: more than an epoch of 300 steps of 32 negative pairs uses.
RECORDINGS = 20_000
PAIRS = 1_000_000
BLOCK = 2**14  # pairs whose vectors are in memory at a time


def closest_pairs(embeddings, speakers, share, random):
    """The closest `share` of PAIRS random pairs of different speakers.

    Args:
      embeddings: (N, D) of unit length.
      speakers: (N,), two different ones at least.
      random: numpy Generator.

    Returns:
      int64 (M, 2), rows of `embeddings`, closest first.
    """
    pairs = random.integers(len(embeddings), size=(PAIRS, 2))
    pairs = pairs[speakers[pairs[:, 0]] != speakers[pairs[:, 1]]]
    cosines = np.concatenate(
        [
            np.einsum("nd,nd->n", embeddings[block[:, 0]], embeddings[block[:, 1]])
            for block in np.split(pairs, range(BLOCK, len(pairs), BLOCK))
        ]
    )
    kept = max(1, round(share * len(pairs)))
    return pairs[np.argsort(-cosines, kind="stable")[:kept]]


class MinedPairs:
    """Mined pairs by round, of `steps` steps each; called with a step, waits for the pairs (M, 2) of its round.

    The input pipeline asks for batches ahead of training: it waits here until the callback has mined.
    """

    def __init__(self, steps):
        self.steps = steps
        self._rounds = {}
        self._arrived = threading.Condition()

    def __call__(self, step):
        number = step // self.steps
        with self._arrived:
            self._arrived.wait_for(lambda: number in self._rounds)
            return self._rounds[number]

    def put(self, number, pairs):
        """Pairs of a round; those of rounds before the last are forgotten."""
        with self._arrived:
            self._rounds = {n: p for n, p in self._rounds.items() if n == number - 1} | {number: pairs}
            self._arrived.notify_all()


class Mining(keras.callbacks.Callback):
    """Mines negative pairs before the first epoch of each round.

    Comes after Checkpoints: what is mined comes from the weights of the checkpoint, so that a run killed in between
    mines the same again. The pairs are kept in the run's folder for a run that is killed later in the round.

    Args:
      run: the run.Run to save into.
      encoder: the Keras model of the encoder, inside the model that is trained.
      mined: the MinedPairs that the sampler draws from.
      share: of the random pairs, closest first, to keep.
      every: epochs of a round.
      epochs: of the run.
      first_epoch: the first that is trained after this start.
    """

    def __init__(self, run, encoder, corpus, mined, share, seed, every, epochs, first_epoch):
        super().__init__()
        self.run = run
        self.encoder = SpeakerEncoder(encoder)
        self.corpus = corpus
        self.mined = mined
        self.every = every
        self.share = share
        self.seed = seed
        self.epochs = epochs
        self.first_epoch = first_epoch

    def on_train_begin(self, logs=None):
        number = self.first_epoch // self.every
        path = self.run.folder / "mined_pairs.npz"
        if path.exists():
            with np.load(path) as kept:
                if kept["round"] == number:
                    self.mined.put(number, kept["pairs"])
                    return
        self._mine(number)

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0 and epoch + 1 < self.epochs:
            self._mine((epoch + 1) // self.every)

    def _mine(self, number):
        start = time.monotonic()
        random = sampling.generator(self.seed, sampling.MINING, number)
        chosen = np.sort(random.permutation(len(self.corpus))[:RECORDINGS])
        errors = {}
        embeddings = self.encoder.embed_files(self.corpus.paths[chosen], self.corpus.root, errors=errors)
        usable = np.setdiff1d(np.arange(len(chosen)), list(errors))
        chosen, embeddings = chosen[usable], scoring.unit_length(embeddings[usable])
        pairs = chosen[closest_pairs(embeddings, self.corpus.speakers[chosen], self.share, random)]
        self.run.save(lambda path: save_pairs(path, number, pairs), "mined_pairs.npz")
        self.mined.put(number, pairs)
        logging.info(
            "Mined %s negative pairs among %s recordings (%.1f s).",
            f"{len(pairs):,}", f"{len(chosen):,}", time.monotonic() - start,
        )  # fmt: skip


def save_pairs(path, number, pairs):
    """Writes a round's pairs to a .npz file of any name."""
    with open(path, "wb") as file:
        np.savez(file, round=number, pairs=pairs)
