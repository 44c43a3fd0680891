"""The projector's files by hand, and through the code with which TensorBoard serves them. No browser: for
that there is tools/screenshot_projector.py."""

import json

import numpy as np
import pytest
from google.protobuf import text_format
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from tensorboard.summary import Writer
from werkzeug.test import Client

from vggvox_tf import projector

EMBEDDINGS = np.array([[1, -0.5], [0, 0.0123456], [9.999996, 1e-3]], np.float32)
METADATA = {"speaker": ["Ann", "Ann", "Bob"], "utterance": ["1.wav", "2.wav", "1.wav"]}


def config_of(folder):
    return text_format.Parse((folder / projector.CONFIG_NAME).read_text(encoding="utf-8"), ProjectorConfig())


def served(logdir, route, query="", provider=None):
    """What TensorBoard's projector plugin answers, started anew; `query` unescaped, as the page sends it."""
    plugin = ProjectorPlugin(TBContext(logdir=str(logdir), data_provider=provider))
    answer = Client(plugin.get_plugin_apps()[route]).open(path="/", query_string=query)
    assert answer.status_code == 200, answer.text
    return answer


def test_files_by_hand(tmp_path):
    """Six digits and a power of ten each: 1 = 100000e-5; 0.0123456 = 123456e-7; 9.999996 rounds to
    10.0000."""
    projector.export(tmp_path / "run", "epoch-01", EMBEDDINGS, METADATA, title="epoch 01 (EER 6.2 %)")
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        "epoch-01.tsv",
        "metadata.tsv",
        projector.CONFIG_NAME,
    ]
    assert (run / "epoch-01.tsv").read_text() == (
        "+100000e-05\t-500000e-06\n+000000e-05\t+123456e-07\n+100000e-04\t+100000e-08\n"
    )
    assert (run / "metadata.tsv").read_text() == "speaker\tutterance\nAnn\t1.wav\nAnn\t2.wav\nBob\t1.wav\n"
    (entry,) = config_of(run).embeddings
    assert entry.tensor_name == "(newest) epoch 01 (EER 6.2 %)"
    assert (entry.tensor_path, entry.metadata_path) == ("epoch-01.tsv", "metadata.tsv")
    assert list(entry.tensor_shape) == [3, 2]


def test_one_column_has_no_header(tmp_path):
    """TensorBoard takes the first line of a single column for the first point's label."""
    projector.export(tmp_path, "a", EMBEDDINGS, {"speaker": ["Ann", "Änne", "Bob"]})
    assert (tmp_path / "metadata.tsv").read_text(encoding="utf-8") == "Ann\nÄnne\nBob\n"


def test_metadata_values_that_the_page_would_misread(tmp_path):
    """Tabs and line breaks would shift cells and rows; an empty label may make a blank line, which is
    skipped."""
    projector.export(tmp_path, "a", EMBEDDINGS, {"speaker": ["A\tnn", "", "B\r\nob"], "gender": ["f", "", "m"]})
    assert (tmp_path / "metadata.tsv").read_text() == "speaker\tgender\nA nn\tf\n?\t\nB  ob\tm\n"


def test_labels_that_are_all_numbers(tmp_path):
    """A column of numbers cannot be the label: another column would be shown in its place."""
    projector.export(tmp_path, "a", EMBEDDINGS, {"speaker": ["1089", "0121", "1089"], "seconds": ["3", "4", "5"]})
    lines = (tmp_path / "metadata.tsv").read_text().splitlines()
    assert lines == ["speaker\tseconds", "speaker 1089\t3", "speaker 0121\t4", "speaker 1089\t5"]


def test_values_read_back(tmp_path):
    """Six digits are right to 5e-6 relative, from the smallest to the largest float32."""
    limits = np.finfo(np.float32)
    exact = [0, -0.0, limits.max, -limits.max, limits.tiny, limits.smallest_subnormal, 1e-5, 99999.95, 1, -10]
    rng = np.random.default_rng(0)
    values = rng.normal(size=(500, len(exact))) * 10.0 ** rng.integers(-30, 30, size=(500, len(exact)))
    values = np.concatenate([np.array([exact], np.float32), values.astype(np.float32)])
    projector.export(tmp_path, "a", values, {"speaker": ["x"] * len(values)})
    read = np.loadtxt(tmp_path / "a.tsv", delimiter="\t")  # float64, so that nothing overflows
    assert read.shape == values.shape
    assert np.all(np.abs(read - values) <= 5.001e-6 * np.abs(values.astype(np.float64)))


def test_many_blocks(tmp_path, monkeypatch):
    """Blocks of 7 // 3 = 2 rows join without a seam, the last one shorter."""
    monkeypatch.setattr(projector, "_BLOCK", 7)
    values = np.arange(15, dtype=np.float32).reshape(5, 3)
    projector.export(tmp_path, "a", values, {"speaker": list("abcde")})
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "a.tsv", delimiter="\t"), values)


def test_float16_and_float64_are_welcome(tmp_path):
    for kind in (np.float16, np.float64):
        projector.export(tmp_path, kind.__name__, EMBEDDINGS.astype(kind), METADATA)
        read = np.loadtxt(tmp_path / f"{kind.__name__}.tsv", delimiter="\t")
        np.testing.assert_allclose(read, EMBEDDINGS, rtol=1e-3)


def test_newest_first(tmp_path):
    for epoch in (1, 2, 3):
        projector.export(tmp_path, f"epoch-{epoch}", epoch * EMBEDDINGS, METADATA, title=f"epoch {epoch}")
    names = [entry.tensor_name for entry in config_of(tmp_path).embeddings]
    assert names == ["(newest) epoch 3", "epoch 2", "epoch 1"]
    assert min(names) == names[0]  # the page sorts by title
    # A resumed run exports an epoch again with equal content: no error, no second entry.
    projector.export(tmp_path, "epoch-2", 2 * EMBEDDINGS, METADATA, title="epoch 2")
    names = [entry.tensor_name for entry in config_of(tmp_path).embeddings]
    assert names == ["(newest) epoch 2", "epoch 3", "epoch 1"]


def test_other_content_under_the_same_name(tmp_path):
    projector.export(tmp_path, "a", EMBEDDINGS, METADATA)
    before = (tmp_path / "a.tsv").read_bytes()
    with pytest.raises(ValueError, match=r"a\.tsv is there with other content.*replace=True"):
        projector.export(tmp_path, "a", 2 * EMBEDDINGS, METADATA)
    assert (tmp_path / "a.tsv").read_bytes() == before
    projector.export(tmp_path, "a", 2 * EMBEDDINGS, METADATA, title="again", replace=True)
    assert (tmp_path / "a.tsv").read_bytes() != before
    assert [entry.tensor_name for entry in config_of(tmp_path).embeddings] == ["(newest) again"]
    assert not list(tmp_path.glob(".*"))  # no temporary file left, after the error neither


def test_other_points_in_the_same_folder(tmp_path):
    projector.export(tmp_path, "a", EMBEDDINGS, METADATA)
    with pytest.raises(ValueError, match=r"metadata\.tsv is there with other content.*another folder"):
        projector.export(tmp_path, "b", EMBEDDINGS, {"speaker": ["Ann", "Bob", "Bob"]})
    assert not (tmp_path / "b.tsv").exists()


def test_deleted_tensors_are_dropped_and_foreign_entries_kept(tmp_path):
    projector.export(tmp_path, "a", EMBEDDINGS, METADATA)
    projector.export(tmp_path, "b", 2 * EMBEDDINGS, METADATA)
    config = config_of(tmp_path)
    config.embeddings[0].bookmarks_path = "views.txt"
    (tmp_path / projector.CONFIG_NAME).write_text(text_format.MessageToString(config))
    (tmp_path / "a.tsv").unlink()
    projector.export(tmp_path, "c", 3 * EMBEDDINGS, METADATA)
    entries = config_of(tmp_path).embeddings
    assert [entry.tensor_name for entry in entries] == ["(newest) c", "b"]
    assert entries[1].bookmarks_path == "views.txt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": np.zeros((100_001, 2), np.float32)}, "at most 100,000.*100,001; draw a subset"),
        ({"embeddings": EMBEDDINGS[:2]}, "Expected 2 values of metadata.*Received 3 in column 'speaker'"),
        ({"embeddings": EMBEDDINGS[0]}, r"\(N, D\).*float32 \(2,\)"),
        ({"embeddings": EMBEDDINGS[:1], "metadata": {"speaker": ["x"]}}, "N >= 2"),
        ({"embeddings": EMBEDDINGS.astype(int)}, "of floats"),
        ({"embeddings": EMBEDDINGS * [[1], [np.nan], [1]]}, "NaN or infinity in row 1"),
        ({"metadata": {}}, "at least one column"),
        ({"name": "metadata"}, "file name"),
        ({"name": "../a"}, "file name"),
        ({"name": ""}, "Received none"),
        ({"title": "p & q"}, "'&' in 'p & q'"),
        ({"title": "100%25"}, "'%25'"),
        ({"title": "weights:0"}, ":0"),
        ({"title": "there already"}, "no other tensor"),
    ],
)
def test_errors_say_what_to_do_and_write_nothing(tmp_path, changes, message):
    projector.export(tmp_path, "first", EMBEDDINGS, METADATA, title="there already")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    arguments = {"name": "a", "embeddings": EMBEDDINGS, "metadata": METADATA} | changes
    with pytest.raises(ValueError, match=message):
        projector.export(tmp_path, **arguments)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_broken_config_is_named(tmp_path):
    (tmp_path / projector.CONFIG_NAME).write_text("embeddings {")
    with pytest.raises(ValueError, match=projector.CONFIG_NAME):
        projector.export(tmp_path, "a", EMBEDDINGS, METADATA)


def test_tensorboard_serves_what_was_exported(tmp_path):
    projector.export(tmp_path, "before", 2 * EMBEDDINGS, METADATA, title="before training")
    projector.export(tmp_path, "epoch-01", EMBEDDINGS, METADATA, title="épreuve 01 (EER 6.2 %)")
    assert served(tmp_path, "/runs").json == ["."]
    embeddings = json.loads(served(tmp_path, "/info", "run=.").text)["embeddings"]
    newest = "(newest) épreuve 01 (EER 6.2 %)"
    assert [entry["tensorName"] for entry in embeddings] == [newest, "before training"]
    assert embeddings[0]["tensorShape"] == [3, 2]
    # A browser escapes spaces and letters beyond ASCII in an address, but not the "%" of a title.
    query = f"run=.&name={newest}&num_rows=100000".replace(" ", "%20").replace("é", "%C3%A9")
    tensor = np.frombuffer(served(tmp_path, "/tensor", query).data, "<f4").reshape(3, 2)
    np.testing.assert_allclose(tensor, EMBEDDINGS, rtol=1e-5)
    assert served(tmp_path, "/metadata", query).text == (tmp_path / "metadata.tsv").read_text()


def test_a_folder_counts_once_it_holds_an_event_file(tmp_path):
    projector.export(tmp_path / "run", "a", EMBEDDINGS, METADATA)

    def runs():
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
        multiplexer.Reload()
        return served(tmp_path, "/runs", provider=MultiplexerDataProvider(multiplexer, str(tmp_path))).json

    assert runs() == []
    writer = Writer(str(tmp_path / "run"))
    writer.add_scalar("eer", 0.1, step=0)
    writer.close()
    assert runs() == ["run"]
