import numpy as np
import pytest

from vggvox_tf import sampling
from vggvox_tf.corpus import read_corpus


def make_corpus(folder, sessions_of_speaker, genders=None):
    """A corpus of empty files: sessions_of_speaker = {"ann": {"x": 3, "y": 2}} is 5 utterances in 2 sessions."""
    lines = ["path\tspeaker\tsession\tseconds\tgender"]
    for speaker, sessions in sessions_of_speaker.items():
        for session, count in sessions.items():
            gender = (genders or {}).get(speaker, "")
            lines += [f"{speaker}/{session}/{i}.wav\t{speaker}\t{session}\t\t{gender}" for i in range(count)]
    path = folder / "corpus.tsv"
    path.write_text("\n".join(lines) + "\n")
    return read_corpus(path)


@pytest.fixture
def corpus(tmp_path):
    """Five speakers: two sessions of 4 and 2; one session of 3; a single utterance; three sessions; two of 1 each."""
    return make_corpus(
        tmp_path,
        {
            "ann": {"x": 4, "y": 2},
            "bob": {"x": 3},
            "cat": {"x": 1},
            "dan": {"x": 2, "y": 2, "z": 2},
            "eve": {"x": 1, "y": 1},
        },
        {"ann": "f", "bob": "m", "cat": "f", "dan": "m", "eve": ""},
    )


def test_every_utterance_once_a_pass(corpus):
    """18 utterances in batches of 4: steps 0–8 are 36 draws, two whole passes, in different orders."""
    assert len(corpus) == 18
    sampler = sampling.UtteranceSampler(corpus, 4, seed=1)
    drawn = np.concatenate([sampler(step) for step in range(9)])
    assert sorted(drawn[:18]) == sorted(drawn[18:]) == list(range(18))
    assert list(drawn[:18]) != list(drawn[18:]) != list(range(18))


def test_batch_larger_than_the_corpus(corpus):
    drawn = sampling.UtteranceSampler(corpus, 54, seed=0)(2)
    assert np.bincount(drawn).tolist() == [3] * 18


@pytest.mark.parametrize(
    "make",
    [
        lambda corpus, seed: sampling.UtteranceSampler(corpus, 7, seed),
        lambda corpus, seed: sampling.SpeakerSampler(corpus, 3, 2, seed),
        lambda corpus, seed: sampling.PairSampler(corpus, 6, 0.5, seed, 0.5),
    ],
)
def test_a_batch_is_a_function_of_seed_and_step(corpus, make):
    """Asked in any order, by another sampler, a step gives the same batch; another step or seed gives another."""
    first = make(corpus, 3)
    batches = [first(step) for step in range(20)]
    second = make(corpus, 3)
    for step in reversed(range(20)):
        np.testing.assert_array_equal(second(step), batches[step])
    assert len({tuple(batch) for batch in batches}) == 20
    assert any((make(corpus, 4)(step) != batches[step]).any() for step in range(5))


def test_speaker_batches(corpus):
    """P = 2 of five speakers: two batches a pass, each of 2 distinct speakers with 3 utterances, in speakers' order."""
    sampler = sampling.SpeakerSampler(corpus, 2, 3, seed=0)
    counts = np.zeros(5, int)
    for step in range(500):
        speakers = corpus.speakers[sampler(step)].reshape(2, 3)
        assert (speakers == speakers[:, :1]).all() and speakers[0, 0] != speakers[1, 0]
        counts[speakers[:, 0]] += 1
    assert len({tuple(sorted(set(corpus.speakers[sampler(s)]))) for s in range(0, 4)}) > 1
    # Each of the 250 passes leaves one of the five out, so each is drawn 200 times on average.
    assert counts.sum() == 1000 and (abs(counts - 200) < 40).all()


def test_utterances_come_from_distinct_sessions_first(corpus):
    draw = sampling.UtteranceDraw(corpus)
    names = {name: index for index, name in enumerate(corpus.speaker_names)}
    for step in range(50):
        random = sampling.generator(0, sampling.DRAWS, step)
        assert len(set(corpus.sessions[draw(random, names["ann"], 2)])) == 2
        assert len(set(corpus.sessions[draw(random, names["dan"], 3)])) == 3
        dan = draw(random, names["dan"], 6)  # all six utterances, each session twice
        assert len(set(dan)) == 6 and (corpus.speakers[dan] == names["dan"]).all()
        assert len(set(draw(random, names["bob"], 3))) == 3  # one session, three utterances
        assert len(set(draw(random, names["cat"], 2))) == 1  # nothing else there


def test_pairs(corpus):
    """8 pairs, a quarter positive: pairs 0 and 1 of one speaker, from two sessions if it has them; the rest of two."""
    sampler = sampling.PairSampler(corpus, 8, 0.25, seed=0)
    anchors_seen = np.zeros(5, int)
    for step in range(200):
        anchors, partners = sampler(step).reshape(2, 8)
        same = corpus.speakers[anchors] == corpus.speakers[partners]
        assert same.tolist() == [True] * 2 + [False] * 6
        for anchor, partner in zip(anchors[:2], partners[:2], strict=True):
            sessions = np.unique(corpus.sessions[corpus.speakers == corpus.speakers[anchor]])
            if len(sessions) > 1:
                assert corpus.sessions[anchor] != corpus.sessions[partner]
        anchors_seen += np.bincount(corpus.speakers[anchors], minlength=5)
    assert anchors_seen.tolist() == [320] * 5  # 1600 anchors, evenly over the speakers


@pytest.mark.parametrize("share, expected", [(1.0, 1.0), (0.0, 0.0), (0.3, 0.3)])
def test_same_gender_share(corpus, share, expected):
    """Only eve's gender is unknown: where the anchor's is known, the partner has the same with that share."""
    sampler = sampling.PairSampler(corpus, 10, 0.0, seed=0, same_gender_share=share)
    genders = np.array(corpus.genders)[corpus.speakers]
    pairs = np.concatenate([sampler(step).reshape(2, 10) for step in range(300)], axis=1)
    known = genders[pairs[0]] != ""
    same = (genders[pairs[0]] == genders[pairs[1]])[known].mean()
    assert same == pytest.approx(expected, abs=0.03)
    assert (corpus.speakers[pairs[0]] != corpus.speakers[pairs[1]]).all()


def test_negatives_are_uniform_over_the_other_speakers(corpus):
    sampler = sampling.PairSampler(corpus, 10, 0.0, seed=0)
    pairs = np.concatenate([sampler(step).reshape(2, 10) for step in range(400)], axis=1)
    table = np.zeros((5, 5))
    np.add.at(table, (corpus.speakers[pairs[0]], corpus.speakers[pairs[1]]), 1)
    np.testing.assert_allclose(table / 800, (1 - np.eye(5)) / 4, atol=0.06)


def test_too_few_speakers(corpus, tmp_path):
    with pytest.raises(sampling.SamplingError, match="needs as many training speakers, found 5"):
        sampling.SpeakerSampler(corpus, 6, 2, seed=0)
    (tmp_path / "one").mkdir()
    with pytest.raises(sampling.SamplingError, match="found one"):
        sampling.PairSampler(make_corpus(tmp_path / "one", {"ann": {"x": 3}}), 4, 0.5, seed=0)
