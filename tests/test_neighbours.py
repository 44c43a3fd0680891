import absl.flags
import numpy as np
import pytest

from vggvox_tf import cli, neighbours
from vggvox_tf.embeddings import Embeddings, EmbeddingsError


def at(*degrees):
    """Vectors (N, 2) at angles from the first axis."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_angles_by_hand():
    """At 0°, 10°, 30° and 100°; lengths do not matter."""
    vectors = at(0, 10, 30, 100) * np.array([[1], [5], [0.1], [70]], np.float32)
    indices, angles = neighbours.nearest(vectors, 2)
    np.testing.assert_array_equal(indices, [[1, 2], [0, 2], [1, 0], [2, 1]])
    np.testing.assert_allclose(angles, [[10, 30], [10, 20], [20, 30], [70, 90]], atol=1e-4)
    indices, angles = neighbours.nearest(vectors, 9, rows=[3])  # all others, where there are fewer than k
    np.testing.assert_array_equal(indices, [[2, 1, 0]])
    np.testing.assert_allclose(angles, [[70, 90, 100]], atol=1e-4)


def test_small_angles_are_exact():
    """float32 (1, ε) is at arctan ε from (1, 0), and for ε = 10⁻⁴ (0.0057°) and 10⁻⁶ its cosine rounds to 1. Equal
    vectors are at exactly 0°, opposite ones at exactly 180°."""
    vectors = np.array([[1, 0], [1, 1e-4], [1, 1e-6], [3, 0], [-1, 0]], np.float32)
    indices, angles = neighbours.nearest(vectors, 4, rows=[0])
    np.testing.assert_array_equal(indices, [[3, 2, 1, 4]])
    np.testing.assert_allclose(angles, [[0, np.degrees(1e-6), np.degrees(1e-4), 180]], rtol=1e-6)


def test_blocks_make_no_difference(monkeypatch):
    vectors = np.random.default_rng(0).standard_normal((50, 8))
    whole = neighbours.nearest(vectors, 7)
    angles = np.degrees(np.arccos(np.clip(neighbours.unit_length(vectors) @ neighbours.unit_length(vectors).T, -1, 1)))
    np.testing.assert_allclose(whole[1], np.sort(angles, axis=1)[:, 1:8], atol=1e-4)
    monkeypatch.setattr(neighbours, "BLOCK", 3 * 56)
    for a, b in zip(whole, neighbours.nearest(vectors, 7), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "vectors, complaint",
    [(at(0), "at least two"), ([[1, 0], [0, 0]], "Vector 1 is zero"), ([[np.nan, 0], [1, 0]], "Vector 0 is zero, NaN")],
)
def test_vectors_without_an_angle(vectors, complaint):
    with pytest.raises(EmbeddingsError, match=complaint):
        neighbours.nearest(vectors, 1)


@pytest.fixture
def colours(tmp_path):
    """Blue is at 90°, its utterances at 80° and 100°; red at 137.6°, yellow at 38.1°."""
    paths, speakers = ["b/1.wav", "b/2.wav", "r/1.wav", "y/1.wav"], ["blue", "blue", "red", "yellow"]
    embeddings = Embeddings(np.array(paths), np.array(speakers), at(80, 100, 137.6, 38.1) * 3, "e1")
    embeddings.save(tmp_path / "colours.npz")
    return tmp_path / "colours.npz"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the entry point with flags of its own, apart from those of other entry points in this process."""

    def run(*arguments):
        values = absl.flags.FlagValues()
        monkeypatch.setattr(neighbours, "FLAGS", values)
        neighbours.define_flags()
        neighbours.main(values(["neighbours", *arguments]))
        return capsys.readouterr().out

    return run


def test_speakers_as_a_table_of_word_embeddings(run, colours):
    assert run(f"--embeddings={colours}") == (
        "blue: (red, 47.6°), (yellow, 51.9°)\n"
        "red: (blue, 47.6°), (yellow, 99.5°)\n"
        "yellow: (blue, 51.9°), (red, 99.5°)\n"
    )  # fmt: skip
    assert run(f"--embeddings={colours}", "--k=1", "--of=yellow,blue") == (
        "yellow: (blue, 51.9°)\nblue: (red, 47.6°)\n"
    )


def test_utterances_are_shown_by_their_paths(run, colours):
    assert run(f"--embeddings={colours}", "--by=utterance", "--k=2", "--of=b/1.wav") == (
        "b/1.wav: (b/2.wav, 20.0°), (y/1.wav, 41.9°)\n"
    )


def test_command_lines_that_cannot_be_meant(run, colours, tmp_path):
    for arguments, complaint in (
        ([f"--embeddings={colours}", "--of=blue,yelow"], "--of: yelow is not among the 3; nearest in spelling: yellow"),
        ([f"--embeddings={colours}", "--by=utterance", "--of=blue"], "--of: blue is not among the 4"),
        ([f"--embeddings={tmp_path}/none.npz"], "none.npz"),
        ([f"--embeddings={colours}", "--k=0"], "k"),
        ([], "embeddings"),
    ):
        with pytest.raises(cli.EXPLAINED, match=complaint):
            run(*arguments)


def test_speakers_that_are_not_known(run, tmp_path):
    path = tmp_path / "unknown.npz"
    Embeddings(np.array(["1.wav", "2.wav"]), np.array(["", "blue"]), at(0, 10), "e1").save(path)
    with pytest.raises(EmbeddingsError, match="does not say who speaks in 1 of 2 recordings; use --by=utterance"):
        run(f"--embeddings={path}")
    assert run(f"--embeddings={path}", "--by=utterance") == "1.wav: (2.wav, 10.0°)\n2.wav: (1.wav, 10.0°)\n"
