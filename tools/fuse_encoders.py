"""Makes one encoder of several, or of one that hears a recording at several speeds; its cosines are the mean of theirs.

  python -m tools.fuse_encoders --encoders=runs/vggm/encoder.keras,runs/resnet/encoder.keras --output=runs/both
  python -m tools.fuse_encoders --encoders=runs/vggm/encoder.keras --speeds=0.9,1,1.1 --output=runs/three_speeds

Encoders of different trunks err in different places, so together they err less. They are trained by themselves, each on
a core or a machine of its own. So does an encoder that was trained with --speeds_are_speakers at different speeds, at
each of which a voice is another one to it. An embedding is as long as all of them together, and takes as much time.
"""

from pathlib import Path

from absl import app, flags

from vggvox_tf import encoders
from vggvox_tf.run import training_speakers
from vggvox_tf.speaker_encoder import EncoderError, SpeakerEncoder

FLAGS = flags.FLAGS


def define_flags():
    # Not at import: tests import this beside other modules with flags of the same names.
    flags.DEFINE_list("encoders", None, "Encoder files, comma-separated.")
    flags.DEFINE_list("speeds", ["1"], "Speeds at which each of them hears a recording, such as 0.9,1,1.1.")
    flags.DEFINE_string("output", None, "Folder to write encoder.keras to, and speakers.txt, all that they trained on.")
    flags.mark_flags_as_required(["encoders", "output"])


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    speeds = speeds_given()
    if len(FLAGS.encoders) * len(speeds) < 2:
        raise app.UsageError("expected two or more --encoders, or two or more --speeds, separated by commas")
    output = Path(FLAGS.output)
    if output.exists() and any(output.iterdir()):
        raise app.UsageError(f"--output={output}: expected a new folder, found files in it")
    speakers = {path: training_speakers(path) for path in FLAGS.encoders}
    if unknown := [path for path, names in speakers.items() if names is None]:
        raise app.UsageError(
            f"{unknown[0]}: expected speakers.txt beside it, the names of those that it was trained on, by which "
            "vggvox_tf.evaluate refuses to test on them; found none"
        )
    try:
        parts = {path: SpeakerEncoder.load(path).model for path in FLAGS.encoders}
    except EncoderError as error:
        raise app.UsageError(str(error)) from None
    if again := [path for path, part in parts.items() if encoders.is_fused(part)]:
        raise app.UsageError(f"{again[0]}: expected a trained encoder, found a fused one; give those it was made of")
    if len(parts) < len(FLAGS.encoders):
        raise app.UsageError("--encoders: expected each encoder once")
    encoder = SpeakerEncoder(encoders.fused(parts.values(), speeds))
    output.mkdir(parents=True, exist_ok=True)
    encoder.save(output / "encoder.keras")
    (output / "speakers.txt").write_text("".join(f"{name}\n" for name in sorted(set().union(*speakers.values()))))
    print(f"{output}/encoder.keras: {len(parts) * len(speeds)} parts, {encoder.model.count_params():,} parameters, "
          f"{encoder.dimension} dimensions")  # fmt: skip


def speeds_given():
    """Different numbers from 0.5 to 2, with two decimals."""
    try:
        speeds = [float(text) for text in FLAGS.speeds]
        if speeds and len(set(speeds)) == len(speeds) and all(0.5 <= x <= 2 and round(x, 2) == x for x in speeds):
            return speeds
    except ValueError:
        pass
    raise app.UsageError(
        f"--speeds: expected different numbers from 0.5 to 2 with at most two decimals, found {','.join(FLAGS.speeds)}"
    )


if __name__ == "__main__":
    define_flags()
    app.run(main)
