import re

import absl.flags
import pytest
import soundfile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from vggvox_tf import audio, cli, project


@pytest.fixture
def run(monkeypatch, capsys, encoder_file):
    """Runs the entry point with flags of its own, apart from those of other entry points in this process."""

    def run(*arguments):
        values = absl.flags.FlagValues()
        monkeypatch.setattr(project, "FLAGS", values)
        project.define_flags()
        project.main(values(["project", f"--encoder={encoder_file}", *arguments]))
        return capsys.readouterr()

    return run


def test_a_corpus_becomes_a_run(run, tiny_corpus, tmp_path):
    """Five of six speakers, at most four of the six utterances of each."""
    output = tmp_path / "shown"
    printed = run(f"--corpus={tiny_corpus}", f"--output={output}", "--sprites", "--speakers=5", "--utterances=4").out
    share, silhouette = re.search(r"same speaker: (\S+) % of the utterances; silhouette (\S+)\n", printed).groups()
    assert f"tensorboard.main --logdir={output} " in printed

    events = EventAccumulator(str(output), {"tensors": 0}).Reload()
    values = {tag: make_ndarray(events.Tensors(tag)[0].tensor_proto) for tag in events.Tags()["tensors"]}
    assert values.keys() == {"nearest_neighbour_share", "silhouette", "map"}
    assert f"{100 * values['nearest_neighbour_share']:.1f}" == share
    assert f"{values['silhouette']:.3f}" == silhouette

    header, *rows = [line.split("\t") for line in (output / "metadata-utterances.tsv").read_text().splitlines()]
    assert header == ["speaker", "session", "gender", "seconds", "file", "nearest other speaker"]
    assert len(rows) == 20 and len({row[0] for row in rows}) == 5
    for speaker, session, gender, seconds, file, other in rows:
        assert file.startswith(f"{speaker}/{session}/") and gender == "" and other != speaker
        assert float(seconds) == pytest.approx(soundfile.info(tiny_corpus / file).duration, abs=0.01)
    config = (output / "projector_config.pbtxt").read_text()
    assert "(newest) 20 utterances of 5 speakers" in config and "sprite.png" in config
    assert "t-SNE" in (output / "utterances.bookmarks.json").read_text()
    assert (output / "map.png").exists() and (output / "sprite.png").exists()


def test_unusable_recordings_are_left_out(run, tmp_path, tiny_corpus):
    corpus = tmp_path / "corpus"
    for speaker in ("s0", "s1"):
        (corpus / speaker).mkdir(parents=True)
        (corpus / speaker / "text.wav").write_text("no audio")
    with pytest.raises(audio.AudioError, match="0 of 2 recordings can be used, and the projector needs two"):
        run(f"--corpus={corpus}", f"--output={tmp_path / 'none'}")
    for name in ("0", "1"):
        (corpus / "s0" / f"{name}.wav").symlink_to(tiny_corpus / "s0" / "a" / f"{name}.wav")
    printed = run(f"--corpus={corpus}", f"--output={tmp_path / 'two'}")
    assert printed.err.count("left out: ") == 4  # two in either start
    assert "nan" in printed.out  # one speaker is no cluster among others
    assert len((tmp_path / "two" / "utterances.tsv").read_text().splitlines()) == 2


def test_command_lines_that_cannot_be_meant(run, tiny_corpus, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other.txt").touch()
    for arguments, complaint in (
        ([f"--corpus={tiny_corpus}", f"--output={tmp_path / 'full'}"], "has files in it"),
        ([f"--corpus={tmp_path / 'none'}", f"--output={tmp_path / 'new'}"], "does not exist"),
        ([f"--corpus={tiny_corpus}"], "output"),
        ([f"--corpus={tiny_corpus}", f"--output={tmp_path / 'new'}", "--speakers=1"], "speakers"),
    ):
        with pytest.raises(cli.EXPLAINED, match=complaint):
            run(*arguments)
    assert not (tmp_path / "new").exists()
