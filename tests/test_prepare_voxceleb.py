"""The tool as a person runs it, in processes of its own; and its steps where that cannot be seen from outside."""

import gzip
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import voice
from test_audio import write_av

from tools import prepare_voxceleb
from tools.prepare_voxceleb import PrepareError
from vggvox_tf import audio
from vggvox_tf.corpus import read_corpus

REPOSITORY = Path(__file__).parent.parent


def command(corpus, output, *arguments, workers=2):
    module = [sys.executable, "-m", "tools.prepare_voxceleb", f"--workers={workers}"]
    return [*module, f"--corpus={corpus}", f"--output={output}", *map(str, arguments)]


def run(corpus, output, *arguments, code):
    """Runs the tool to its end, checks its exit code, and returns what it printed."""
    whole = command(corpus, output, *arguments, workers=1)  # each takes as long to start as all these recordings
    done = subprocess.run(whole, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def kill_when(condition, process):
    """SIGKILLs the tool once condition() holds; its workers have to end by themselves."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) >= 2
    process.kill()
    process.wait()
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline, "workers outlive the killed tool"
        time.sleep(0.02)


def is_running(process):
    """Whether a process does more than wait to be collected (Z), which in a container nobody may do."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def report(output):
    """{path: problem} of report.tsv."""
    header, *lines = (output / "report.tsv").read_text().splitlines()
    assert header == "path\tproblem"
    return dict(line.split("\t") for line in lines)


def plant(root, path, seconds, **options):
    """A voice at root/path; the pitch follows from the path."""
    path = root / path
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = voice(100 + len(str(path)) % 7 * 20, seconds, seed=1)
    if path.suffix == ".m4a":
        return write_av(path, wave[:, None], 16_000, **options)
    soundfile.write(path, wave, 16_000)
    return path


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """VoxCeleb2's layout: three good recordings, and one with each fault."""
    root = tmp_path_factory.mktemp("vox2")
    (root / "vox2_meta.csv").write_text("VoxCeleb2 ID ,Gender ,Set \nid00001 ,f ,dev \nid00002 ,m ,dev \n")
    aac = root / "dev/aac"
    plant(aac, "id00001/a/00001.m4a", 1.5)
    plant(aac, "id00001/a/00002.m4a", 2.0)
    plant(aac, "id00001/b/00001.m4a", 0.5)
    plant(aac, "id00002/c/00001.m4a", 1.0)
    cut(plant(aac, "id00002/c/no_index.m4a", 2.0), 0.9)
    cut(plant(aac, "id00002/c/no_end.m4a", 4.0, options={"movflags": "faststart"}), 0.6)
    soundfile.write(aac / "id00002/c/silent.wav", np.zeros(32_000, np.int16), 16_000)
    cut(plant(aac, "id00002/c/cut.wav", 2.0), 0.5)
    (aac / "id00002/c/empty.m4a").touch()
    (aac / "id00002/c/text.m4a").write_text("404 Not Found")
    return aac


HEADERS_FIND = {
    "id00001/b/00001.m4a": "too short: 0.500 s of at least 1 s",
    "id00002/c/no_index.m4a": "unreadable: MP4 without a readable index",
    "id00002/c/cut.wav": "unreadable: cut short: header says 64000 bytes of samples",
    "id00002/c/empty.m4a": "unreadable: is empty (0 bytes)",
    "id00002/c/text.m4a": "unreadable: neither libsndfile",
}
DECODING_FINDS = {
    **HEADERS_FIND,
    "id00002/c/no_end.m4a": "unreadable: damaged or cut short",
    "id00002/c/silent.wav": "silent: no sample reaches",
}


def check_report(output, expected):
    found = report(output)
    assert sorted(found) == sorted(expected)
    for path, problem in expected.items():
        assert found[path].startswith(problem), (path, found[path])


def test_faults_are_found_by_header_and_by_decoding(corpus, tmp_path):
    printed = run(corpus, tmp_path, "--part=vox2-dev", code=1)
    check_report(tmp_path, HEADERS_FIND)
    text = (tmp_path / "report.md").read_text()
    assert "| speakers | 2 | 5,994 |" in text and "| utterances | 10 | 1,092,009 |" in text
    assert "| too short | 1 |" in text and "| unreadable | 4 |" in text
    assert "0 of 10 recordings have been decoded" in text
    usable = ["id00001/a/00001.m4a", "id00001/a/00002.m4a", "id00002/c/00001.m4a"]
    manifest = read_corpus(tmp_path / "manifest.tsv", corpus)
    assert manifest.paths.tolist() == [*usable, "id00002/c/no_end.m4a", "id00002/c/silent.wav"]
    np.testing.assert_allclose(manifest.seconds, [1.5, 2, 1, 4, 2])
    assert manifest.genders == ["f", "m"]
    assert f"use it as: --corpus={tmp_path}/manifest.tsv --corpus_root={corpus}" in printed

    # With the same journal: what only the headers were read of is decoded now. A shorter minimum needs no new check.
    run(corpus, tmp_path, "--decode", "--minimum_seconds=0.4", code=1)
    check_report(tmp_path, {path: p for path, p in DECODING_FINDS.items() if not p.startswith("too short")})
    assert read_corpus(tmp_path / "manifest.tsv").paths.tolist() == [*usable[:2], "id00001/b/00001.m4a", usable[2]]

    # What decoding found is not forgotten by a run that reads headers.
    run(corpus, tmp_path, code=1)
    check_report(tmp_path, DECODING_FINDS)


def test_expected_files(tiny_corpus, tmp_path):
    """The tiny corpus is complete by one list; by another it lacks a speaker and a file, and has a speaker more."""
    names = [f"s{s}/{session}/{i}" for s in range(6) for session in "ab" for i in range(3)]
    with gzip.open(tmp_path / "durations.txt.gz", "wt") as file:  # as in pyannote's wheel
        file.writelines(f"{name} 3.960062\n" for name in names)
    plain = ["--minimum_seconds=0.8", f"--expected={tmp_path}/durations.txt.gz"]
    printed = run(tiny_corpus, tmp_path / "o", *plain, code=0)
    assert "| utterances | 36 | 36 |" in printed and "Missing speakers: none." in printed
    assert report(tmp_path / "o") == {}
    assert len(read_corpus(tmp_path / "o/manifest.tsv", tiny_corpus)) == 36

    (tmp_path / "list.txt").write_text("".join(f"x/{name}.m4a\n" for name in [*names[6:], "s1/a/9", "s9/a/0"]))
    run(tiny_corpus, tmp_path / "o", "--minimum_seconds=0.8", f"--expected={tmp_path}/list.txt", code=1)
    text = (tmp_path / "o/report.md").read_text()
    assert "Missing speakers: s9.\n\nExtra speakers: s0.\n" in text
    assert "| s0 | 0 | 6 |\n| s1 | 7 | 6 |\n| s9 | 1 | 0 |\n" in text and "| s2 |" not in text
    assert report(tmp_path / "o") == {
        **{f"{name}.wav": "extra: --expected does not list it" for name in names[:6]},
        "s1/a/9": "missing: --expected lists it",
        "s9/a/0": "missing: --expected lists it",
    }
    # Extra ones are usable: only named.
    assert len(read_corpus(tmp_path / "o/manifest.tsv", tiny_corpus)) == 36


def test_killed_check_goes_on(tiny_corpus, tmp_path):
    """A named pipe stands in for the last recording: reading it waits until the tool is killed."""
    source, output = tmp_path / "corpus", tmp_path / "o"
    shutil.copytree(tiny_corpus, source)
    pipe = source / "s6/a/0.wav"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    journal = output / "journal.tsv"
    process = subprocess.Popen(command(source, output), cwd=REPOSITORY)
    kill_when(lambda: journal.exists() and journal.read_text().count("\n") == 36, process)
    assert not (output / "manifest.tsv").exists()

    pipe.unlink()
    shutil.copy(source / "s0/b/2.wav", pipe)
    with open(journal, "a") as file:
        file.write("s6/a/0.wav\t12")  # as if the kill had come in the middle of a line
    damaged = [source / "s1/a/1.wav", source / "s2/a/1.wav"]
    for path in damaged:
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
    os.utime(damaged[0], ns=(status.st_atime_ns, damaged[0].stat().st_mtime_ns + 1))
    # The second keeps size and time, so that its damage shows that the journal is believed.
    line = next(line for line in journal.read_text().splitlines() if line.startswith("s2/a/1.wav"))
    os.utime(damaged[1], ns=(status.st_atime_ns, int(line.split("\t")[2])))
    before = journal.read_text()

    run(source, output, "--minimum_seconds=0.8", code=1)
    assert list(report(output)) == ["s1/a/1.wav"]
    assert len(read_corpus(output / "manifest.tsv", source)) == 36
    added = journal.read_text().removeprefix(before.removesuffix("s6/a/0.wav\t12")).splitlines()
    assert [line.split("\t")[0] for line in added] == ["s1/a/1.wav", "s6/a/0.wav"]


@pytest.mark.parametrize("container", ["wav", "flac"])
def test_conversion(corpus, tmp_path, container):
    """Sample for sample what audio.load gives, rounded; and what only decoding finds is in the report."""
    target = tmp_path / "converted"
    printed = run(corpus, tmp_path / "o", f"--convert={container}", f"--destination={target}", code=1)
    check_report(tmp_path / "o", DECODING_FINDS)
    names = ["id00001/a/00001", "id00001/a/00002", "id00002/c/00001"]
    for name in names:
        file = target / f"{name}.{container}"
        info = soundfile.info(file)
        assert (info.samplerate, info.channels, info.subtype, info.format) == (16_000, 1, "PCM_16", container.upper())
        exact = np.rint(audio.load(corpus / f"{name}.m4a") * 32768)
        np.testing.assert_array_equal(soundfile.read(file, dtype="int16")[0], exact)
    converted = read_corpus(target / "manifest.tsv")
    assert converted.paths.tolist() == [f"{name}.{container}" for name in names] and converted.genders == ["f", "m"]
    np.testing.assert_allclose(converted.seconds, [1.5, 2, 1])
    assert read_corpus(tmp_path / "o/manifest.tsv").paths.tolist() == [f"{name}.m4a" for name in names]
    assert f"use it as: --corpus={target}/manifest.tsv\n" in printed
    assert sorted(path.name for path in target.iterdir()) == ["id00001", "id00002", "manifest.tsv"]


def test_killed_conversion_goes_on(tiny_corpus, tmp_path):
    """A named pipe stands where the last file is to be written: the tool waits there until it is killed."""
    output, target = tmp_path / "o", tmp_path / "flac"
    arguments = ["--minimum_seconds=0.8", "--convert=flac", f"--destination={target}"]
    pipe = target / "s5/b/.2.flac.partial"
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    process = subprocess.Popen(command(tiny_corpus, output, *arguments), cwd=REPOSITORY)
    kill_when(lambda: len(list(target.rglob("*.flac"))) == 35, process)

    pipe.unlink()
    pipe.write_bytes(b"fLaC half a file")
    cut(target / "s1/a/1.flac", 0.7)  # as after a power cut
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*.flac")}
    run(tiny_corpus, output, *arguments, code=0)
    assert not pipe.exists()
    after = {path: path.stat().st_mtime_ns for path in target.rglob("*.flac")}
    changed = {str(path.relative_to(target)) for path in after if after[path] != before.get(path)}
    assert changed == {"s1/a/1.flac", "s5/b/2.flac"}
    converted = read_corpus(target / "manifest.tsv")
    for path in converted.paths:
        original = audio.load(tiny_corpus / Path(path).with_suffix(".wav"))
        np.testing.assert_array_equal(audio.load(target / path), original)


class TestConvert:
    def test_what_is_there(self, tmp_path):
        """A good one is left, one of another length or older than its source is replaced."""
        source, target = plant(tmp_path, "a/1.m4a", 1.0), str(tmp_path / "b/1.wav")
        finding = prepare_voxceleb.convert(str(source), target, "wav", 16_000)
        assert finding.samples == 16_000 and finding.decoded and not finding.problem
        assert prepare_voxceleb.convert(str(source), target, "wav", 16_000) is None
        good = Path(target).read_bytes()
        soundfile.write(target, voice(100, 0.9, 1), 16_000)
        assert prepare_voxceleb.convert(str(source), target, "wav", 16_000).samples == 16_000
        assert Path(target).read_bytes() == good
        os.utime(target, (0, 0))
        assert prepare_voxceleb.convert(str(source), target, "wav", 16_000).samples == 16_000

    def test_a_bad_source_leaves_the_target(self, tmp_path):
        source, target = plant(tmp_path, "a/1.m4a", 1.0), tmp_path / "b/1.wav"
        prepare_voxceleb.convert(str(source), str(target), "wav", 16_000)
        good = target.read_bytes()
        cut(source, 0.9)
        os.utime(target, (0, 0))  # so that it is not left for being newer
        finding = prepare_voxceleb.convert(str(source), str(target), "wav", 16_000)
        assert finding.problem.startswith("unreadable: ") and not finding.samples
        assert target.read_bytes() == good and os.listdir(target.parent) == ["1.wav"]

    def test_full_disk_leaves_the_target(self, tmp_path):
        source, target = plant(tmp_path, "a/1.m4a", 1.0), plant(tmp_path, "b/1.wav", 0.9)
        good = target.read_bytes()
        (tmp_path / "b/.1.wav.partial").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"No space left on device: .*/b/1\.wav"):
            prepare_voxceleb.convert(str(source), str(target), "wav", 16_000)
        assert target.read_bytes() == good and os.listdir(target.parent) == ["1.wav"]

    def test_silent_once_rounded(self, tmp_path):
        """3.3 steps of 16 bit are above audio.SILENCE, and the 3 that are left are not: nobody could load that."""
        soundfile.write(tmp_path / "x.wav", np.full(16_000, 3.3 / 32768), 16_000, subtype="FLOAT")
        assert len(audio.load(tmp_path / "x.wav")) == 16_000
        finding = prepare_voxceleb.convert(str(tmp_path / "x.wav"), str(tmp_path / "y.wav"), "wav", 16_000)
        assert finding.problem.startswith("silent: ") and not (tmp_path / "y.wav").exists()


def test_disk_full_in_the_middle(tmp_path):
    """White noise, of which FLAC makes 100 % and not the estimated 60 %: 16 files of 65 kB on a disk of 840 kB.

    The estimate is 16 · (2 s · 32,000 B/s · 0.6 + 4,096 B) = 680 kB.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=840k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        random = np.random.default_rng(0)
        for i in range(16):
            path = tmp_path / f"corpus/s{i:02}/0.wav"
            path.parent.mkdir(parents=True)
            soundfile.write(path, random.uniform(-1, 1, 32_000), 16_000)
        arguments = [tmp_path / "corpus", tmp_path / "o", "--convert=flac", f"--destination={disk}/flac"]
        printed = run(*arguments, code=1)
        assert re.search(r"error: .*\.flac: No space left on device\. Free some space; the same command", printed)
        done = sorted((disk / "flac").rglob("*.flac"))
        assert 1 <= len(done) < 16 and not list(disk.rglob(".*"))
        assert all(len(audio.load(path)) == 32_000 for path in done)
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        times = [path.stat().st_mtime_ns for path in done]
        run(*arguments, code=0)
        assert times == [path.stat().st_mtime_ns for path in done]
        assert len(read_corpus(disk / "flac/manifest.tsv")) == 16
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_space_is_checked_first(tmp_path, monkeypatch):
    """An hour as WAV: 115,200,000 B and a block of 4,096 B. Of two hours one is there already."""
    (tmp_path / "1.wav").touch()
    targets = [str(tmp_path / "1.wav"), str(tmp_path / "2.wav")]
    samples = np.array([3600 * 16_000] * 2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=115_204_096))
    prepare_voxceleb.check_space(targets, samples, "wav", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=115_204_095))
    with pytest.raises(PrepareError, match=r"1 files, 1\.0 hours, need about 0\.115 GB as wav; .* has 0\.115 GB free"):
        prepare_voxceleb.check_space(targets, samples, "wav", tmp_path)
    prepare_voxceleb.check_space(targets, samples, "flac", tmp_path)


def test_two_sources_of_one_name():
    paths = np.array(["a/1.wav", "a/2.wav", "a/1.m4a"], object)
    with pytest.raises(PrepareError, match=r"a/1\.wav and a/1\.m4a would both become a/1\.flac"):
        prepare_voxceleb.converted_paths(paths, "flac")


def test_one_run_at_a_time(tiny_corpus, tmp_path):
    corpus = read_corpus(tiny_corpus)
    with (
        prepare_voxceleb.Journal(tmp_path / "journal.tsv", corpus),
        pytest.raises(PrepareError, match="Another run is using"),
    ):
        prepare_voxceleb.Journal(tmp_path / "journal.tsv", corpus)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--convert=wav"], "--convert and --destination go together"),
        (["--convert=wav", "--destination=d", "--decode"], "--decode has no effect with --convert"),
        (["--convert=wav", "--destination={corpus}/wav"], "lies in the corpus"),
        (["--expected={corpus}/trials.gz"], "Cannot read --expected"),
        (["--corpus={corpus}/trials.txt"], "is no folder"),
    ],
)
def test_mistakes(tiny_corpus, tmp_path, arguments, message):
    printed = run(tiny_corpus, tmp_path, *(a.format(corpus=tiny_corpus) for a in arguments), code=1)
    assert message in printed and os.listdir(tmp_path) == []
