"""Copies the recordings of a trial list as if each were made with a microphone of its own, and makes a list of them.

  python -m tools.simulate_channels --trials=pieces.txt --trials_root=/data/extra --output=/data/channels

Where a corpus has one session of each speaker, target trials share a microphone and a room, and an encoder that knows
those looks better than it is. Here each recording goes through a low shelf, a peak and a high shelf of up to
8 dB, gets coloured noise at 25 to 45 dB, and another level. The list is OUTPUT/trials.txt. It is a stand-in:
recordings of several sessions are better.
"""

import sys
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
from absl import app, flags

from vggvox_tf import audio
from vggvox_tf.frontend import SAMPLE_RATE
from vggvox_tf.trials import TrialError, Trials, read_trials, write_trials

FLAGS = flags.FLAGS

Q = 0.7
DECIBELS = 8  # largest gain of a filter, up or down
SNR = (25, 45)  # dB
LEVELS = (-16, -6)  # peak, dB of full scale


def define_flags():
    # Not at import: tests import this beside other modules with flags of the same names.
    flags.DEFINE_string("trials", None, "Trial list whose recordings are copied.")
    flags.DEFINE_string("trials_root", None, "Folder its paths start from; default: its own.")
    flags.DEFINE_string("output", None, "Folder for the recordings (wav) and trials.txt.")
    flags.DEFINE_integer("seed", 0, "Draws the channels.", 0)
    flags.mark_flags_as_required(["trials", "output"])


def low_shelf(frequency, decibels):
    """(b, a) of a filter that raises what is below a frequency in Hz; of Bristow-Johnson's cookbook, as the others."""
    gain, w = 10 ** (decibels / 40), 2 * np.pi * frequency / SAMPLE_RATE
    slope, cos = np.sqrt(gain) * np.sin(w) / Q, np.cos(w)
    up, down = gain + 1, gain - 1
    b = gain * np.array([up - down * cos + slope, 2 * (down - up * cos), up - down * cos - slope])
    return b, np.array([up + down * cos + slope, -2 * (down + up * cos), up + down * cos - slope])


def high_shelf(frequency, decibels):
    """The same of what is above: all of it raised, and what is below lowered."""
    b, a = low_shelf(frequency, -decibels)
    return b * 10 ** (decibels / 20), a


def peak(frequency, decibels):
    """The same of what is around a frequency."""
    gain, w = 10 ** (decibels / 40), 2 * np.pi * frequency / SAMPLE_RATE
    alpha, cos = np.sin(w) / (2 * Q), np.cos(w)
    b, a = ([1 + alpha * part, -2 * cos, 1 - alpha * part] for part in (gain, 1 / gain))
    return np.array(b), np.array(a)


# Each with frequencies in Hz between which its own is drawn, evenly on a logarithmic scale.
FILTERS = ((low_shelf, 100, 400), (peak, 500, 3000), (high_shelf, 2000, 6000))


def through_channel(speech, decibels, random):
    """Speech (n,) as by a drawn microphone in a drawn place."""
    for kind, lowest, highest in FILTERS:
        frequency = np.exp(random.uniform(np.log(lowest), np.log(highest)))
        speech = scipy.signal.lfilter(*kind(frequency, random.uniform(-decibels, decibels)), speech)
    noise = scipy.signal.lfilter([1], [1, -random.uniform(0, 0.95)], random.normal(size=speech.size))
    noise *= np.sqrt(np.mean(speech**2) / np.mean(noise**2)) * 10 ** (-random.uniform(*SNR) / 20)
    recording = speech + noise
    return recording * 10 ** (random.uniform(*LEVELS) / 20) / np.abs(recording).max()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    output, random = Path(FLAGS.output), np.random.default_rng(FLAGS.seed)
    try:
        trials = read_trials(FLAGS.trials, FLAGS.trials_root)
        copies = np.array([f"{path}.wav" for path in trials.paths], object)
        for path, copy in zip(trials.paths, copies, strict=True):
            recording = through_channel(audio.load(trials.root / path), DECIBELS, random)
            (output / copy).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(output / copy, recording, SAMPLE_RATE)
        write_trials(Trials(output, copies, trials.enrol, trials.test, trials.labels), output / "trials.txt")
    except (audio.AudioError, TrialError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{output / 'trials.txt'}: {len(trials):,} trials over {len(copies):,} recordings")


if __name__ == "__main__":
    define_flags()
    app.run(main)
