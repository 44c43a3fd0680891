"""Corpora of empty files: layouts, genders, manifests. Reading a folder opens no audio."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vggvox_tf import corpus as corpus_module
from vggvox_tf.corpus import Corpus, CorpusError, read_corpus, read_manifest, replacing, write_manifest

REPOSITORY = Path(__file__).parents[1]
HEADER = "path\tspeaker\tsession\tseconds\tgender\n"


def plant(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def rows(corpus):
    """(path, speaker's name, session's name) of every utterance."""
    return [
        (path, corpus.speaker_names[speaker], corpus.session_names[session])
        for path, speaker, session in zip(corpus.paths, corpus.speakers, corpus.sessions, strict=True)
    ]


class TestFolders:
    @pytest.mark.parametrize("base", ["", "wav/", "test/wav/", "dev/wav/", "vox1_dev_wav/wav/"])
    def test_voxceleb1(self, tmp_path, base):
        plant(
            tmp_path,
            f"{base}id10271/b/00002.wav",
            f"{base}id10271/b/00001.wav",
            f"{base}id10270/b/00001.wav",
            f"{base}id10271/a/00009.WAV",
            "vox1_meta.csv",
            "veri_test.txt",
        )
        (tmp_path / "vox1_meta.csv").write_text("VoxCeleb1 ID\tVGGFace1 ID\tGender\nid10271\tx\tf\n")
        corpus = read_corpus(tmp_path)
        assert rows(corpus) == [
            (f"{base}id10270/b/00001.wav", "id10270", "b"),
            (f"{base}id10271/a/00009.WAV", "id10271", "a"),
            (f"{base}id10271/b/00001.wav", "id10271", "b"),
            (f"{base}id10271/b/00002.wav", "id10271", "b"),
        ]
        # Session "b" of one speaker is not session "b" of the other.
        assert corpus.speakers.tolist() == [0, 1, 1, 1] and corpus.sessions.tolist() == [0, 1, 2, 2]
        assert corpus.speakers.dtype == corpus.sessions.dtype == np.int32
        assert corpus.session_names == ["b", "a", "b"] and corpus.genders == ["", "f"]
        assert np.isnan(corpus.seconds).all() and corpus.seconds.dtype == np.float32
        assert corpus.root == tmp_path and len(corpus) == 4

    def test_voxceleb2_from_any_of_its_folders(self, tmp_path):
        plant(tmp_path, "dev/aac/id00012/21Uxsk56VDQ/00001.m4a", "test/aac/id00017/x/00001.m4a")
        plant(tmp_path, "dev/txt/id00012/21Uxsk56VDQ/00001.txt")
        # As it really is: byte-order mark, spaces around commas, CRLF.
        meta = "\ufeffVoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \r\n"
        meta += "id00012 ,n000012 ,m ,dev \r\nid00017 ,n000017 ,f ,test \r\n"
        (tmp_path / "vox2_meta.csv").write_bytes(meta.encode())
        both = read_corpus(tmp_path)
        assert rows(both) == [
            ("dev/aac/id00012/21Uxsk56VDQ/00001.m4a", "id00012", "21Uxsk56VDQ"),
            ("test/aac/id00017/x/00001.m4a", "id00017", "x"),
        ]
        assert both.genders == ["m", "f"]
        # The meta file is found from two folders below it.
        dev = read_corpus(tmp_path / "dev/aac")
        assert dev.paths.tolist() == ["id00012/21Uxsk56VDQ/00001.m4a"] and dev.genders == ["m"]

    def test_librispeech_with_and_without_subsets(self, tmp_path):
        plant(tmp_path, "train-clean-100/19/198/19-198-0000.flac", "dev-clean/84/121123/84-121123-0000.flac")
        plant(tmp_path, "train-clean-100/19/198/19-198.trans.txt")
        (tmp_path / "SPEAKERS.TXT").write_text(
            "; ID | SEX | SUBSET\n19   | F | train-clean-100 | 25.19 | Kara\n84 | M | dev-clean | 8 | x\n"
        )
        corpus = read_corpus(tmp_path)
        assert rows(corpus) == [
            ("train-clean-100/19/198/19-198-0000.flac", "19", "198"),
            ("dev-clean/84/121123/84-121123-0000.flac", "84", "121123"),
        ]
        assert corpus.genders == ["f", "m"]
        subset = read_corpus(tmp_path / "dev-clean")
        assert rows(subset) == [("84/121123/84-121123-0000.flac", "84", "121123")] and subset.genders == ["m"]

    def test_any_folder_per_speaker(self, tmp_path, caplog):
        plant(tmp_path, "bob/1.wav", "ann/2.ogg", "ann/1.mp3", "ann/day 1/cam/3.aac", "stray.wav", "notes.txt")
        plant(tmp_path, "__MACOSX/bob/._1.wav", ".git/x/1.wav", "ann/.hidden.wav", "empty/readme.txt")
        corpus = read_corpus(tmp_path)
        assert rows(corpus) == [
            ("ann/1.mp3", "ann", ""),
            ("ann/2.ogg", "ann", ""),
            ("ann/day 1/cam/3.aac", "ann", "day 1/cam"),
            ("bob/1.wav", "bob", ""),
        ]
        assert corpus.sessions.tolist() == [0, 0, 1, 2]
        assert "ignored 1 audio files in no speaker's folder: stray.wav" in caplog.text

    def test_a_speaker_of_a_subsets_name(self, tmp_path):
        """`dev` directly holds audio, so it is a person's folder and no subset."""
        plant(tmp_path, "dev/1.wav", "eve/1.wav")
        assert read_corpus(tmp_path).speaker_names == ["dev", "eve"]

    def test_root_above_the_folder(self, tmp_path):
        plant(tmp_path, "a/ann/1.wav")
        assert read_corpus(tmp_path / "a", root=tmp_path).paths.tolist() == ["a/ann/1.wav"]
        with pytest.raises(CorpusError, match="or one above it"):
            read_corpus(tmp_path, root=tmp_path / "a")

    def test_progress(self, tmp_path):
        counts = []
        read_corpus(plant(tmp_path, "a/1.wav", "b/1.wav", "b/2.wav"), progress=counts.append)
        assert counts[-1] == 3

    def test_links(self, tmp_path, caplog):
        """A linked speaker is read; a broken link and one that leads back to the root are skipped."""
        plant(tmp_path, "elsewhere/1.wav", "corpus/ann/1.wav")
        (tmp_path / "corpus/bob").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "corpus/ann/gone.wav").symlink_to(tmp_path / "nowhere.wav")
        (tmp_path / "corpus/ann/loop").symlink_to(tmp_path / "corpus")
        with caplog.at_level(logging.WARNING):
            corpus = read_corpus(tmp_path / "corpus")
        assert corpus.paths.tolist() == ["ann/1.wav", "bob/1.wav"]
        assert "skipped 2 broken or circular links" in caplog.text and "gone.wav" in caplog.text

    def test_unreadable_folder(self, tmp_path, monkeypatch):
        plant(tmp_path, "ann/1.wav", "bob/1.wav")
        scandir = os.scandir

        def forbidding(folder):  # chmod does not stop root, whom tests may run as
            if str(folder).rstrip("/").endswith("bob"):
                raise PermissionError(13, "Permission denied")
            return scandir(folder)

        monkeypatch.setattr(corpus_module.os, "scandir", forbidding)
        with pytest.raises(CorpusError, match=r"Cannot list .*bob/?: Permission denied"):
            read_corpus(tmp_path)

    @pytest.mark.parametrize(
        ("paths", "message"),
        [
            ([], "No audio files below"),
            (["ann/1.txt"], "No audio files below"),
            (["1.wav", "2.wav"], r"holds 2 audio files \(.*\) but no folder per speaker"),
            (["wav/1.wav"], "audio files lie directly in wav, with no folder per speaker"),
            (["train/ann/1.wav", "bob/1.wav"], "train look like subsets, but beside them bob"),
            (["vox1/test/wav/id1/a/1.wav", "noise/1.wav"], "vox1 looks like a corpus of its own"),
        ],
    )
    def test_folders_that_do_not_say_who_speaks(self, tmp_path, paths, message):
        with pytest.raises(CorpusError, match=message):
            read_corpus(plant(tmp_path, *paths))

    def test_neither_folder_nor_manifest(self, tmp_path):
        with pytest.raises(CorpusError, match="does not exist"):
            read_corpus(tmp_path / "nothing")
        with pytest.raises(CorpusError, match="neither a folder nor a manifest"):
            read_corpus(plant(tmp_path, "list.txt") / "list.txt")
        with pytest.raises(CorpusError, match="Cannot read the manifest"):
            read_corpus(tmp_path / "nothing.tsv")

    def test_meta_file_without_its_columns(self, tmp_path):
        plant(tmp_path, "id10270/a/1.wav")
        (tmp_path / "vox1_meta.csv").write_text("name,sex\n")
        with pytest.raises(CorpusError, match=r"expected the columns 'VoxCeleb1 ID'.*found \['name', 'sex'\]"):
            read_corpus(tmp_path)


class TestManifests:
    def test_written_and_read(self, tmp_path):
        (tmp_path / "manifest.tsv").write_text(
            HEADER
            + "b/y/2.wav\tb\ty\t2.5\tm\n"
            + "a/1.wav\ta\t\t\t\n"
            + "b/x/1.wav\tb\tx\t10\t\n"
            + "b/y/1.wav\tb\ty\t0.25\tm\n"
        )
        corpus = read_corpus(tmp_path / "manifest.tsv")
        assert rows(corpus) == [
            ("a/1.wav", "a", ""),
            ("b/x/1.wav", "b", "x"),
            ("b/y/1.wav", "b", "y"),
            ("b/y/2.wav", "b", "y"),
        ]
        np.testing.assert_array_equal(corpus.seconds, np.float32([np.nan, 10, 0.25, 2.5]))
        assert corpus.genders == ["", "m"] and corpus.root == tmp_path
        assert corpus.summary() == (
            "2 speakers (0 f, 1 m, 1 unknown), 4 utterances, 3 sessions, 0.00 hours in the 3 of known length"
        )

        write_manifest(corpus, tmp_path / "new/copy.tsv")
        assert (tmp_path / "new/copy.tsv").read_text() == (
            HEADER
            + "a/1.wav\ta\t\t\t\n"
            + "b/x/1.wav\tb\tx\t10\tm\n"
            + "b/y/1.wav\tb\ty\t0.25\tm\n"
            + "b/y/2.wav\tb\ty\t2.5\tm\n"
        )
        copy = read_manifest(tmp_path / "new/copy.tsv", root="/data")
        assert rows(copy) == rows(corpus) and str(copy.root) == "/data"
        assert os.listdir(tmp_path / "new") == ["copy.tsv"]

    def test_folder_and_its_manifest_agree(self, tmp_path):
        plant(tmp_path, "dev/wav/b/s/2.wav", "dev/wav/b/s/10.wav", "test/wav/a/s/1.wav", "test/wav/b/r/1.wav")
        corpus = read_corpus(tmp_path)
        write_manifest(corpus, tmp_path / "m.tsv")
        again = read_corpus(tmp_path / "m.tsv")
        assert rows(again) == rows(corpus)
        assert again.sessions.tolist() == corpus.sessions.tolist() == [0, 1, 2, 2]

    def test_as_a_spreadsheet_saves_it(self, tmp_path):
        (tmp_path / "m.tsv").write_bytes(
            b"\xef\xbb\xbf" + (HEADER + "a/1.wav\ta\t\t1\tf\n").replace("\n", "\r\n").encode()
        )
        corpus = read_manifest(tmp_path / "m.tsv")
        assert rows(corpus) == [("a/1.wav", "a", "")] and corpus.genders == ["f"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "line 1: expected the tab-separated header"),
            ("path,speaker,session,seconds,gender\n", "line 1: expected the tab-separated header"),
            (HEADER, "lists no utterances"),
            (
                HEADER + "a.wav\ta\t\t\t\nb.wav b\n",
                r"line 3: expected 5 tab-separated columns .*, found 1: 'b.wav b",
            ),
            (HEADER + "a.wav\ta\t\t\t\n\n", "line 3: expected 5 tab-separated columns .*, found 1"),
            (HEADER + "/etc/a.wav\ta\t\t\t\n", "line 2: .*absolute '/etc/a.wav'"),
            (HEADER + "a/../../b.wav\ta\t\t\t\n", r"line 2: .*without '\.\.', found 'a/\.\./\.\./b.wav'"),
            (HEADER + "..\ta\t\t\t\n", "line 2: .*inside the root"),
            (HEADER + "\ta\t\t\t\n", "line 2: expected a path, found an empty column"),
            (HEADER + "a.wav\t\t\t\t\n", "line 2: expected a speaker"),
            (HEADER + "a.wav\ta\t\tlong\t\n", "line 2: expected seconds above 0 .*, found 'long'"),
            (HEADER + "a.wav\ta\t\t0\t\n", "line 2: expected seconds above 0 .*, found '0'"),
            (HEADER + "a.wav\ta\t\tnan\t\n", "line 2: expected seconds above 0 .*, found 'nan'"),
            (HEADER + "a.wav\ta\t\tinf\t\n", "line 2: expected seconds above 0"),
            (HEADER + "a.wav\ta\t\t\tfemale\n", "line 2: expected gender m, f or empty, found 'female'"),
            (
                HEADER + "a.wav\ta\t\t\tf\nb.wav\ta\t\t\tm\n",
                "line 3: gender of speaker a is 'm' here and 'f' above",
            ),
            (
                HEADER + "b.wav\tb\t\t\t\na.wav\ta\t\t\t\nb.wav\tc\t\t\t\n",
                "b.wav stands on line 2 and again on line 4",
            ),
        ],
    )
    def test_malformed(self, tmp_path, text, message):
        (tmp_path / "m.tsv").write_text(text)
        with pytest.raises(CorpusError, match=message) as error:
            read_manifest(tmp_path / "m.tsv")
        assert "m.tsv" in str(error.value)

    def test_two_dots_in_a_name_are_fine(self, tmp_path):
        (tmp_path / "m.tsv").write_text(HEADER + "a../b..wav\ta\t\t\t\n")
        assert len(read_manifest(tmp_path / "m.tsv")) == 1

    def test_names_that_a_manifest_cannot_hold(self, tmp_path):
        corpus = read_corpus(plant(tmp_path / "c", "a\tb/1.wav"))
        with pytest.raises(CorpusError, match="cannot hold tabs or line breaks"):
            write_manifest(corpus, tmp_path / "m.tsv")
        assert os.listdir(tmp_path) == ["c"]  # nothing half-written is left

    def test_a_failed_write_leaves_the_old_file(self, tmp_path):
        (tmp_path / "m.tsv").write_text("old")
        with pytest.raises(RuntimeError), replacing(tmp_path / "m.tsv") as file:
            file.write("new")
            raise RuntimeError
        assert (tmp_path / "m.tsv").read_text() == "old" and os.listdir(tmp_path) == ["m.tsv"]


class TestSelection:
    @pytest.fixture
    def corpus(self, tmp_path) -> Corpus:
        return read_corpus(plant(tmp_path, "a/x/1.wav", "b/x/1.wav", "b/y/1.wav", "c/z/1.wav"))

    def test_select_numbers_speakers_and_sessions_anew(self, corpus):
        part = corpus.select(np.array([False, False, True, True]))
        assert rows(part) == [("b/y/1.wav", "b", "y"), ("c/z/1.wav", "c", "z")]
        assert part.speakers.tolist() == part.sessions.tolist() == [0, 1] and part.genders == ["", ""]
        assert part.speakers.dtype == part.sessions.dtype == np.int32

    def test_impossible_selections(self, corpus):
        with pytest.raises(CorpusError, match="No utterance is left"):
            corpus.select(np.zeros(4, bool))
        with pytest.raises(CorpusError, match=r"Expected a bool mask \(4,\), got int64 \(1,\)"):
            corpus.select(np.array([0]))


class TestMakeManifest:
    def run(self, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "tools.make_manifest", *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )

    def test_with_seconds(self, tmp_path):
        """A second, half a second at 8 kHz, and a text file renamed: that one is named and has no length."""
        plant(tmp_path, "ann/x/1.wav", "bob/x/1.flac", "bob/x/2.wav")
        soundfile.write(tmp_path / "ann/x/1.wav", np.zeros(16000, np.int16), 16000)
        soundfile.write(tmp_path / "bob/x/1.flac", np.zeros(4000, np.int16), 8000)
        (tmp_path / "bob/x/2.wav").write_text("no audio at all")
        result = self.run(f"--corpus={tmp_path}", "--seconds", "--workers=2")
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "manifest.tsv").read_text() == (
            HEADER + "ann/x/1.wav\tann\tx\t1\t\nbob/x/1.flac\tbob\tx\t0.5\t\nbob/x/2.wav\tbob\tx\t\t\n"
        )
        assert "1 files have no length" in result.stdout and "bob/x/2.wav: " in result.stdout
        assert f"Use it as: --corpus={tmp_path}/manifest.tsv\n" in result.stdout

    def test_elsewhere(self, tmp_path):
        """The paths stay relative to the corpus, so training has to be told where that is."""
        plant(tmp_path, "speech/ann/1.wav", "speech/bob/1.wav")
        result = self.run(f"--corpus={tmp_path}/speech", f"--output={tmp_path}/lists/m.tsv")
        assert f"Use it as: --corpus={tmp_path}/lists/m.tsv --corpus_root={tmp_path}/speech\n" in result.stdout
        assert rows(read_manifest(tmp_path / "lists/m.tsv")) == rows(read_corpus(tmp_path / "speech"))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "No audio files below"),
            (["--output=m.txt"], "must end in .tsv"),
            (["--workers=2"], "no effect without --seconds"),
            (["more"], "unexpected arguments: more"),
        ],
    )
    def test_mistakes(self, tmp_path, arguments, message):
        result = self.run(f"--corpus={tmp_path}", *arguments)
        assert result.returncode == 1 and "Traceback" not in result.stderr
        assert message in result.stderr + result.stdout
