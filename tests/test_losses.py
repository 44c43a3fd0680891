import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.spatial.distance import cdist

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
    x = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    np.testing.assert_allclose(losses.all_distances(x), cdist(x, x), atol=1e-6)
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
    loss = losses.MinedContrastiveLoss(margin=5.0, hardest_share=0.25)
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
    loss = losses.MinedContrastiveLoss(margin=2.0, hardest_share=0.5)
    assert float(loss(SPEAKERS, perfect)) == 0.0
    """Both positives 81; the two negatives at 0 cost 2² = 4 each: (81 + 4) / 2."""
    assert float(loss(SPEAKERS, wrong)) == pytest.approx(42.5, rel=1e-5)


# Speakers 0, 0, 1, 1 at 0, 2.5, 3, 4. Distances: 0–1: 2.5, 0–2: 3, 0–3: 4, 1–2: 0.5, 1–3: 1.5, 2–3: 1.
MIXED = tf.constant([[0.0], [2.5], [3.0], [4.0]])


def test_half_hard_by_hand():
    """Positives: mean 1. Negatives at margin 5: 4, 1, 9, 4, mean 4.5; the hardest quarter 9. (1 + (4.5 + 9)/2) / 2."""
    loss = losses.MinedContrastiveLoss(5.0, "half_hard", 0.25)
    assert float(loss(SPEAKERS, LINE)) == pytest.approx(3.875, rel=1e-5)


def test_semi_hard_by_hand():
    """Closest positives 2.5, 2.5, 1, 1, so (1, 2) at 0.5 is nearer than either's and left out.

    At margin 3.5, (0, 3) at 4 is beyond it and left out as well. The others, (0, 2) and (1, 3): 0.5² = 0.25, 2² = 4,
    mean 2.125; positives 6.25 and 1, mean 3.625.
    """
    loss = losses.MinedContrastiveLoss(3.5, "semi_hard")
    assert float(loss(SPEAKERS, MIXED)) == pytest.approx((2.125 + 3.625) / 2, rel=1e-5)
    """Where every negative is nearer than the positives there is none: positives at 9, negatives at 0."""
    wrong = tf.constant([[0.0], [9.0], [0.0], [9.0]])
    assert float(loss(SPEAKERS, wrong)) == pytest.approx(81 / 2)


@pytest.mark.parametrize(
    "mining, embeddings, expected",
    [
        ("hard", LINE, (0 + 1 + 1 + 0) / 4),  # 1 − 3 + 2, 1 − 2 + 2, 1 − 2 + 2, 1 − 3 + 2
        ("random", LINE, (0 + 0 + 1 + 0 + 0 + 1 + 0 + 0) / 8),  # negatives at 3 and 4, 2 and 3, 3 and 2, 4 and 3
        # Negatives 3; none beyond 2.5, so the furthest, 1.5; 3; 1.5: 2.5 − 3 + 2, 2.5 − 1.5 + 2, 1 − 3 + 2, 1 − 1.5 + 2
        ("semi_hard", MIXED, (1.5 + 3 + 0 + 1.5) / 4),
    ],
)
def test_triplet_by_hand(mining, embeddings, expected):
    assert float(losses.TripletLoss(2.0, mining)(SPEAKERS, embeddings)) == pytest.approx(expected, rel=1e-5)


def test_trihard_by_hand():
    """Furthest positives 1, closest negatives 3, 2, 2, 3: at margin 2 0, 1, 1, 0; softly ln(1 + e⁻²), ln(1 + e⁻¹)."""
    assert float(losses.TriHardLoss(2.0)(SPEAKERS, LINE)) == pytest.approx(0.5, rel=1e-5)
    soft = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 2
    assert float(losses.TriHardLoss(soft=True)(SPEAKERS, LINE)) == pytest.approx(soft, rel=1e-5)


def test_quadruplet_by_hand():
    """Speakers 0, 0, 1, 1, 2 at 0, 1, 3, 4, 9; margins 3 and 5; the last has no positive and is no anchor.

    Closest negatives 3, 2, 2, 3: 1, 2, 2, 1. Closest others: of 1 and 2 at 5, twice, of 0 and 2 at 8: 1, 1, 0, 0.
    """
    loss = losses.QuadrupletLoss(3.0, 5.0)
    line = tf.concat([LINE, [[9.0]]], axis=0)
    assert float(loss([0, 0, 1, 1, 2], line)) == pytest.approx((2 + 3 + 2 + 1) / 4, rel=1e-5)
    """Of two speakers there are no two others: the triplet term alone."""
    assert float(loss(SPEAKERS, LINE)) == pytest.approx((1 + 2 + 2 + 1) / 4, rel=1e-5)


def test_msml_by_hand():
    """Furthest positive 1, closest negative 2: 1 − 2 + 2 = 1; on MIXED 2.5 − 0.5 + 2 = 4."""
    assert float(losses.MSMLLoss(2.0)(SPEAKERS, LINE)) == pytest.approx(1.0, rel=1e-5)
    assert float(losses.MSMLLoss(2.0)(SPEAKERS, MIXED)) == pytest.approx(4.0, rel=1e-5)


def numpy_loss(loss, speakers, x):
    """The metric losses once more, in loops, from their definitions."""
    n = len(x)
    d = np.sqrt(((x[:, None] - x[None]) ** 2).sum(axis=2))
    positives = [[j for j in range(n) if j != i and speakers[j] == speakers[i]] for i in range(n)]
    negatives = [[j for j in range(n) if speakers[j] != speakers[i]] for i in range(n)]
    hinge = lambda value: max(value, 0)  # noqa: E731
    terms = []
    if isinstance(loss, losses.ContrastiveLoss):
        pairs = [(i, n // 2 + i) for i in range(n // 2)]
        return np.mean([d[i, j] ** 2 if j in positives[i] else hinge(loss.margin - d[i, j]) ** 2 for i, j in pairs])
    if isinstance(loss, losses.MinedContrastiveLoss):
        pairs = [(i, j) for i in range(n) for j in negatives[i] if i < j]
        chosen = sorted(d[pair] for pair in pairs)[: math.ceil(loss.hardest_share * len(pairs))]
        if loss.mining == "semi_hard":
            closest = [min((d[i, p] for p in positives[i]), default=np.inf) for i in range(n)]
            chosen = [d[i, j] for i, j in pairs if min(closest[i], closest[j]) < d[i, j] < loss.margin]
        negative = np.mean([hinge(loss.margin - distance) ** 2 for distance in chosen])
        if loss.mining == "half_hard":
            negative = (negative + np.mean([hinge(loss.margin - d[pair]) ** 2 for pair in pairs])) / 2
        return (np.mean([d[i, j] ** 2 for i in range(n) for j in positives[i]]) + negative) / 2
    if isinstance(loss, losses.MSMLLoss):
        far = max(d[i, j] for i in range(n) for j in positives[i])
        return hinge(far - min(d[i, j] for i in range(n) for j in negatives[i]) + loss.margin)
    for a in range(n):
        if isinstance(loss, losses.TripletLoss):
            for p in positives[a]:
                if loss.mining == "random":
                    terms += [hinge(d[a, p] - d[a, j] + loss.margin) for j in negatives[a]]
                    continue
                chosen = min(d[a, j] for j in negatives[a])
                if loss.mining == "semi_hard":
                    beyond = [d[a, j] for j in negatives[a] if d[a, j] > d[a, p]]
                    chosen = min(beyond) if beyond else max(d[a, j] for j in negatives[a])
                terms.append(hinge(d[a, p] - chosen + loss.margin))
            continue
        if not positives[a]:
            continue
        far, near = max(d[a, p] for p in positives[a]), min(d[a, j] for j in negatives[a])
        if isinstance(loss, losses.TriHardLoss):
            terms.append(np.log1p(np.exp(far - near)) if loss.soft else hinge(far - near + loss.margin))
        else:
            pairs = [d[i, j] for i in negatives[a] for j in negatives[a] if speakers[i] != speakers[j]]
            terms.append(hinge(far - near + loss.margin) + hinge(far - min(pairs) + loss.second_margin))
    return np.mean(terms)


METRIC = [
    *(losses.TripletLoss(0.3, mining) for mining in ("hard", "semi_hard", "random")),
    losses.TriHardLoss(0.3),
    losses.TriHardLoss(soft=True),
    losses.QuadrupletLoss(0.3, 0.1),
    losses.MSMLLoss(0.3),
]
ALL = [
    *METRIC,
    losses.ContrastiveLoss(0.7),
    *(losses.MinedContrastiveLoss(0.7, mining, 0.3) for mining in ("hard", "half_hard", "semi_hard")),
]


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_metric_losses_agree_with_loops(loss):
    random = np.random.default_rng(1)
    for _ in range(5):
        speakers = random.permutation([0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4])
        x = random.normal(scale=0.3, size=(12, 3)).astype(np.float32)  # distances on both sides of the margins
        assert float(loss(speakers, x)) == pytest.approx(numpy_loss(loss, speakers, x), rel=1e-4)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
@pytest.mark.parametrize(
    "embeddings, speakers",
    [(tf.ones((4, 2)), SPEAKERS), (LINE, tf.zeros((4,))), (LINE, tf.range(4)), (MIXED, SPEAKERS)],
    ids=["coinciding", "one speaker", "no positives", "usual"],
)
def test_losses_and_gradients_are_finite(loss, embeddings, speakers):
    x = tf.Variable(embeddings)
    with tf.GradientTape() as tape:
        value = loss(speakers, x)
    assert np.isfinite(value) and np.isfinite(tape.gradient(value, x)).all()
    assert float(tf.function(loss)(speakers, x)) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("loss", METRIC, ids=lambda loss: loss.name)
def test_nan_comes_out_as_nan(loss):
    """So that training ends with the message about it."""
    assert np.isnan(loss(SPEAKERS, tf.fill([4, 2], float("nan"))))


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_memory_grows_with_pairs_not_triplets(loss):
    """No operation of a batch of N makes more than about N² numbers."""
    batch = 32
    graph = tf.function(loss).get_concrete_function(tf.TensorSpec([batch]), tf.TensorSpec([batch, 2])).graph
    sizes = [output.shape.num_elements() or 0 for op in graph.get_operations() for output in op.outputs]
    assert batch < max(sizes) <= batch * (batch + 2)


@pytest.mark.parametrize("loss", METRIC, ids=lambda loss: loss.name)
@pytest.mark.parametrize("speakers", [tf.zeros((4,)), tf.range(4)], ids=["one speaker", "no positives"])
def test_a_batch_without_triplets_costs_nothing(loss, speakers):
    assert float(loss(speakers, LINE)) == 0


@pytest.mark.parametrize("loss", METRIC, ids=lambda loss: loss.name)
def test_a_perfect_batch_costs_nothing_and_a_wrong_one_does(loss):
    """Speakers far apart, utterances in one place; then each utterance where the other speaker is: positives 90 apart,
    negatives 0: the hard losses cost 90 + their margins."""
    perfect, wrong = tf.constant([[0.0], [0.0], [90.0], [90.0]]), tf.constant([[0.0], [90.0], [0.0], [90.0]])
    assert float(loss(SPEAKERS, perfect)) == pytest.approx(0, abs=1e-6)
    if getattr(loss, "mining", "hard") == "hard":
        expected = 90 if getattr(loss, "soft", False) else 90.3
        assert float(loss(SPEAKERS, wrong)) == pytest.approx(expected, rel=1e-5)


def test_prototype_cross_entropy_by_hand():
    """Logits [[ln 3, 0], [0, 0]]: the right prototype has 3/4, then 1/2."""
    loss = losses.PrototypeCrossEntropy()
    expected = -(np.log(3 / 4) + np.log(1 / 2)) / 2
    assert float(loss(SPEAKERS, tf.constant([[np.log(3.0), 0], [0, 0]], tf.float32))) == pytest.approx(expected)


COSINES = tf.constant([[0.5, -0.2, 0.1], [0.3, 0.9, -0.4]])


@pytest.mark.parametrize(
    "loss, lowered",
    [
        (losses.AdditiveMarginLoss(0.2, 10.0), (0.3, 0.7)),
        (losses.AdditiveAngularMarginLoss(0.2, 10.0), np.cos(np.arccos([0.5, 0.9]) + 0.2)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_margins_by_hand(loss, lowered):
    """Speakers 0 and 1, cosines 0.5 and 0.9: less 0.2, or at an angle 0.2 larger; then softmax of ten times that."""
    logits = 10 * COSINES.numpy().astype(float)
    logits[0, 0], logits[1, 1] = 10 * np.array(lowered)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -(np.log(shares[0, 0]) + np.log(shares[1, 1])) / 2
    assert float(loss([0, 1], COSINES)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", [losses.AdditiveMarginLoss, losses.AdditiveAngularMarginLoss])
def test_margins_agree_with_loops(kind):
    random = np.random.default_rng(2)
    cosines, speakers = random.uniform(-1, 1, size=(40, 5)), random.integers(5, size=40)
    cosines[0, speakers[0]] = -0.99  # θ = 3.0, beyond π − 0.5
    terms = []
    for row, speaker in zip(cosines, speakers, strict=True):
        angle = math.acos(row[speaker])
        lowered = row[speaker] - 0.5
        if kind is losses.AdditiveAngularMarginLoss:
            beyond = angle + 0.5 > math.pi
            lowered = row[speaker] - 0.5 * math.sin(0.5) if beyond else math.cos(angle + 0.5)
        others = sum(math.exp(10 * row[s]) for s in range(5) if s != speaker)
        terms.append(-math.log(math.exp(10 * lowered) / (math.exp(10 * lowered) + others)))
    result = kind(0.5, 10.0)(speakers, tf.constant(cosines, tf.float32))
    assert float(result) == pytest.approx(np.mean(terms), rel=1e-5)


def test_angular_margin_goes_on_falling_beyond_pi():
    """At θ + m > π the cosine would rise again; cos θ − m·sin m goes on falling with cos θ, from below."""
    angles = np.linspace(0, np.pi, 200).astype(np.float32)
    lowered = losses.AdditiveAngularMarginLoss.lowered(tf.cos(angles), tf.constant(0.5)).numpy()
    assert (np.diff(lowered) < 0).all()
    inside = angles < np.pi - 0.5
    np.testing.assert_allclose(lowered[inside], np.cos(angles[inside] + 0.5), atol=1e-3)
    assert lowered[-1] == pytest.approx(-1 - 0.5 * np.sin(0.5))


@pytest.mark.parametrize("kind", [losses.AdditiveMarginLoss, losses.AdditiveAngularMarginLoss])
def test_without_a_margin_it_is_a_softmax_of_scaled_cosines_and_a_margin_can_be_warmed_up(kind):
    loss = kind(0.3, 10.0)
    compiled = tf.function(loss)
    at_full = float(compiled([0, 1], COSINES))
    loss.margin.assign(0.0)
    softmax = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = float(softmax(tf.constant([0, 1]), 10 * COSINES))
    assert float(compiled([0, 1], COSINES)) == pytest.approx(expected, rel=1e-5) and expected < at_full
    assert loss.get_config()["margin"] == 0.3


@pytest.mark.parametrize("kind", [losses.AdditiveMarginLoss, losses.AdditiveAngularMarginLoss])
def test_margin_gradients_are_finite_at_the_ends(kind):
    """Also where the other speaker is as close, and the gradient not 0 anyway, and where rounding exceeds 1."""
    cosines = tf.Variable([[1.0, 1.0], [1.0 + 1e-6, 1.0], [-1.0, -1.0], [-1.0 - 1e-6, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    with tf.GradientTape() as tape:
        value = kind()([0, 0, 0, 0, 0, 0], cosines)
    assert np.isfinite(value) and np.isfinite(tape.gradient(value, cosines)).all()


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_losses_come_back_from_their_configuration(loss):
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert copy.get_config() == loss.get_config()
    assert float(copy(SPEAKERS, LINE)) == float(loss(SPEAKERS, LINE))


@pytest.mark.parametrize("kind", [losses.AdditiveMarginLoss, losses.AdditiveAngularMarginLoss])
def test_margin_losses_come_back_from_their_configuration(kind):
    loss = kind(0.3, 12.0)
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert copy.get_config() == loss.get_config()
    assert float(copy([0, 1], COSINES)) == float(loss([0, 1], COSINES))
