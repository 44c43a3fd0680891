"""Shows any recordings in TensorBoard's projector: python -m vggvox_tf.project --encoder=E --corpus=C --output=FOLDER

Embeds some utterances of some speakers, drawn from a seed, and writes into FOLDER what TensorBoard shows: the projector
with the utterances and the speakers' mean vectors, two numbers on how well speakers are clusters, and a map (also as
map.png). Nothing is trained.
"""

import os
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import flags

from vggvox_tf import audio, cli, clusters, maps, projector, sprites
from vggvox_tf.corpus import read_corpus
from vggvox_tf.speaker_encoder import SpeakerEncoder

FLAGS = flags.FLAGS


def define_flags():
    # Not at import: tests import this beside other modules with flags of the same names.
    flags.DEFINE_string("encoder", None, "Encoder file, RUN/encoder.keras.", flag_values=FLAGS)
    flags.DEFINE_string(
        "corpus", None, "Recordings: a manifest (.tsv), or a folder with one per speaker.", flag_values=FLAGS
    )
    flags.DEFINE_string(
        "corpus_root", None, "Folder the manifest's paths start from; default: the manifest's own.", flag_values=FLAGS
    )
    flags.DEFINE_string("output", None, "New or empty folder for TensorBoard's files and map.png.", flag_values=FLAGS)
    flags.DEFINE_boolean("sprites", False, "Draw every point as a small picture of its spectrogram.", flag_values=FLAGS)
    flags.DEFINE_integer(
        "speakers", 50, "Most speakers to show; the projector has no colours for more than 50.", 2, flag_values=FLAGS
    )
    flags.DEFINE_integer("utterances", 20, "Most utterances of each speaker.", 1, flag_values=FLAGS)
    flags.DEFINE_integer("seed", 0, "Draws the speakers and utterances.", 0, flag_values=FLAGS)
    flags.mark_flags_as_required(["encoder", "corpus", "output"], flag_values=FLAGS)


def project(encoder, corpus, output, rows, with_sprites=False, seed=0):
    """Writes a TensorBoard run with the projector of a corpus's utterances.

    Args:
      encoder: a SpeakerEncoder.
      corpus: a corpus.Corpus.
      output: the folder.
      rows: (N,) indices of the utterances. Those that cannot be used are left out and named on stderr.
      seed: of t-SNE, and of what it draws where there are more points than it places.

    Returns:
      The scalars by name.

    Raises:
      audio.AudioError: fewer than two recordings can be used.
    """
    errors = {}
    paths = corpus.paths[rows]
    vectors = encoder.embed_files(paths, corpus.root, progress=cli.show_progress(len(rows)), errors=errors)
    for index in sorted(errors)[:10]:
        print(f"left out: {errors[index]}", file=sys.stderr)
    usable = np.array([index not in errors for index in range(len(rows))])
    if usable.sum() < 2:
        raise audio.AudioError(
            corpus.root, f"{usable.sum()} of {len(rows)} recordings can be used, and the projector needs two"
        )
    rows, paths, vectors = rows[usable], paths[usable], vectors[usable]
    speakers = np.array(corpus.speaker_names)[corpus.speakers[rows]]
    seconds = corpus.seconds[rows]
    if not np.isfinite(seconds).all():
        seconds = encoder.lengths(paths, corpus.root) / audio.SAMPLE_RATE
    metadata = {
        "speaker": speakers,
        "session": [corpus.session_names[session] for session in corpus.sessions[rows]],
        "gender": [corpus.genders[speaker] for speaker in corpus.speakers[rows]],
        "seconds": [f"{value:.2f}" for value in seconds],
        "file": paths,
    }
    sprite = None
    if with_sprites:
        pictures = sprites.thumbnails(encoder.model, corpus.root, paths, projector.sprite_size(len(rows)))
        sprite = projector.write_sprite(output, pictures)
    scalars = {
        "nearest_neighbour_share": clusters.nearest_neighbour_share(vectors, speakers, seed),
        "silhouette": clusters.silhouette(vectors, speakers),
    }
    shown = maps.sample(len(rows), seed)
    places = maps.t_sne(vectors[shown], seed)
    title = f"{len(rows):,} utterances of {len(set(speakers)):,} speakers"
    projector.export_speakers(
        output, "utterances", vectors, metadata, title, sprite, places if len(shown) == len(rows) else None
    )
    # The event file last: with it the folder becomes a run, which a TensorBoard that is running already then reads.
    picture = maps.draw(places, speakers[shown], Path(output) / "map.png", f"{title} (t-SNE)")
    with tf.summary.create_file_writer(str(output)).as_default():
        for name, value in scalars.items():
            tf.summary.scalar(name, value, step=0)
        tf.summary.image("map", picture[np.newaxis], step=0)
    return scalars


def main(_):
    output = Path(FLAGS.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise flags.Error(f"--output={output} has files in it: give a new folder, or empty it.")
    corpus = read_corpus(FLAGS.corpus, FLAGS.corpus_root)
    rows = projector.subset(corpus.speakers, FLAGS.seed, FLAGS.speakers, FLAGS.utterances)
    encoder = SpeakerEncoder.load(FLAGS.encoder)
    scalars = project(encoder, corpus, output, rows, FLAGS.sprites, FLAGS.seed)
    print(
        f"Nearest neighbour of the same speaker: {100 * scalars['nearest_neighbour_share']:.1f} % of the utterances; "
        f"silhouette {scalars['silhouette']:.3f}"
    )
    print(f"To see it: {os.path.basename(sys.executable)} -m tensorboard.main --logdir={output} --host=localhost")


if __name__ == "__main__":
    define_flags()
    cli.start(main)
