import threading

import keras
import numpy as np
import pytest

from vggvox_tf import encoders, mining, sampling, scoring
from vggvox_tf.corpus import read_corpus
from vggvox_tf.run import Run
from vggvox_tf.speaker_encoder import SpeakerEncoder


def test_closest_pairs_are_the_closest_of_different_speakers(monkeypatch):
    """Of 20,000 draws over 12 vectors every pair of different speakers turns up; the closest hundredth is one pair."""
    monkeypatch.setattr(mining, "PAIRS", 20_000)
    monkeypatch.setattr(mining, "BLOCK", 999)
    random = np.random.default_rng(0)
    vectors = scoring.unit_length(random.normal(size=(12, 4)))
    speakers = np.repeat(np.arange(4), 3)
    pairs = mining.closest_pairs(vectors, speakers, 0.01, random)
    assert (speakers[pairs[:, 0]] != speakers[pairs[:, 1]]).all()
    cosines = np.where(speakers[:, None] == speakers, -2, vectors @ vectors.T)
    a, b = np.unravel_index(cosines.argmax(), cosines.shape)
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} >= {(min(a, b), max(a, b))}
    kept = cosines[pairs[:, 0], pairs[:, 1]]
    assert (np.diff(kept) <= 1e-12).all()
    every = cosines[np.triu_indices(12, 1)]
    assert kept.min() >= np.quantile(every[every > -2], 0.9)


def test_a_step_waits_for_the_pairs_of_its_round():
    mined = mining.MinedPairs(steps=10)
    mined.put(0, np.array([[0, 1]]))
    np.testing.assert_array_equal(mined(9), [[0, 1]])
    arrived = []
    waiting = threading.Thread(target=lambda: arrived.append(mined(10)), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive() and not arrived
    mined.put(1, np.array([[2, 3]]))
    waiting.join(10)
    np.testing.assert_array_equal(arrived[0], [[2, 3]])
    np.testing.assert_array_equal(mined(9), [[0, 1]])  # a step of the round before may still be asked for


def test_sampler_draws_its_negatives_from_the_mined_pairs(tiny_corpus):
    corpus = read_corpus(tiny_corpus)
    mined = mining.MinedPairs(steps=5)
    pairs = np.array([[0, 35], [1, 34], [2, 33]])
    mined.put(0, pairs)
    sampler = sampling.PairSampler(corpus, 8, 0.5, seed=0, mined=mined)
    assert sampler.batch_size == 16
    a, b = np.split(sampler(3), 2)
    same = corpus.speakers[a] == corpus.speakers[b]
    assert same.tolist() == [True] * 4 + [False] * 4
    assert {tuple(pair) for pair in np.stack([a, b], 1)[4:].tolist()} <= {tuple(pair) for pair in pairs.tolist()}
    np.testing.assert_array_equal(sampler(3), np.concatenate([a, b]))


@pytest.fixture
def callback(tiny_corpus, tmp_path):
    def build(first_epoch=0, every=2):
        keras.utils.set_random_seed(0)
        encoder = encoders.build_encoder("vggm", 0.03, 257, compression="log")
        run = Run(tmp_path / "run", {})
        mined = mining.MinedPairs(steps=10 * every)
        return mining.Mining(run, encoder, read_corpus(tiny_corpus), mined, 0.01, 0, every, 5, first_epoch)

    return build


def test_callback_mines_what_the_encoder_confuses_and_keeps_it_for_a_resumed_run(callback, monkeypatch):
    monkeypatch.setattr(mining, "PAIRS", 10_000)
    first = callback()
    first.on_train_begin()
    pairs = first.mined(0)
    corpus = first.corpus
    assert len(pairs) == pytest.approx(10_000 * 30 / 36 * 0.01, rel=0.05)
    vectors = scoring.unit_length(SpeakerEncoder(first.encoder.model).embed_files(corpus.paths, corpus.root))
    cosines = np.where(corpus.speakers[:, None] == corpus.speakers, -2, vectors @ vectors.T)
    assert cosines[pairs[0, 0], pairs[0, 1]] == pytest.approx(cosines.max(), abs=1e-5)

    first.on_epoch_end(0)  # amid a round of two epochs
    assert 1 not in first.mined._rounds
    resumed = callback(first_epoch=1)
    monkeypatch.setattr(resumed, "_mine", lambda number: pytest.fail("mined again what was kept"))
    resumed.on_train_begin()
    np.testing.assert_array_equal(resumed.mined(19), pairs)

    first.on_epoch_end(1)
    assert not np.array_equal(first.mined(20), pairs)  # the same weights, other draws
    killed = callback(first_epoch=2)  # after the checkpoint: finds the new round's pairs
    killed.on_train_begin()
    np.testing.assert_array_equal(killed.mined(20), first.mined(20))
