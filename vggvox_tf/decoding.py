"""Decoding in processes of their own, since decoders in threads wait for each other under Python's lock.

A process is `python -m vggvox_tf.decoding`, which has neither TensorFlow nor the model in it. Down its pipe comes a
task, (paths, positions, samples), and back goes what audio.load_crops makes of it, both pickled. It ends when its pipe
does, however the training process ended.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from vggvox_tf import audio


class Processes:
    """So many processes that decode; each starts when it is first needed."""

    def __init__(self, number):
        self.number = number
        self._idle = queue.SimpleQueue()
        for _ in range(number):
            self._idle.put(_Process())

    def load_crops(self, paths, positions, samples):
        """audio.load_crops in the next idle process.

        Where a recording brings the process down, as a fault in a decoder may, it is one more AudioError.
        """
        process = self._idle.get()
        try:
            return process.load_crops(paths, positions, samples)
        finally:
            self._idle.put(process)


class _Process:
    def __init__(self):
        self._process = None

    def load_crops(self, paths, positions, samples):
        if not self._process:
            self._process = _start()
        try:
            pickle.dump((paths, positions, samples), self._process.stdin)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            code = self.close()
        if len(paths) > 1:  # one at a time, to find the one that did it
            crops, errors = np.empty((len(paths), samples), np.int16), {}
            for row, (path, position) in enumerate(zip(paths, positions, strict=True)):
                (crops[row],), error = self.load_crops([path], [position], samples)
                errors |= {row: error[0]} if error else {}
            return crops, errors
        how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
        return np.empty((1, samples), np.int16), {0: audio.AudioError(paths[0], f"ended its decoding process by {how}")}

    def close(self):
        """Ends it; returns its exit code."""
        process, self._process = self._process, None
        with process.stdout, contextlib.suppress(BrokenPipeError), process.stdin:
            process.kill()
        return process.wait()


def _start():
    package = Path(__file__).parents[1]  # the process finds it wherever the command was given
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "vggvox_tf.decoding"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    )


def main():
    # What is sent to the whole group is for the training process, which reads on while it saves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tasks, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library may print is not a result
    while True:
        try:
            task = pickle.load(tasks)
        except EOFError:
            return
        try:
            pickle.dump(audio.load_crops(*task), results, protocol=5)
            results.flush()
        except BrokenPipeError:
            os._exit(0)  # the training process is gone


if __name__ == "__main__":
    main()
