"""What the entry points have in common: parsing flags, and telling a person's mistakes from the program's."""

import errno
import os
import sys
import time
import traceback

from absl import app, flags, logging

from vggvox_tf.audio import AudioError
from vggvox_tf.augment import AugmentError
from vggvox_tf.calibration import CalibrationError
from vggvox_tf.corpus import CorpusError
from vggvox_tf.embeddings import EmbeddingsError
from vggvox_tf.gallery import GalleryError
from vggvox_tf.metrics import MetricsError
from vggvox_tf.pipeline import TooManyBadFilesError
from vggvox_tf.run import RunError, Terminated
from vggvox_tf.sampling import SamplingError
from vggvox_tf.scoring import ScoringError
from vggvox_tf.speaker_encoder import EncoderError
from vggvox_tf.trials import TrialError

# Their messages say what is wrong with which file or flag; a traceback would only hide that.
EXPLAINED = (
    AudioError, AugmentError, CalibrationError, CorpusError, EmbeddingsError, EncoderError, FloatingPointError,
    GalleryError, MetricsError, RunError, SamplingError, ScoringError, TooManyBadFilesError, TrialError, flags.Error,
)  # fmt: skip

# Of sysexits.h's codes the one that says "temporary failure: try again", for schedulers that start a job again by it.
CONTINUE = 75


def start(main, arguments=False):
    """Runs main(argv) under absl; errors that explain themselves end the program with one line and exit code 1.

    A training run that was told to end by SIGTERM ends with CONTINUE once it has saved its state.

    Args:
      arguments: whether main takes arguments beside the flags; otherwise they are refused.
    """

    def explained(argv):
        if len(argv) > 1 and not arguments:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        try:
            return main(argv)
        except EXPLAINED as error:
            print(f"error: {error}", file=sys.stderr)
        except Terminated as error:
            print(error, file=sys.stderr)
            _leave(CONTINUE)
        except BrokenPipeError:  # of `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            _leave(130)  # what a shell expects after Ctrl-C
        except Exception as error:
            full = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT) if os.strerror(code) in str(error)]
            if full:  # whichever library wrote
                print(f"error: {error}", file=sys.stderr)
                print(f"{full[0]}: make room, and run the same command again; what was saved is whole", file=sys.stderr)
            else:
                traceback.print_exc()
        _leave(1)

    # Otherwise flags after the first argument would count as arguments.
    flags.FLAGS.set_gnu_getopt(arguments)
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    app.run(explained)


def _leave(code):
    """Ends the process without the interpreter's own shutdown.

    Threads of tf.data that are on their way into a Python function when the interpreter shuts down wait for it for
    ever, and the shutdown for them.
    """
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def show_progress(total):
    """A progress callback that rewrites one line of a terminal, or else writes a line every ten seconds.

    The time left is by the rate since the first call, before which the model was made ready.
    """
    last = time.monotonic()
    first = None

    def progress(done):
        nonlocal first, last
        now = time.monotonic()
        first = first or (now, done)
        line = f"{done:,} of {total:,} recordings embedded"
        if done > first[1]:
            left = (now - first[0]) * (total - done) / (done - first[1])
            line += f", about {_duration(left)} left"
        if sys.stderr.isatty():
            print(f"\r{line:<79}", end="" if done < total else "\n", file=sys.stderr)
        elif now > last + 10:
            last = now
            logging.info("%s", line)

    return progress


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
