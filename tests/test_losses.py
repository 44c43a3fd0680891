import keras
import numpy as np
import pytest
import tensorflow as tf

from vggvox_tf import losses

# Four embeddings of speakers 0, 0, 1, 1 on a line at 0, 1, 3, 4. Distances: 0–1: 1, 0–2: 3, 0–3: 4, 1–2: 2, 1–3: 3,
# 2–3: 1. Positive pairs: (0, 1) and (2, 3).
LINE = tf.constant([[0.0], [1.0], [3.0], [4.0]])
SPEAKERS = tf.constant([[0], [0], [1], [1]])


def test_contrastive_by_hand():
    """margin 2: same at 0.5 → 0.25; other at 0.5 → (2 − 0.5)² = 2.25; other at 3 → 0; same at 0 → 0."""
    result = losses.contrastive(tf.constant([0.5, 0.5, 3.0, 0.0]), tf.constant([1, 0, 0, 1]), 2.0)
    np.testing.assert_allclose(result, [0.25, 2.25, 0.0, 0.0])


def test_all_distances_agree_with_scipy():
    from scipy.spatial.distance import cdist

    x = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    np.testing.assert_allclose(losses.all_distances(x), cdist(x, x), atol=1e-3)
    np.testing.assert_allclose(losses.paired_distances(x[:10], x[10:]), np.diag(cdist(x[:10], x[10:])), atol=1e-5)


def test_gradient_is_finite_where_embeddings_coincide():
    for distances in (losses.all_distances, lambda x: losses.paired_distances(x[:1], x[1:])):
        x = tf.Variable([[0.6, 0.8], [0.6, 0.8]])
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(losses.contrastive(distances(x), 0, 1.0))
        assert np.isfinite(tape.gradient(loss, x)).all()


@pytest.mark.parametrize(
    "share, expected",
    [
        (1.0, [(0, 2), (0, 3), (1, 2), (1, 3)]),
        (0.25, [(1, 2)]),  # one of four
        (0.01, [(1, 2)]),  # at least one
        (0.5, [(0, 2), (1, 2), (1, 3)]),  # two of four, and (1, 3) is as far apart as (0, 2)
    ],
)
def test_hardest_negatives_by_hand(share, expected):
    same = tf.equal(SPEAKERS, tf.transpose(SPEAKERS))
    positives, negatives = losses.hardest_negatives(losses.all_distances(LINE), same, share)
    assert np.argwhere(positives).tolist() == [[0, 1], [2, 3]]
    assert [tuple(pair) for pair in np.argwhere(negatives)] == expected


def test_hardest_negatives_of_a_batch_of_one_speaker():
    same = tf.ones([3, 3], tf.bool)
    positives, negatives = losses.hardest_negatives(losses.all_distances(LINE[:3]), same, 0.1)
    assert np.argwhere(positives).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert not np.any(negatives)


def test_contrastive_loss_pairs_the_halves():
    """Rows 0–2 and 1–3: speakers (0, 1) at 3 and (0, 1) at 3. Margin 4: both (4 − 3)² = 1."""
    assert float(losses.ContrastiveLoss(4.0)(SPEAKERS, LINE)) == pytest.approx(1.0)
    """Rows 0–1 and 2–3 instead: the same speakers at 1: 1² = 1."""
    order = [0, 2, 1, 3]
    result = losses.ContrastiveLoss(4.0)(tf.gather(SPEAKERS, order), tf.gather(LINE, order))
    assert float(result) == pytest.approx(1.0)


def test_hard_negative_loss_by_hand():
    """Positives 1² and 1²: mean 1. Hardest quarter of the negatives: (1, 2) at 2, margin 5: 9. (1 + 9) / 2 = 5."""
    loss = losses.HardNegativeContrastiveLoss(margin=5.0, hardest_share=0.25)
    assert float(loss(SPEAKERS, LINE)) == pytest.approx(5.0, rel=1e-5)
    assert float(tf.function(loss)(SPEAKERS, LINE)) == pytest.approx(5.0, rel=1e-5)


def test_pair_metrics_by_hand():
    """All six pairs: positive 1 and 1; negative 3, 4, 2 and 3, of which margin 3 leaves one with a loss: 3 of 6.

    As drawn pairs: rows 0–2 and 1–3, both negative and 3 apart, no loss at margin 3 and no positive pair.
    """
    for pairs, active, positive, negative in ((losses.all_pairs, 3 / 6, 1, 3), (losses.drawn_pairs, 0, 0, 3)):
        assert float(losses.active_pairs(SPEAKERS, LINE, pairs, margin=3.0)) == active
        assert float(losses.positive_distance(SPEAKERS, LINE, pairs)) == pytest.approx(positive)
        assert float(losses.negative_distance(SPEAKERS, LINE, pairs)) == pytest.approx(negative)
    """Two positive pairs at 1 and a negative one that coincides: all have a loss."""
    speakers, embeddings = tf.constant([0, 1, 2, 0, 1, 3]), tf.constant([[0.0], [3.0], [9.0], [1.0], [4.0], [9.0]])
    assert float(losses.active_pairs(speakers, embeddings, losses.drawn_pairs, 1.0)) == 1
    assert float(losses.positive_distance(speakers, embeddings, losses.drawn_pairs)) == 1
    assert float(losses.negative_distance(speakers, embeddings, losses.drawn_pairs)) == 0


def test_a_perfect_and_an_all_wrong_batch():
    perfect = tf.constant([[0.0], [0.0], [9.0], [9.0]])
    wrong = tf.constant([[0.0], [9.0], [0.0], [9.0]])
    loss = losses.HardNegativeContrastiveLoss(margin=2.0, hardest_share=0.5)
    assert float(loss(SPEAKERS, perfect)) == 0.0
    """Both positives 81; the two negatives at 0 cost 2² = 4 each: (81 + 4) / 2."""
    assert float(loss(SPEAKERS, wrong)) == pytest.approx(42.5, rel=1e-5)


@pytest.mark.parametrize(
    "loss", [losses.ContrastiveLoss(0.7), losses.HardNegativeContrastiveLoss(0.7, 0.3)], ids=lambda loss: loss.name
)
def test_losses_come_back_from_their_configuration(loss):
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert copy.get_config() == loss.get_config()
    assert float(copy(SPEAKERS, LINE)) == float(loss(SPEAKERS, LINE))
