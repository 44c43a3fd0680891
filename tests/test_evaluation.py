"""The test of an encoder on generated voices, against the same by the plainest means."""

import dataclasses

import numpy as np
import pytest
import soundfile
from sklearn.metrics.pairwise import cosine_similarity

from vggvox_tf import audio, evaluation, metrics, scoring
from vggvox_tf.embeddings import Embeddings, EmbeddingsError
from vggvox_tf.speaker_encoder import SpeakerEncoder
from vggvox_tf.trials import TrialError, read_trials


@pytest.fixture(scope="module")
def encoder(encoder_file):
    return SpeakerEncoder.load(encoder_file)


@pytest.fixture(scope="module")
def lists(tiny_corpus, tmp_path_factory):
    """Trials of s3 … s5 and of s0 … s2: one list to develop on, one to test on."""
    folder = tmp_path_factory.mktemp("lists")
    lines = (tiny_corpus / "trials.txt").read_text().splitlines()
    lists = []
    for name, speakers in (("development", "345"), ("test", "012")):
        own = [line for line in lines if all(part[1] in speakers for part in line.split()[1:])]
        (folder / f"{name}.txt").write_text("\n".join(own) + "\n")
        lists.append(read_trials(folder / f"{name}.txt", tiny_corpus))
    return lists


def scorer(encoder, lists, protocols=tuple(scoring.PROTOCOLS), kinds=scoring.NORMALISATIONS, cohort=None):
    cohort = np.random.default_rng(0).normal(size=(9, encoder.dimension)) if cohort is None else cohort
    return evaluation.Scorer(encoder, lists, list(protocols), list(kinds), "cosine", cohort, 4, 8)


def test_every_system_is_scored(encoder, lists, tiny_corpus):
    """Recordings are under 3 s, so the crops are the whole, and the protocols agree."""
    scores = scorer(encoder, lists).scores(lists[1])
    assert list(scores) == [(protocol, kind) for protocol in scoring.PROTOCOLS for kind in scoring.NORMALISATIONS]
    vectors = {
        path: encoder.model(soundfile.read(tiny_corpus / path, dtype="float32")[0][np.newaxis])
        for path in lists[1].paths
    }
    pairs = [(lists[1].paths[a], lists[1].paths[b]) for a, b in zip(lists[1].enrol, lists[1].test, strict=True)]
    expected = [cosine_similarity(vectors[a], vectors[b])[0, 0] for a, b in pairs]
    for protocol in scoring.PROTOCOLS:
        np.testing.assert_allclose(scores[protocol, "none"], expected, atol=1e-4)
        z, t, s = (scores[protocol, kind] for kind in ("z-norm", "t-norm", "s-norm"))
        np.testing.assert_allclose(s, (z + t) / 2, rtol=1e-4)
        assert not np.allclose(s, scores[protocol, "as-norm"])


def test_a_list_as_numbers(encoder, lists):
    development, trials = lists
    scored = scorer(encoder, lists, ["whole", "pairs"], ["none", "s-norm"])
    fitted = evaluation.calibrate(scored, development, "development.txt", encoder)
    entry, scores = evaluation.evaluate_list(scored, trials, "x/test.txt", {"s1", "who"}, fitted, threshold=0.5)
    assert (entry["name"], entry["recordings"], entry["speakers"]) == ("test", 18, 3)
    assert entry["training_speakers_among_them"] == 1 and "1 of the 3" in entry["note"]
    assert (
        [(system["protocol"], system["normalisation"]) for system in entry["systems"]] == list(scores) == list(fitted)
    )
    for system, values in zip(entry["systems"], scores.values(), strict=True):
        assert system["eer"] == metrics.eer(values, trials.labels)[0]
        low, high = system["eer_interval"]
        assert 0 <= low <= system["eer"] <= high <= 1
        assert ("chosen" in system["operating_points"]) == (system["normalisation"] == "none")
        assert [cost["p_target"] for cost in system["detection_costs"]] == [0.01, 0.05]
        calibration = system["calibration"]
        llrs = calibration["slope"] * values + calibration["offset"]
        assert calibration["cllr"] == pytest.approx(metrics.cllr(llrs, trials.labels))
        accepted = values >= fitted[system["protocol"], system["normalisation"]].threshold(0.05)
        misses, alarms = 1 - accepted[trials.labels].mean(), accepted[~trials.labels].mean()
        assert calibration["actual_dcf"][1]["dcf"] == pytest.approx((0.05 * misses + 0.95 * alarms) / 0.05)
    kept = fitted["whole", "none"]
    assert (kept.trial_list, kept.speakers, kept.fingerprint) == ("development.txt", 3, encoder.fingerprint)
    assert kept.targets + kept.nontargets == len(development)


def test_paths_that_do_not_tell_speakers_have_no_interval(encoder, lists):
    trials = lists[1]
    wrong = dataclasses.replace(trials, labels=np.roll(trials.labels, 1))
    entry, _ = evaluation.evaluate_list(scorer(encoder, lists, ["whole"], ["none"]), wrong, "test.txt", (), {}, None)
    assert entry["systems"][0]["eer_interval"] is None and "EER has no interval" in entry["note"]
    assert entry["systems"][0]["calibration"] is None


def test_training_speakers_are_refused_before_missing_files(tmp_path):
    (tmp_path / "list.txt").write_text("1 a/x/1.wav a/y/1.wav\n0 a/x/1.wav b/y/1.wav\n")
    with pytest.raises(TrialError, match=r"names 1 speakers that the encoder was trained on \(first b\)"):
        evaluation.open_trials(str(tmp_path / "list.txt"), None, {"b", "c"})
    with pytest.raises(TrialError, match=r"3 of the 3 utterances of the trial list are missing.*first is a/x/1.wav"):
        evaluation.open_trials(str(tmp_path / "list.txt"), None, {"c"})


def test_evenly_spread():
    """Of five in a group, three: every 5/3-th, 0 2 4 (floor(3k/5) = 0 0 1 1 2); both of two; the one."""
    groups = np.array([0, 0, 0, 0, 0, 4, 4, 7])
    assert evaluation.evenly_spread(groups, 3).tolist() == [True, False, True, False, True, True, True, True]
    assert evaluation.evenly_spread(np.zeros(1000, int), 10).sum() == 10


def test_a_cohort_of_a_corpus_or_of_embeddings(encoder, tiny_corpus, tmp_path, caplog):
    """The corpus's bad file is left out, and its speakers s0 and s5, who are tested on; the same from embeddings."""
    corpus = tmp_path / "corpus"
    for source in tiny_corpus.rglob("*.wav"):
        target = corpus / source.relative_to(tiny_corpus)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    (corpus / "s1" / "a" / "9.wav").write_bytes(b"")
    cohort = evaluation.cohort_vectors(encoder, str(corpus), None, {"s0", "s5", "other"}, 8)
    assert cohort.shape == (4, encoder.dimension) and "s1/a/9.wav" in caplog.text
    assert "2 speakers of the cohort are in the trial lists" in caplog.text
    paths = np.array(
        [f"s{speaker}/{session}/{number}.wav" for speaker in range(1, 5) for session in "ab" for number in range(3)]
    )
    speakers = np.array([path[:2] for path in paths])
    vectors = encoder.embed_files(paths, tiny_corpus)
    Embeddings(paths, speakers, vectors, encoder.fingerprint).save(tmp_path / "e.npz")
    np.testing.assert_allclose(
        evaluation.cohort_vectors(encoder, str(tmp_path / "e.npz"), None, set(), 8), cohort, atol=1e-5
    )
    expected = scoring.unit_length(scoring.unit_length(vectors[:6]).mean(axis=0))
    np.testing.assert_allclose(cohort[0], expected, atol=1e-5)
    Embeddings(paths, speakers, vectors, "other").save(tmp_path / "e.npz")
    with pytest.raises(EmbeddingsError, match="made with another encoder"):
        evaluation.cohort_vectors(encoder, str(tmp_path / "e.npz"), None, set(), 8)


def test_a_trial_of_an_unusable_recording_is_an_error(encoder, tmp_path):
    (tmp_path / "list.txt").write_text("1 silent.wav empty.wav\n")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(audio.AudioError, match=r"\.wav.*2 of 2 recordings cannot be used"):
        scorer(encoder, [evaluation.open_trials(str(tmp_path / "list.txt"), None)])
