import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vggvox_tf import audio, decoding

SAMPLES = 8_000


@pytest.fixture
def processes():
    started = decoding.Processes(1)
    yield started
    started._idle.get().close()


def paths_of(corpus, count=4):
    return [str(path) for path in sorted(corpus.rglob("*.wav"))[:count]]


def test_a_process_gives_what_load_crops_gives(processes, tiny_corpus):
    paths, positions = [*paths_of(tiny_corpus), "/there/is/no.wav"], [0.0, 0.25, 0.5, 0.999, 0.5]
    crops, errors = processes.load_crops(paths, positions, SAMPLES)
    expected, expected_errors = audio.load_crops(paths, positions, SAMPLES)
    assert crops.dtype == np.int16 and crops.flags.writeable
    np.testing.assert_array_equal(crops[:4], expected[:4])
    assert {row: str(error) for row, error in errors.items()} == {4: str(expected_errors[4])}
    assert isinstance(errors[4], audio.AudioError) and errors[4].path == "/there/is/no.wav"


def test_a_recording_that_brings_its_process_down_is_a_bad_one(processes, tiny_corpus, tmp_path):
    """A sitecustomize in the process's path kills it where it opens that one, as a fault in a decoder would."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def look(event, arguments):\n"
        "    if event == 'open' and 'deadly' in str(arguments[0]):\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "sys.addaudithook(look)\n"
    )
    deadly = tmp_path / "deadly.wav"
    deadly.write_bytes(Path(paths_of(tiny_corpus)[0]).read_bytes())
    paths = paths_of(tiny_corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        crops, errors = processes.load_crops([*paths[:2], str(deadly), paths[2]], [0.5] * 4, SAMPLES)
    assert list(errors) == [2] and errors[2].path == str(deadly) and "signal 11" in errors[2].reason
    expected, _ = audio.load_crops(paths[:3], [0.5] * 3, SAMPLES)
    np.testing.assert_array_equal(crops[[0, 1, 3]], expected)


def test_processes_end_with_the_one_that_started_them(tiny_corpus):
    """SIGKILL leaves nobody to say goodbye; SIGTERM to the whole group is for the training process alone."""
    code = (
        "import sys, time; from vggvox_tf import decoding; processes = decoding.Processes(1)\n"
        f"processes.load_crops({paths_of(tiny_corpus)!r}, [0.5] * 4, {SAMPLES})\n"
        "process = processes._idle.get()\n"
        "print(process._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        os.kill(child, signal.SIGTERM)
        os.kill(child, signal.SIGINT)
        time.sleep(0.3)
        os.kill(child, 0)  # it is there
        parent.kill()
    for _ in range(100):
        try:
            os.kill(child, 0)
            # In a container nobody may take a zombie's exit code.
            if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.1)
    pytest.fail("the decoding process outlived its parent by ten seconds")
