"""Trial lists: reading, writing, and making them from corpora that exist in memory only."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vggvox_tf import trials as trials_module
from vggvox_tf.corpus import Corpus
from vggvox_tf.trials import (
    TrialError,
    Trials,
    make_trials,
    read_pairs,
    read_trials,
    read_voxceleb1_trials,
    write_trials,
)


def make_corpus(counts, genders=None) -> Corpus:
    """A corpus from {speaker: utterances per session}, such as {"a": [2, 3]}; genders as in "mf-"."""
    rows, sessions, session_names = [], [], []
    for number, (speaker, sizes) in enumerate(counts.items()):
        for session, size in enumerate(sizes):
            sessions += [len(session_names)] * size
            session_names.append(f"s{session}")
            rows += [(f"{speaker}/s{session}/{i:05d}.wav", number) for i in range(size)]
    paths = np.empty(len(rows), object)
    paths[:] = [path for path, _ in rows]
    return Corpus(
        root=Path("/corpus"),
        paths=paths,
        speakers=np.array([speaker for _, speaker in rows], np.int32),
        sessions=np.array(sessions, np.int32),
        seconds=np.full(len(rows), np.nan, np.float32),
        speaker_names=list(counts),
        session_names=session_names,
        genders=[{"-": ""}.get(g, g) for g in genders or "-" * len(counts)],
    )


def many(speakers, sessions, genders=None) -> Corpus:
    return make_corpus({f"id{s:03d}": sessions for s in range(speakers)}, genders)


def check(trials: Trials, corpus: Corpus):
    """What must hold of every list; returns the speakers of either side, (M,) and (M,)."""
    speaker_of = dict(zip(corpus.paths, corpus.speakers, strict=True))
    speakers = np.array([speaker_of[path] for path in trials.paths])
    enrol, test = speakers[trials.enrol], speakers[trials.test]
    np.testing.assert_array_equal(enrol == test, trials.labels)
    assert (trials.enrol != trials.test).all()
    pairs = {frozenset(pair) for pair in zip(trials.enrol.tolist(), trials.test.tolist(), strict=True)}
    assert len(pairs) == len(trials)  # no pair twice, in either direction
    assert trials.paths.tolist() == sorted(set(trials.paths))
    assert set(trials.enrol) | set(trials.test) == set(range(len(trials.paths)))
    return enrol, test


def sessions_of(trials: Trials):
    folder = np.array([os.path.dirname(path) for path in trials.paths])
    return folder[trials.enrol], folder[trials.test]


def uses(speakers, *sides):
    return sum(np.bincount(side, minlength=speakers) for side in sides)


class TestReading:
    def test_voxceleb1_format(self, tmp_path):
        (tmp_path / "veri.txt").write_text("1 b/x/1.wav a/y/2.wav\n0 b/x/1.wav c/1.wav\n1 a/y/2.wav b/x/1.wav\n")
        trials = read_trials(tmp_path / "veri.txt")
        assert trials.paths.tolist() == ["a/y/2.wav", "b/x/1.wav", "c/1.wav"]
        assert trials.enrol.tolist() == [1, 1, 0] and trials.test.tolist() == [0, 2, 1]
        assert trials.labels.tolist() == [True, False, True] and len(trials) == 3
        assert (trials.enrol.dtype, trials.test.dtype, trials.labels.dtype) == (np.int32, np.int32, bool)
        assert trials.root == tmp_path
        assert read_trials(tmp_path / "veri.txt", root="/data").root == Path("/data")

    @pytest.mark.parametrize("names", [["a/1.wav", "b/1.wav"], ["ann lee/1.wav", " b/1.wav"]])
    def test_written_and_read(self, tmp_path, names):
        """Paths with spaces are separated by tabs."""
        paths = np.array(sorted(names), object)
        trials = Trials(tmp_path, paths, np.int32([0, 1]), np.int32([1, 1]), np.array([False, True]))
        write_trials(trials, tmp_path / "t.txt")
        again = read_trials(tmp_path / "t.txt")
        assert again.paths.tolist() == paths.tolist() and again.labels.tolist() == [False, True]
        assert again.enrol.tolist() == [0, 1] and again.test.tolist() == [1, 1]
        assert os.listdir(tmp_path) == ["t.txt"]

    def test_written_as_voxceleb_writes_it(self, tmp_path):
        paths = np.array(["a/1.wav", "b/1.wav"], object)
        write_trials(Trials(tmp_path, paths, np.int32([0]), np.int32([1]), np.array([False])), tmp_path / "t.txt")
        assert (tmp_path / "t.txt").read_text() == "0 a/1.wav b/1.wav\n"

    def test_names_that_a_list_cannot_hold(self, tmp_path):
        paths = np.array(["a\t/1.wav", "b/1.wav"], object)
        with pytest.raises(TrialError, match="cannot hold tabs or line breaks"):
            write_trials(Trials(tmp_path, paths, np.int32([0]), np.int32([1]), np.array([False])), tmp_path / "t")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is empty"),
            ("1 a.wav b.wav\n1 a.wav\n", "line 2: expected a label and two paths, found 2 columns"),
            ("1 a.wav b.wav\n\n", "line 2: expected a label and two paths, found 0 columns"),
            ("1 my a.wav b.wav\n", "line 1: .*found 4 columns.*separate the columns by tabs"),
            ("a.wav b.wav target\n", "line 1: expected the label 1 .same speaker. or 0, found 'a.wav'"),
            ("1 a.wav b.wav\n2 a.wav b.wav\n", "line 2: .*found '2'"),
            ("1 a.wav /b.wav\n", "line 1: .*absolute '/b.wav'"),
            ("1 a.wav b/../../b.wav\n", "line 1: .*inside the root"),
        ],
    )
    def test_malformed(self, tmp_path, text, message):
        (tmp_path / "t.txt").write_text(text)
        with pytest.raises(TrialError, match=message):
            read_trials(tmp_path / "t.txt")

    def test_missing_list(self, tmp_path):
        with pytest.raises(TrialError, match="Cannot read the list"):
            read_trials(tmp_path / "t.txt")

    def test_pairs_of_which_nothing_is_known(self, tmp_path):
        (tmp_path / "pairs.txt").write_text("b.wav a.wav\nb.wav x/c.m4a\n")
        pairs = read_pairs(tmp_path / "pairs.txt")
        assert pairs.paths.tolist() == ["a.wav", "b.wav", "x/c.m4a"] and pairs.labels is None and len(pairs) == 2
        assert pairs.enrol.tolist() == [1, 1] and pairs.test.tolist() == [0, 2]
        (tmp_path / "pairs.txt").write_text("b.wav a.wav\n1 b.wav c.wav\n")
        with pytest.raises(TrialError, match="line 2: expected two paths, found 3 columns"):
            read_pairs(tmp_path / "pairs.txt")

    def test_one_class_is_read(self, tmp_path):
        (tmp_path / "t.txt").write_text("1 a.wav b.wav\n")
        assert read_trials(tmp_path / "t.txt").labels.tolist() == [True]

    def test_voxceleb1_by_name(self, tmp_path, monkeypatch):
        """Speakers are looked for where the archives of the dev and test part, or of both, put them."""
        lines = "1 id1/x/1.wav id1/y/1.wav\n0 id1/x/1.wav id2/z/1.wav\n0 id3/x/1.wav id2/z/1.wav\n"
        monkeypatch.setitem(trials_module.VOXCELEB1_LISTS, "vox1-H", ("list_test_hard.txt", 3))
        with pytest.raises(TrialError, match=r"vox1-H is .*list_test_hard.txt, which does not exist.*https://"):
            read_voxceleb1_trials("vox1-H", tmp_path)
        (tmp_path / "list_test_hard.txt").write_text(lines)
        for path in ("wav/id1/x/1.wav", "wav/id1/y/1.wav", "dev/wav/id2/z/1.wav", "test/wav/id3/x/1.wav"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        trials = read_voxceleb1_trials("vox1-H", tmp_path)
        trials.check_files()
        assert trials.speakers() == {"id1", "id2", "id3"}
        pairs = [(trials.paths[a], trials.paths[b]) for a, b in zip(trials.enrol, trials.test, strict=True)]
        assert pairs[2] == ("test/wav/id3/x/1.wav", "dev/wav/id2/z/1.wav") and trials.labels.tolist() == [
            True,
            False,
            False,
        ]
        (tmp_path / "wav/id1/y/1.wav").unlink()
        with pytest.raises(TrialError, match=r"1 of the 4 utterances.*the first is wav/id1/y/1.wav"):
            trials.check_files()
        (tmp_path / "list_test_hard.txt").write_text(lines[:-1].rpartition("\n")[0])
        with pytest.raises(TrialError, match="expected the 3 trials of vox1-H, found 2"):
            read_voxceleb1_trials("vox1-H", tmp_path)

    def test_check_files(self, tmp_path):
        (tmp_path / "t.txt").write_text("1 id1/a/1.wav id1/b/1.wav\n0 id1/a/1.wav id2/a/1.wav\n")
        for path in ("id1/a/1.wav", "id1/b/1.wav", "id2/a/1.wav"):
            (tmp_path / "test/wav" / path).parent.mkdir(parents=True)
            (tmp_path / "test/wav" / path).touch()
        with pytest.raises(TrialError, match=r"3 of the 3 .*first is id1/a/1.wav. Give .*test/wav as"):
            read_trials(tmp_path / "t.txt").check_files()
        read_trials(tmp_path / "t.txt", tmp_path / "test/wav").check_files()
        (tmp_path / "test/wav/id2/a/1.wav").unlink()
        with pytest.raises(TrialError, match=r"1 of the 3 .*first is id2/a/1.wav"):
            read_trials(tmp_path / "t.txt", tmp_path / "test/wav").check_files()


class TestMaking:
    def test_every_pair(self):
        """a has sessions of 2 and 1, b of 1 and 1.

        Pairs across sessions: 2·1 of a, 1·1 of b. Within too: 3·2/2 = 3 of a, 1 of b. Non-targets: 3·2 = 6.
        """
        corpus = make_corpus({"a": [2, 1], "b": [1, 1]})
        across = make_trials(corpus, None, None, seed=0)
        check(across, corpus)
        assert across.labels.sum() == 3 and (~across.labels).sum() == 6
        left, right = sessions_of(across)
        assert (left != right).all()
        within = make_trials(corpus, None, None, seed=0, cross_session_only=False)
        check(within, corpus)
        assert within.labels.sum() == 4 and (~within.labels).sum() == 6

    def test_seed(self):
        corpus = many(10, [5, 5])
        first, same, other = (make_trials(corpus, 50, 50, seed) for seed in (1, 1, 2))
        for field in ("paths", "enrol", "test", "labels"):
            np.testing.assert_array_equal(getattr(first, field), getattr(same, field))
        assert len(first) == len(other) == 100
        assert not np.array_equal(first.paths[first.enrol], other.paths[other.enrol])

    def test_speakers_are_used_evenly(self):
        """20 speakers: 400 targets are 20 of each; 1,000 non-targets have 2,000 sides, 100 of each."""
        corpus = many(20, [10, 10])
        trials = make_trials(corpus, 400, 1000, seed=0)
        enrol, test = check(trials, corpus)
        assert uses(20, enrol[trials.labels]).tolist() == [20] * 20
        sides = uses(20, enrol[~trials.labels], test[~trials.labels])
        assert sides.sum() == 2000 and sides.min() >= 97 and sides.max() <= 103  # a pair drawn twice is replaced
        left, right = sessions_of(trials)
        assert (left != right)[trials.labels].all()

    def test_shares_of_small_speakers_go_to_the_others(self):
        """a has 2·1 pairs across sessions, b and c have 4·4: of 12 targets a gives 2, the others 5 each."""
        corpus = make_corpus({"a": [2, 1], "b": [4, 4], "c": [4, 4]})
        trials = make_trials(corpus, 12, 10, seed=0)
        enrol, _ = check(trials, corpus)
        assert uses(3, enrol[trials.labels]).tolist() == [2, 5, 5]

    def test_nobody_always_enrols_first(self):
        corpus = many(4, [10, 10])
        trials = make_trials(corpus, 200, 200, seed=0)
        assert 0.35 < (trials.enrol < trials.test).mean() < 0.65

    @pytest.mark.parametrize(("share", "expected"), [(0.5, 100), (1.0, 200), (0.0, 0), (None, 100)])
    def test_same_gender_share(self, share, expected):
        """Half of the non-targets by default; both genders are used evenly: 400 sides of 12 speakers."""
        genders = "mf" * 6
        corpus = many(12, [6, 6], genders)
        trials = make_trials(corpus, 20, 200, seed=3, same_gender=share)
        enrol, test = check(trials, corpus)
        gender = np.array(list(genders))
        same = (gender[enrol] == gender[test])[~trials.labels]
        assert same.sum() == expected
        sides = uses(12, enrol[~trials.labels], test[~trials.labels])
        assert sides.sum() == 400 and sides.min() >= 29 and sides.max() <= 38  # 33 or 34, and repeats replaced

    def test_speakers_of_unknown_gender(self):
        """They are never of the same gender as another, and take part in the other half only."""
        corpus = many(9, [6, 6], "mmmfff---")
        trials = make_trials(corpus, 10, 100, seed=0, same_gender=0.5)
        enrol, test = check(trials, corpus)
        gender = np.array(list("mmmfff---"))
        same = ((gender[enrol] == gender[test]) & (gender[enrol] != "-"))[~trials.labels]
        assert same.sum() == 50
        assert uses(9, enrol[~trials.labels], test[~trials.labels])[6:].min() > 0

    def test_without_genders(self):
        """They play no part unless asked for; asked for, the error says how many pairs there are."""
        corpus = many(4, [2, 2])
        check(make_trials(corpus, 4, 20, seed=0), corpus)
        with pytest.raises(TrialError, match=r"Asked for 10 non-target trials of the same gender .*; 0 and 96 dist"):
            make_trials(corpus, 4, 20, seed=0, same_gender=0.5)

    def test_one_gender_only(self):
        corpus = many(4, [2, 2], "ffff")
        check(make_trials(corpus, 4, 20, seed=0), corpus)
        with pytest.raises(TrialError, match="96 and 0 distinct pairs exist"):
            make_trials(corpus, 4, 20, seed=0, same_gender=0.5)

    @pytest.mark.parametrize("share", [None, 0.5])
    def test_nearly_every_pair(self, share):
        """6 speakers of 4: 15·16 = 240 non-target pairs, 6·16 = 96 of one gender and 9·16 = 144 of two."""
        corpus = many(6, [2, 2], "mfmfmf")
        trials = make_trials(corpus, 24, 192, seed=0, same_gender=share)
        check(trials, corpus)
        assert len(trials) == 216

    def test_a_speaker_with_hardly_any_pairs(self):
        """12 speakers of 12 and one of 1: 66·144 + 144 = 9,648 pairs, 144 of them with that one.

        Its even share of 4,000 pairs' 8,000 sides would be 615: others take the rest.
        """
        corpus = make_corpus({"a": [1], **{f"b{i:02d}": [6, 6] for i in range(12)}})
        trials = make_trials(corpus, 60, 4000, seed=0)
        check(trials, corpus)
        assert (~trials.labels).sum() == 4000

    @pytest.mark.parametrize("genders", ["mmmmmmmmmf", "mmmmmmmm--", "mffffffff-"])
    def test_unequal_groups(self, genders):
        corpus = many(10, [5, 5], genders)
        check(make_trials(corpus, 20, 150, seed=0, same_gender=0.5), corpus)

    def test_too_few_targets(self):
        """Two speakers of sessions 1 + 1: one pair each."""
        with pytest.raises(TrialError, match=r"Asked for 3 target trials; 2 distinct pairs exist that join two sess"):
            make_trials(many(2, [1, 1]), 3, 1, seed=0)

    def test_too_few_nontargets(self):
        with pytest.raises(TrialError, match=r"Asked for 5 non-target trials; 4 distinct pairs exist"):
            make_trials(many(2, [1, 1]), 1, 5, seed=0)
        with pytest.raises(TrialError, match=r"0 distinct pairs exist \(2 utterances, 1 speakers\)"):
            make_trials(many(1, [1, 1]), 1, None, seed=0)

    def test_one_session_each(self, caplog):
        corpus = many(3, [4])
        with pytest.raises(TrialError, match=r"0 distinct pairs exist that join two sessions.*3 without a pair"):
            make_trials(corpus, 3, 3, seed=0)
        assert make_trials(corpus, 18, 3, seed=0, cross_session_only=False).labels.sum() == 18
        mixed = make_corpus({"a": [2, 2], "b": [4]})
        with caplog.at_level(logging.WARNING):
            assert make_trials(mixed, 4, 3, seed=0).labels.sum() == 4
        assert "1 of 2 speakers have one session and yield no target trials" in caplog.text

    def test_corpus_without_sessions(self):
        """Where no sessions are known, whether pairs cross them cannot matter."""
        corpus = many(3, [4])
        corpus.session_names[:] = [""] * 3
        trials = make_trials(corpus, 18, 3, seed=0)
        check(trials, corpus)
        assert trials.labels.sum() == 18  # 3 · 4·3/2

    def test_impossible_arguments(self):
        corpus = many(3, [2, 2])
        with pytest.raises(TrialError, match="at least 1 target trial, got 0"):
            make_trials(corpus, 0, 1, seed=0)
        with pytest.raises(TrialError, match=r"between 0 and 1, got 1\.5"):
            make_trials(corpus, 1, 1, seed=0, same_gender=1.5)
        with pytest.raises(TrialError, match="needs a number of non-target trials"):
            make_trials(corpus, 1, None, seed=0, same_gender=0.5)

    def test_large_speakers_are_not_enumerated(self):
        """Two speakers of 2 × 50,000 utterances: 1e10 non-target pairs, of which 1,000 are drawn."""
        corpus = many(2, [50_000, 50_000])
        trials = make_trials(corpus, 1000, 1000, seed=0)
        check(trials, corpus)
        assert len(trials) == 2000


def test_tool(tmp_path):
    """Two speakers of two sessions of one file: 2 target pairs across sessions, 4 non-target pairs."""
    for path in ("a/x/1.wav", "a/y/1.wav", "b/x/1.wav", "b/y/1.wav"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "tools.make_trials", f"--corpus={tmp_path}", *arguments],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )

    made = run(f"--output={tmp_path}/t.txt", "--targets=0", "--nontargets=0")
    assert made.returncode == 0, made.stderr
    assert "2 target and 4 non-target trials" in made.stdout
    assert f"Use it as: --trials={tmp_path}/t.txt\n" in made.stdout
    read_trials(tmp_path / "t.txt").check_files()
    too_many = run(f"--output={tmp_path}/u.txt", "--targets=3")
    assert too_many.returncode == 1 and "2 distinct pairs exist" in too_many.stderr
    assert not (tmp_path / "u.txt").exists()
    contradiction = run(f"--output={tmp_path}/u.txt", "--nontargets=0", "--same_gender_share=0.5")
    assert contradiction.returncode == 1 and "takes every pair" in contradiction.stderr + contradiction.stdout
