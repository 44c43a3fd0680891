"""Shards hold the files' own bytes, and whatever reads recordings gets the same from them as from the files."""

import collections
import concurrent.futures
import dataclasses
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
import tensorflow as tf
from conftest import voice
from test_audio import write_av

from tools import make_manifest, make_shards
from tools.make_shards import ShardError, plan
from vggvox_tf import audio, pipeline, sampling
from vggvox_tf.corpus import CorpusError, combine, read_corpus, write_manifest

REPOSITORY = Path(__file__).parent.parent
# Of the tiny corpus's wavs, of 29 to 77 kB, two or three in a row go into a shard.
SHARD_BYTES = 150_000
CROP = 16_000


@pytest.fixture(scope="module")
def corpus(tiny_corpus, tmp_path_factory):
    """The tiny corpus and a speaker with a recording in each other container, with lengths and a gender."""
    root = tmp_path_factory.mktemp("files")
    for speaker in tiny_corpus.glob("s?"):
        (root / speaker.name).symlink_to(speaker)
    (root / "s6/ü").mkdir(parents=True)
    wave = voice(240, 2.0, seed=7)
    for suffix in ("flac", "mp3", "ogg"):
        soundfile.write(root / f"s6/ü/1.{suffix}", wave, 16_000)
    soundfile.write(root / "s6/ü/2.flac", voice(240, 2.0, seed=8, rate=44_100), 44_100)
    write_av(root / "s6/ü/1.m4a", wave[:, None], 16_000)
    write_av(root / "s6/ü/1.aac", wave[:, None], 16_000)
    # Whose length nothing states: FFmpeg decodes it.
    options = {"write_xing": "0", "id3v2_version": "0"}
    write_av(root / "s6/ü/2.mp3", wave[:, None], 16_000, "libmp3lame", options)
    # Begun within a frame: FFmpeg knows it by its suffix only.
    cut = write_av(root / "s6/ü/3.aac", voice(240, 0.125, seed=7)[:, None], 16_000)
    cut.write_bytes(cut.read_bytes()[100:])
    (root / "SPEAKERS.TXT").write_text("s6 | F\n")
    whole = read_corpus(root)
    seconds, faults = make_manifest.read_seconds(whole, 2)
    assert not faults and len(whole) == 36 + 8
    return dataclasses.replace(whole, seconds=seconds)


@pytest.fixture(scope="module")
def sharded(corpus, tmp_path_factory):
    """The corpus in shards, read back."""
    output = tmp_path_factory.mktemp("shards")
    make_shards.make_shards(corpus, output, SHARD_BYTES, 4)
    return read_corpus(output / "index.tsv")


def copy(sharded, folder):
    """A copy of the shards that a test may spoil."""
    shutil.copytree(sharded.root, folder)
    return read_corpus(folder / "index.tsv")


def shard_of(path):
    return path.partition(":")[0]


# The plan


def test_plan_by_hand():
    """Records of 16 bytes more: 26, 36, 46, 21, end to end from 0, 26, 62, 108. Those of 50 bytes begin in parts
    0, 0, 1, 2."""
    first, offsets, sizes = plan(np.array([10, 20, 30, 5]), 50)
    assert first.tolist() == [0, 2, 3]
    assert offsets.tolist() == [12, 26 + 12, 12, 12]
    assert sizes.tolist() == [62, 46, 21]


def test_a_recording_larger_than_a_shard_leaves_no_empty_one():
    """They begin at 0, 1016 and 1036: in parts 0, 10 and 10 of 100 bytes."""
    first, offsets, sizes = plan(np.array([1000, 4, 4]), 100)
    assert first.tolist() == [0, 1] and offsets.tolist() == [12, 12, 32] and sizes.tolist() == [1016, 40]


# What is written


def test_shards_hold_the_files_in_order(corpus, sharded):
    files = sorted(sharded.root.glob("*.tfrecord"))
    assert len(files) > 5 and files[0].name == "00000.tfrecord"
    # Nothing else is left.
    assert sorted(os.listdir(sharded.root)) == [*(file.name for file in files), "index.tsv"]
    records = list(tf.data.TFRecordDataset([str(file) for file in files]).as_numpy_iterator())
    assert records == [(corpus.root / path).read_bytes() for path in corpus.paths]


def test_the_index_is_the_corpus_under_other_names(corpus, sharded):
    """s0/a/0.wav is 14,400 samples of two bytes behind 44: 28,844 bytes. So the next begins at 12 + 28,844 + 16."""
    assert sharded.paths[0] == "00000.tfrecord:000000000012+28844:s0/a/0.wav"
    assert sharded.paths[1].startswith("00000.tfrecord:000000028872+")
    assert [path.split(":", 2)[2] for path in sharded.paths] == corpus.paths.tolist()
    np.testing.assert_array_equal(sharded.speakers, corpus.speakers)
    np.testing.assert_array_equal(sharded.sessions, corpus.sessions)
    np.testing.assert_allclose(sharded.seconds, corpus.seconds, rtol=1e-5)
    assert sharded.speaker_names == corpus.speaker_names and sharded.session_names == corpus.session_names
    assert sharded.genders == corpus.genders and sharded.genders[-1] == "f"
    shards = collections.defaultdict(set)
    for path, session in zip(sharded.paths, sharded.sessions, strict=True):
        shards[session].add(shard_of(path))
    assert max(map(len, shards.values())) > 1  # the order was that of a session across shards, too


# What is read


def test_everything_reads_the_same_as_from_the_file(corpus, sharded):
    for file, name in zip(corpus.paths, sharded.paths, strict=True):
        file, name = corpus.root / file, sharded.root / name
        assert audio.num_samples(name) == audio.num_samples(file)
        np.testing.assert_array_equal(audio.load(name), audio.load(file))
        for position in (0, 0.4, 0.99):
            np.testing.assert_array_equal(
                audio.load_crop(os.fsencode(name), position, CROP), audio.load_crop(file, position, CROP)
            )


def test_threads_share_the_open_shards(sharded):
    """Each shard is open once however many read it, and closed when it is forgotten."""

    def descriptors():
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        opened = [os.readlink(link) for link in links if os.path.islink(link)]
        return [file for file in opened if file.startswith(f"{sharded.root}/")]

    audio._shard.cache_clear()
    names = [sharded.root / path for path in sharded.paths] * 4
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        crops = list(pool.map(lambda name: audio.load_crop(name, 0.5, CROP), names))
    for name, crop in zip(names, crops, strict=True):
        np.testing.assert_array_equal(crop, audio.load_crop(name, 0.5, CROP))
    assert sorted(descriptors()) == sorted(map(str, sharded.root.glob("*.tfrecord")))
    audio._shard.cache_clear()
    assert not descriptors()


def test_training_batches_are_the_same(corpus, sharded):
    """Batch for batch, and from the middle on as from the start."""

    def batches(whole, first):
        recordings = pipeline.Recordings(whole, CROP, 0.1)
        sampler = sampling.UtteranceSampler(whole, 8, seed=3)
        result = [(waveforms.numpy(), labels.numpy()) for waveforms, labels in
                  pipeline.dataset(recordings, sampler, 3, first, 6)]  # fmt: skip
        assert not recordings.bad
        return result

    files = batches(corpus, 0)
    for ours, theirs in ((batches(sharded, 0), files), (batches(sharded, 4), files[4:])):
        assert len(ours) == len(theirs)
        for (waveforms, labels), (expected, expected_labels) in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(waveforms, expected)
            np.testing.assert_array_equal(labels, expected_labels)


def test_other_tools_take_the_index(corpus, sharded, tmp_path):
    """Lengths are read as from files, and combined with another corpus the names still lead to the shards."""
    seconds, faults = make_manifest.read_seconds(sharded, 2)
    assert not faults
    np.testing.assert_array_equal(seconds, corpus.seconds)
    soundfile.write(tmp_path / "1.wav", voice(100, 1, 0), 16_000)
    (tmp_path / "index.tsv").write_text("path\tspeaker\tsession\tseconds\tgender\n1.wav\tz\t\t\t\n")
    both = combine([sharded, read_corpus(tmp_path / "index.tsv")])
    np.testing.assert_array_equal(audio.load(both.root / both.paths[0]), audio.load(corpus.root / corpus.paths[0]))


# Bad shards


def assert_error(path, reason):
    for read in (audio.load, audio.num_samples, lambda path: audio.load_crop(path, 0.5, CROP)):
        with pytest.raises(audio.AudioError, match=reason) as caught:
            read(path)
        assert caught.value.path == str(path)  # shard and recording


def test_missing_and_cut_shards(sharded, tmp_path):
    part = copy(sharded, tmp_path / "shards")
    names = collections.defaultdict(list)
    for path in part.paths:
        names[shard_of(path)].append(part.root / path)
    first, second, third = list(names)[:3]
    os.unlink(part.root / first)
    assert_error(names[first][0], "No such file")
    size = os.path.getsize(part.root / second)
    os.truncate(part.root / second, size - 100)
    assert_error(names[second][-1], f"its shard has {size - 100} bytes, not {size - 4}: cut short")
    assert len(audio.load(names[second][0])) > 0
    audio.load(names[third][0])
    os.truncate(part.root / third, 1000)  # while it is open
    assert_error(names[third][0], "its shard was cut short to 1000 bytes")


def test_places_that_hold_no_recording(sharded):
    shard = sharded.root / "00000.tfrecord"
    assert_error(Path(f"{shard}:000000000012+0:a.wav"), "is empty")
    assert_error(Path(f"{shard}:000000000013+20000:a.wav"), "begins b'IFF")
    assert_error(Path(f"{shard}:000000000012+{10**17}:a.wav"), "its shard has")  # nothing of that size is allocated
    assert_error(Path(f"{sharded.root}.tfrecord:12+100:a.wav"), "No such file")
    assert_error(Path(f"{shard}:12:a.wav"), "No such file")  # a plain name


def test_a_playlist_in_a_shard_leads_nowhere(tmp_path):
    content = f"#EXTM3U\n#EXTINF:9,\n{tmp_path}/other.aac\n".encode()
    with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
        writer.write(content)
    assert_error(tmp_path / f"x.tfrecord:12+{len(content)}:a.m3u8", "neither libsndfile .* nor FFmpeg")


@pytest.mark.parametrize(
    "path",
    ["/s/0.tfrecord:12+5:a.wav", "../0.tfrecord:12+5:a.wav", "0.tfrecord:12+5:/a.wav", "0.tfrecord:12+5:../a.wav",
     "0.tfrecord:12+5:a/../b.wav", "0.tfrecord:12+5:.."],
)  # fmt: skip
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, path):
    (tmp_path / "m.tsv").write_text(f"path\tspeaker\tsession\tseconds\tgender\n{path}\ta\t\t\t\n")
    with pytest.raises(CorpusError, match=r"absolute|without '\.\.'"):
        read_corpus(tmp_path / "m.tsv")


# Bad recordings, stopped runs, full disks


@pytest.fixture
def files(tmp_path):
    """Six files of 1,000 bytes of two speakers, which are packed two to a shard: (1000 + 16) · 2 = 2032."""
    for speaker in "ab":
        (tmp_path / "files" / speaker).mkdir(parents=True)
        for index in range(3):
            (tmp_path / "files" / speaker / f"{index}.wav").write_bytes(f"{speaker}{index}".encode() * 500)
    return tmp_path / "files"


def pack(files, output):
    return make_shards.make_shards(read_corpus(files), output, 2032, 2)


def contents(output):
    paths = [str(path) for path in sorted(output.glob("*.tfrecord"))]
    return [record[:2].decode() for record in tf.data.TFRecordDataset(paths).as_numpy_iterator()]


def test_missing_and_empty_recordings_are_named_and_left_out(files, tmp_path):
    write_manifest(read_corpus(files), files / "m.tsv")
    (files / "a/1.wav").unlink()
    (files / "b/0.wav").write_bytes(b"")
    (files / "b/2.wav").unlink()
    (files / "b/2.wav").mkdir()
    sharded, left_out = make_shards.make_shards(read_corpus(files / "m.tsv"), tmp_path / "out", 2032, 2)
    assert left_out == [
        f"{files}/a/1.wav: No such file or directory",
        f"{files}/b/0.wav: is empty (0 bytes)",
        f"{files}/b/2.wav: is no file",
    ]
    assert contents(tmp_path / "out") == ["a0", "a2", "b1"]
    assert read_corpus(tmp_path / "out/index.tsv").paths.tolist() == sharded.paths.tolist() == [
        "00000.tfrecord:000000000012+1000:a/0.wav",
        "00000.tfrecord:000000001028+1000:a/2.wav",
        "00001.tfrecord:000000000012+1000:b/1.wav",
    ]  # fmt: skip


def test_nothing_usable(files, tmp_path):
    whole = read_corpus(files)
    shutil.rmtree(files)
    with pytest.raises(CorpusError, match=r"None of the 6 recordings .*a/0.wav: No such file"):
        make_shards.make_shards(whole, tmp_path / "out", 2032, 2)


def test_a_stopped_run_goes_on(files, tmp_path):
    """Of three shards one is missing, one is short, and something half-written lies about: the third is kept."""
    output = tmp_path / "out"
    pack(files, output)
    # As a kill leaves it.
    os.rename(output / "index.tsv", output / ".index.tsv.partial")
    (output / "00001.tfrecord").unlink()
    (output / ".00001.tfrecord.partial").write_bytes(b"half")
    os.truncate(output / "00002.tfrecord", 2000)
    kept = (output / "00000.tfrecord").stat()
    pack(files, output)
    assert (output / "00000.tfrecord").stat() == kept
    assert contents(output) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    names = ["00000.tfrecord", "00001.tfrecord", "00002.tfrecord", "index.tsv"]
    assert sorted(os.listdir(output)) == names
    # Once complete, nothing is written again but the index.
    before = [(output / name).stat() for name in names[:3]]
    pack(files, output)
    assert [(output / name).stat() for name in names[:3]] == before


def test_what_changed_since_the_stop_is_written_anew(files, tmp_path):
    """In a stopped run's folder: a/2 has other bytes, as many; b/2 is gone. The shard a/0, a/1 alone is kept."""
    output = tmp_path / "out"
    pack(files, output)
    os.rename(output / "index.tsv", output / ".index.tsv.partial")
    kept = (output / "00000.tfrecord").stat()
    time.sleep(0.02)
    (files / "a/2.wav").write_bytes(b"A2" * 500)
    (files / "b/2.wav").unlink()
    pack(files, output)
    assert (output / "00000.tfrecord").stat() == kept
    assert contents(output) == ["a0", "a1", "A2", "b0", "b1"]


def test_other_shards_are_not_overwritten(files, tmp_path):
    """Equal sizes must not make one corpus's shards pass for another's."""
    pack(files, tmp_path / "out")
    os.rename(files / "b", files / "c")
    with pytest.raises(ShardError, match="holds shards of another corpus"):
        pack(files, tmp_path / "out")
    (tmp_path / "out/index.tsv").unlink()
    with pytest.raises(ShardError, match="holds shards of another corpus"):
        pack(files, tmp_path / "out")
    assert contents(tmp_path / "out") == ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_a_recording_that_grows_meanwhile(files, tmp_path, monkeypatch):
    """The run ends, keeps what is complete, and goes on when started again."""
    examine = make_shards.examine

    def examine_then_grow(*arguments):
        found = examine(*arguments)
        (files / "b/1.wav").write_bytes(b"B1" * 600)
        return found

    monkeypatch.setattr(make_shards, "examine", examine_then_grow)
    with pytest.raises(ShardError, match=r"b/1.wav had 1,000 bytes at first and now has 1,200. Run the same command"):
        pack(files, tmp_path / "out")
    assert not (tmp_path / "out/index.tsv").exists()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tfrecord*")) == ["00000.tfrecord", "00001.tfrecord"]
    monkeypatch.undo()
    pack(files, tmp_path / "out")
    assert contents(tmp_path / "out") == ["a0", "a1", "a2", "b0", "B1", "b2"]


def test_full_disk(files, tmp_path, monkeypatch):
    """Three shards of 2,032 bytes beside 5,000."""
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(make_shards.shutil, "disk_usage", lambda path: usage(5000))
    with pytest.raises(ShardError, match=r"3 shards need 0\.000 GB; .* has 0\.000 GB free"):
        pack(files, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tfrecord"))
    monkeypatch.setattr(make_shards.shutil, "disk_usage", lambda path: usage(6096))
    pack(files, tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 6


# As a person runs it


def run(*arguments):
    command = [sys.executable, "-m", "tools.make_shards", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)


def test_the_tool(files, tmp_path):
    write_manifest(read_corpus(files), tmp_path / "m.tsv")
    (files / "a/1.wav").unlink()
    done = run(f"--corpus={tmp_path}/m.tsv", f"--corpus_root={files}", f"--output={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert f"1 recordings were left out, since they cannot be read:\n  {files}/a/1.wav: No such file" in done.stdout
    assert re.search(r"index.tsv: 2 speakers .* 5 utterances, .*, in 1 shards\n", done.stdout)
    assert done.stdout.endswith(f"Use it as: --corpus={tmp_path}/out/index.tsv\n")
    assert "packed 5 of 5 recordings" in done.stderr
    done = run(f"--corpus={files}/a", f"--corpus_root={files}/b", f"--output={tmp_path}/out")
    assert done.returncode == 1 and "error: " in done.stderr and "Traceback" not in done.stderr
