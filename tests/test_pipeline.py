import numpy as np
import pytest
import soundfile
import tensorflow as tf

from vggvox_tf import audio, decoding, pipeline, sampling
from vggvox_tf.corpus import read_corpus

SAMPLES = 16_000


@pytest.fixture
def corpus(tiny_corpus, tmp_path):
    """A copy of the tiny corpus that a test may spoil, as links."""
    for source in tiny_corpus.rglob("*.wav"):
        target = tmp_path / source.relative_to(tiny_corpus)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    return read_corpus(tmp_path)


def batches(corpus, sampler, first=0, last=6, max_bad_share=0.1, seed=5, **ways):
    recordings = pipeline.Recordings(corpus, SAMPLES, max_bad_share, **ways)
    data = pipeline.dataset(recordings, sampler, seed, first, last)
    return [(waveforms.numpy(), speakers.numpy()) for waveforms, speakers in data], recordings


def test_batches_hold_the_sampled_crops(corpus):
    sampler = sampling.UtteranceSampler(corpus, 8, seed=5)
    result, recordings = batches(corpus, sampler)
    assert len(result) == 6 and not recordings.bad
    for step, (waveforms, speakers) in enumerate(result):
        indices = sampler(step)
        np.testing.assert_array_equal(speakers, corpus.speakers[indices])
        positions = sampling.generator(5, sampling.CROPS, step).random(8)
        for waveform, index, position in zip(waveforms, indices, positions, strict=True):
            whole, _ = soundfile.read(corpus.root / corpus.paths[index], dtype="float32")
            if whole.size < SAMPLES:  # 0.9 s: repeated, not padded
                np.testing.assert_array_equal(waveform, np.resize(whole, SAMPLES) * 32768)
            else:
                start = int(position * (whole.size - SAMPLES + 1))
                np.testing.assert_array_equal(waveform, whole[start : start + SAMPLES] * 32768)


@pytest.mark.parametrize("way", ["processes", "cache"])
def test_however_they_are_decoded_batches_are_the_same(corpus, way):
    """Also with a recording that is none, and with all of them decoded already: the second pass of two."""
    bad = corpus.root / "s2/a/0.wav"
    bad.unlink()
    bad.write_bytes(b"no audio at all")
    sampler = sampling.UtteranceSampler(corpus, 9, seed=5)
    expected, expected_recordings = batches(corpus, sampler, last=8)
    ways = {"processes": decoding.Processes(2)} if way == "processes" else {"cache": True}
    result, recordings = batches(corpus, sampler, last=8, **ways)
    assert recordings.bad == expected_recordings.bad and len(recordings.bad) == 1
    for (a, b), (c, d) in zip(expected, result, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def test_a_cached_recording_is_read_once(corpus):
    recordings = pipeline.Recordings(corpus, SAMPLES, 0.1, cache=True)
    first, _ = recordings.crops([3, 5], np.array([0.5, 0.5]))
    for path in corpus.paths[[3, 5]]:
        (corpus.root / path).unlink()
    again, used = recordings.crops([3, 5], np.array([0.5, 0.5]))
    np.testing.assert_array_equal(again, first)
    assert used.tolist() == [3, 5]


def test_of_several_workers_each_has_its_rows(corpus):
    """Batches of 8 for two workers of two devices each: rows 0–1 and 2–3 of each batch, and 4–5 and 6–7."""
    sampler = sampling.UtteranceSampler(corpus, 8, seed=5)
    whole, _ = batches(corpus, sampler, last=3)
    recordings = pipeline.Recordings(corpus, SAMPLES, 0.1)
    parts = [
        [labels.numpy() for _, labels in pipeline.dataset(recordings, sampler, 5, 0, 3, part=(worker, 2), replicas=4)]
        for worker in (0, 1)
    ]
    for step, (_, labels) in enumerate(whole):
        mine = [*parts[0][2 * step : 2 * step + 2], *parts[1][2 * step : 2 * step + 2]]
        np.testing.assert_array_equal(np.concatenate(mine), labels)


def test_starting_at_a_step_is_the_same_as_going_on(corpus):
    sampler = sampling.SpeakerSampler(corpus, 4, 2, seed=5)
    whole, _ = batches(corpus, sampler)
    rest, _ = batches(corpus, sampler, first=4)
    assert len(rest) == 2
    for (a, b), (c, d) in zip(whole[4:], rest, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def test_bad_recordings_are_replaced_counted_and_named(corpus, caplog):
    """s2/a/0 becomes empty and s2/b/2, the last of s2, text: the next ones are s2/a/1 and s3/a/0, with its label."""
    for path, content in (("s2/a/0.wav", b""), ("s2/b/2.wav", b"no audio at all")):
        (corpus.root / path).unlink()
        (corpus.root / path).write_bytes(content)
    bad = [list(corpus.paths).index(path) for path in ("s2/a/0.wav", "s2/b/2.wav")]
    recordings = pipeline.Recordings(corpus, SAMPLES, 0.1)
    good = list(corpus.paths).index("s4/a/0.wav")
    crops, used = recordings.crops([bad[0], good, bad[1]], np.array([0.0, 0.3, 0.5]))
    assert corpus.paths[used].tolist() == ["s2/a/1.wav", "s4/a/0.wav", "s3/a/0.wav"]
    for crop, index, position in zip(crops, used, (0.0, 0.3, 0.5), strict=True):
        expected = audio.load_crop(corpus.root / corpus.paths[index], position, SAMPLES)
        np.testing.assert_array_equal(crop, expected * 32768)
    _, used = recordings.crops([bad[0]], np.array([0.7]))
    assert corpus.paths[used].tolist() == ["s2/a/1.wav"]
    assert sorted(recordings.bad) == bad
    assert "s2/a/0.wav" in recordings.bad[bad[0]] and "s2/b/2.wav" in recordings.bad[bad[1]]

    sampler = sampling.UtteranceSampler(corpus, 36, seed=0)
    [(_, speakers)], recordings = batches(corpus, sampler, last=1)
    assert sorted(recordings.bad) == bad
    assert np.bincount(speakers).tolist() == [6, 6, 5, 7, 6, 6]


def test_too_many_bad_recordings_stop_with_the_reason(corpus):
    """A share of 3 % of the first hundred tried allows three: the fourth ends it."""
    for path in corpus.paths[:4]:
        (corpus.root / path).unlink()
    sampler = sampling.UtteranceSampler(corpus, 36, seed=0)
    recordings = pipeline.Recordings(corpus, SAMPLES, 0.03)
    with pytest.raises(tf.errors.OpError):
        list(pipeline.dataset(recordings, sampler, 0, 0, 5))
    assert isinstance(recordings.failure, pipeline.TooManyBadFilesError)
    assert "4 of the" in str(recordings.failure) and "--max_bad_share=0.03" in str(recordings.failure)
    assert str(corpus.root) in str(recordings.failure)


def test_nothing_but_bad_recordings_ends(corpus):
    for path in corpus.paths:
        (corpus.root / path).unlink()
    recordings = pipeline.Recordings(corpus, SAMPLES, 1.0)
    for index in (3, 20):  # the second as another thread would: all are known to be bad already
        with pytest.raises(pipeline.TooManyBadFilesError, match="36 of the 36"):
            recordings.crops([index], np.array([0.5]))
