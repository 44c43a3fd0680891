import subprocess
import sys

import numpy as np
import pytest

from tools.combine_corpora import hold_out
from vggvox_tf.corpus import CorpusError, combine, read_corpus, read_manifest


def folder(root, speakers, name="u.wav"):
    for speaker in speakers:
        (root / speaker / "s").mkdir(parents=True)
        (root / speaker / "s" / name).write_bytes(b"")
    return root


def test_speakers_of_two_corpora_by_hand(tmp_path):
    """Anna is in both: three speakers, four files, Anna's two sessions of the same name kept apart."""
    a, b = folder(tmp_path / "a", ["anna", "boris"]), folder(tmp_path / "b" / "c", ["anna", "zoe"])
    corpus = combine([read_corpus(a), read_corpus(b)])
    assert corpus.root == tmp_path and corpus.speaker_names == ["anna", "boris", "zoe"]
    assert corpus.paths.tolist() == ["a/anna/s/u.wav", "b/c/anna/s/u.wav", "a/boris/s/u.wav", "b/c/zoe/s/u.wav"]
    assert corpus.speakers.tolist() == [0, 0, 1, 2] and corpus.sessions.tolist() == [0, 1, 2, 3]
    assert all((corpus.root / path).exists() for path in corpus.paths)


def test_a_file_in_two_corpora_is_refused(tmp_path):
    corpus = read_corpus(folder(tmp_path, ["anna", "boris"]))
    with pytest.raises(CorpusError, match=r"anna/s/u\.wav is listed twice"):
        combine([corpus, corpus])


def test_held_out_speakers_are_in_no_other_part(tiny_corpus):
    corpus = read_corpus(tiny_corpus)
    kept, held = hold_out(corpus, 2, seed=1)
    assert len(held.speaker_names) == 2 and not set(kept.speaker_names) & set(held.speaker_names)
    assert len(kept) + len(held) == len(corpus)
    assert hold_out(corpus, 2, seed=1)[1].speaker_names == held.speaker_names
    with pytest.raises(CorpusError, match="1 to 5 speakers, got 6"):
        hold_out(corpus, 6, seed=1)


def test_command(tiny_corpus, tmp_path):
    other = folder(tmp_path / "other", ["x"])
    train, held = tmp_path / "train.tsv", tmp_path / "held.tsv"
    flags = [f"--corpora={tiny_corpus},{other}", f"--output={train}", "--hold_out=3", f"--held_out={held}"]
    done = subprocess.run([sys.executable, "-m", "tools.combine_corpora", *flags], capture_output=True, text=True)
    assert done.returncode == 0 and "4 speakers" in done.stdout, done.stderr
    root = tiny_corpus.parent
    while not other.is_relative_to(root):
        root = root.parent
    kept, out = read_manifest(train, root), read_manifest(held, root)
    assert len(kept) + len(out) == 37
    np.testing.assert_array_equal(np.unique(out.speakers), [0, 1, 2])
