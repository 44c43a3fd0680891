"""What the entry points have in common: parsing flags, and telling a person's mistakes from the program's."""

import sys

from absl import app, flags, logging

from vggvox_tf.audio import AudioError
from vggvox_tf.corpus import CorpusError
from vggvox_tf.pipeline import TooManyBadFilesError
from vggvox_tf.run import RunError
from vggvox_tf.sampling import SamplingError
from vggvox_tf.scoring import EncoderError
from vggvox_tf.trials import TrialError

# Their messages say what is wrong with which file or flag; a traceback would only hide that.
EXPLAINED = (
    AudioError, CorpusError, EncoderError, FloatingPointError, RunError, SamplingError, TooManyBadFilesError,
    TrialError, flags.Error,
)  # fmt: skip


def start(main):
    """Runs main(argv) under absl; errors that explain themselves end the program with one line and exit code 1."""

    def explained(argv):
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        try:
            return main(argv)
        except EXPLAINED as error:
            sys.exit(f"error: {error}")

    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    app.run(explained)
