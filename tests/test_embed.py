import numpy as np
import pytest
import soundfile

from vggvox_tf.audio import AudioError
from vggvox_tf.embed import embed
from vggvox_tf.embeddings import Embeddings, EmbeddingsError
from vggvox_tf.speaker_encoder import SpeakerEncoder


@pytest.fixture(scope="module")
def encoder(encoder_file):
    return SpeakerEncoder.load(encoder_file)


@pytest.fixture
def recordings(tiny_corpus):
    paths = np.array(sorted(str(path.relative_to(tiny_corpus)) for path in tiny_corpus.rglob("*.wav")))
    return tiny_corpus, paths, np.array([path[:2] for path in paths])


def test_everything_is_embedded_in_its_place(encoder, recordings, tmp_path):
    root, paths, speakers = recordings
    assert embed(encoder, root, paths, speakers, None, tmp_path / "e.npz") == {}
    embeddings = Embeddings.load(tmp_path / "e.npz", encoder.fingerprint)
    assert embeddings.paths.tolist() == paths.tolist() and embeddings.speakers.tolist() == speakers.tolist()
    np.testing.assert_allclose(embeddings.vectors, encoder.embed_files(paths, root), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["e.npz"]


def test_an_interrupted_run_goes_on(encoder, recordings, tmp_path, monkeypatch):
    """Interrupted after three batches, each saved; the second start embeds the rest, and the files are equal."""
    root, paths, speakers = recordings
    embed(encoder, root, paths, speakers, None, tmp_path / "whole.npz", batch_size=4)
    batches = encoder.embed_batches

    def interrupted(*arguments):
        for number, batch in enumerate(batches(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(encoder, "embed_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, root, paths, speakers, None, tmp_path / "e.npz", batch_size=4, save_every=0)
    done = sum(len(Embeddings.load(part)) for part in (tmp_path / "e.npz.parts").iterdir())
    assert 0 < done < len(paths) and not (tmp_path / "e.npz").exists()

    def rest(left, *arguments):
        assert len(left) == len(paths) - done
        return batches(left, *arguments)

    monkeypatch.setattr(encoder, "embed_batches", rest)
    embed(encoder, root, paths, speakers, None, tmp_path / "e.npz", batch_size=4)
    assert not (tmp_path / "e.npz.parts").exists()
    first, second = (Embeddings.load(tmp_path / name) for name in ("whole.npz", "e.npz"))
    np.testing.assert_array_equal(first.paths, second.paths)
    np.testing.assert_allclose(first.vectors, second.vectors, atol=1e-5)


def test_parts_of_another_encoder_are_refused(encoder, recordings, tmp_path):
    root, paths, speakers = recordings
    Embeddings(paths[:2], speakers[:2], np.zeros((2, 3)), "other").save(tmp_path / "e.npz.parts" / "000001.npz")
    with pytest.raises(EmbeddingsError, match=r"e.npz.parts holds parts of other embeddings.*delete it"):
        embed(encoder, root, paths, speakers, None, tmp_path / "e.npz")


def test_unusable_recordings_are_listed(encoder, tmp_path):
    paths = np.array(["good.wav", "empty.wav", "silent.wav"])
    soundfile.write(tmp_path / "good.wav", np.sin(np.arange(16_000)), 16_000)
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    errors = embed(encoder, tmp_path, paths, paths, None, tmp_path / "e.npz")
    assert sorted(errors) == [1, 2]
    assert Embeddings.load(tmp_path / "e.npz").paths.tolist() == ["good.wav"]
    lines = (tmp_path / "e.npz.bad.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["empty.wav", "silent.wav"] and "silent" in lines[1]
    with pytest.raises(AudioError, match="none of the 2 recordings can be used"):
        embed(encoder, tmp_path, paths[1:], paths[1:], None, tmp_path / "none.npz")
