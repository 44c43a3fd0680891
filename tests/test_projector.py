"""The projector's files by hand, and through the code with which TensorBoard serves them. No browser: for
that there is tools/browser.py."""

import json

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from sklearn.decomposition import PCA, TruncatedSVD
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
        "epoch-01.bookmarks.json",
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
    assert entry.bookmarks_path == "epoch-01.bookmarks.json"
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
        ({"name": "metadata-speakers"}, "file name"),
        ({"points": "speakers"}, "metadata-….*'speakers'"),
        ({"sprite": projector.Sprite(4, 8, 8)}, "Expected sprite to be of the 3 points. Received 4"),
        ({"tsne": np.zeros((2, 2))}, "Expected tsne to be of the 3 points. Received 2"),
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


def test_bookmarks_by_hand(tmp_path):
    """Directions 0°, 120° and 240°, of lengths that play no part, have no mean; their components are ±1 and ±½, ±√¾ in
    some order (no direction is longer than another). Ten components are written, since the page offers ten."""
    angles = np.radians([0, 120, 240])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [7], [0.1]]
    places = np.array([[1, 2], [3, 4], [5, 6]])
    projector.export(tmp_path, "a", vectors, METADATA, tsne=places)
    tsne, pca = json.loads((tmp_path / "a.bookmarks.json").read_text())
    assert (tsne["selectedProjection"], pca["selectedProjection"]) == ("tsne", "pca")
    for state in (tsne, pca):
        assert state["dataSetDimensions"] == [3, 2]
        assert state["selectedColorOptionName"] == state["selectedLabelOption"] == "speaker"
        shown = [[point[f"pca-{i}"] for i in range(10)] for point in state["projections"]]
        assert np.all(np.array(shown)[:, 2:] == 0)
        distances = [np.linalg.norm(np.subtract(shown[i], shown[i - 1])) for i in range(3)]
        np.testing.assert_allclose(distances, np.sqrt(3), rtol=1e-3)
        assert [[point["tsne-0"], point["tsne-1"]] for point in state["projections"]] == places.tolist()


def test_a_bookmark_is_coloured_by_a_column_that_the_page_has_colours_for(tmp_path):
    """Not by 51 speakers, nor by a session that all share, but by gender; where there is none, by nothing."""
    vectors = np.random.default_rng(0).normal(size=(51, 3))
    columns = {"speaker": [f"s{i}" for i in range(51)], "session": ["a"] * 51}
    projector.export(tmp_path / "none", "a", vectors, columns)
    projector.export(tmp_path / "gender", "a", vectors, columns | {"gender": ["f"] * 20 + ["m"] * 31})
    for name, colour in (("none", "No color map"), ("gender", "gender")):
        (state,) = json.loads((tmp_path / name / "a.bookmarks.json").read_text())
        assert state["selectedColorOptionName"] == colour


def test_a_large_set_is_reduced_by_pca(tmp_path, monkeypatch):
    """40 vectors in a 2-dimensional plane of 6 dimensions lose nothing by two components: all products are kept."""
    monkeypatch.setattr(projector, "MAX_VALUES", 40 * 6 - 1)
    monkeypatch.setattr(projector, "PCA_DIMENSIONS", 2)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(40, 2)) @ random.normal(size=(2, 6)).astype(np.float32)
    projector.export(tmp_path, "a", vectors, {"speaker": ["x", "y"] * 20}, title="epoch 01")
    (entry,) = config_of(tmp_path).embeddings
    assert entry.tensor_name == "(newest) epoch 01 (PCA 2)" and list(entry.tensor_shape) == [40, 2]
    reduced = np.loadtxt(tmp_path / "a.tsv")
    np.testing.assert_allclose(reduced @ reduced.T, vectors @ vectors.T, atol=1e-3)


@pytest.mark.parametrize("centred", [True, False])
def test_principal_components_are_scikit_learns(centred):
    vectors = np.random.default_rng(0).normal(1, [3, 2, 1, 0.5], size=(100, 4)).astype(np.float32)
    model = PCA(2) if centred else TruncatedSVD(2, algorithm="arpack")
    expected = model.fit_transform(vectors)
    found = projector.principal_components(vectors, 2, centred)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)


def test_sprite_by_hand(tmp_path):
    """Five pictures of 2 × 3 pixels: three columns, and as many rows, as the page counts on; the rest is white."""
    pictures = np.arange(5, dtype=np.uint8)[:, np.newaxis, np.newaxis] * np.full((2, 3), 10, np.uint8)
    sprite = projector.write_sprite(tmp_path, pictures)
    image = np.asarray(Image.open(tmp_path / "sprite.png"))
    assert image.shape == (6, 9)
    np.testing.assert_array_equal(image[::2, ::3], [[0, 10, 20], [30, 40, 255], [255, 255, 255]])
    np.testing.assert_array_equal(image, np.kron(image[::2, ::3], np.ones((2, 3))))
    vectors = np.random.default_rng(0).normal(size=(5, 3))
    projector.export(tmp_path, "a", vectors, {"speaker": list("aabbb")}, sprite=sprite)
    (entry,) = config_of(tmp_path).embeddings
    assert entry.sprite.image_path == "sprite.png" and list(entry.sprite.single_image_dim) == [3, 2]
    answer = served(tmp_path, "/sprite_image", "run=.&name=(newest) a".replace(" ", "%20"))
    assert answer.data == (tmp_path / "sprite.png").read_bytes() and answer.mimetype == "image/png"


def test_sprites_fit_whatever_the_number_of_points(tmp_path):
    """1,000 points: 32 columns of 32 pixels. 100,000 points: 317 columns of 25 pixels, 7,925 in all."""
    assert [projector.sprite_size(points) for points in (2, 1000, 65_536, 65_537, 100_000)] == [32, 32, 32, 31, 25]
    with pytest.raises(ValueError, match=r"2 points of at most 4096 pixels.*Received 4097 × 1"):
        projector.write_sprite(tmp_path, np.zeros((2, 4097, 1), np.uint8))
    with pytest.raises(ValueError, match=r"uint8 \(N, h, w\). Received float64"):
        projector.write_sprite(tmp_path, np.zeros((2, 4, 4)))


def test_speakers_are_a_tensor_of_their_own(tmp_path):
    """a at 0° and 20° has its mean at 10°, b at 60°, c at 100° and 140° (mean 120°), of unit length. Nearest to a's is
    b; to b's is a, 50° off and not 60°; of c's, 100° and 140° and the mean, b."""
    angles = np.radians([0, 20, 60, 100, 140])
    vectors = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    columns = {"speaker": list("aabcc"), "gender": list("ffmff")}
    projector.export_speakers(tmp_path, "epoch-1", vectors, columns, "epoch 1")
    projector.export_speakers(tmp_path, "epoch-2", vectors[::-1], columns, "epoch 2")
    projector.export_speakers(tmp_path, "epoch-2", vectors, columns, "epoch 2")  # as a resumed run may
    entries = {entry.tensor_name: entry for entry in config_of(tmp_path).embeddings}
    assert set(entries) == {"(newest) epoch 2", "epoch 1", "speakers, epoch 2"}
    assert entries["epoch 1"].metadata_path == "metadata-epoch-1.tsv"
    assert (tmp_path / "metadata-epoch-2.tsv").read_text().splitlines() == [
        "speaker\tgender\tnearest other speaker", "a\tf\tb", "a\tf\tb", "b\tm\ta", "c\tf\tb", "c\tf\tb",
    ]  # fmt: skip
    assert (tmp_path / "metadata-speakers.tsv").read_text().splitlines() == [
        "speaker\tgender\tutterances\tnearest other speaker", "a\tf\t2\tb", "b\tm\t1\ta", "c\tf\t2\tb",
    ]  # fmt: skip
    means = np.radians([10, 60, 120])
    np.testing.assert_allclose(
        np.loadtxt(tmp_path / "speakers.tsv"), np.stack([np.cos(means), np.sin(means)], axis=1), atol=1e-5
    )


def test_one_speaker_alone_is_no_tensor(tmp_path):
    projector.export_speakers(tmp_path, "a", EMBEDDINGS, {"speaker": ["x"] * 3}, "a")
    assert [entry.tensor_path for entry in config_of(tmp_path).embeddings] == ["a.tsv"]


def test_subset_of_speakers_and_utterances():
    speakers = np.repeat(list("abcd"), [10, 1, 5, 7])
    assert projector.subset(speakers, 0).tolist() == list(range(23))
    rows = projector.subset(speakers, 3, most_speakers=3, most_each=4)
    assert (np.diff(rows) > 0).all()
    names, counts = np.unique(speakers[rows], return_counts=True)
    assert len(names) == 3
    assert all(count == min(4, (speakers == name).sum()) for name, count in zip(names, counts, strict=True))
    np.testing.assert_array_equal(rows, projector.subset(speakers, 3, most_speakers=3, most_each=4))
    assert any(projector.subset(speakers, seed, 3, 4).tolist() != rows.tolist() for seed in range(3))


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
    assert served(tmp_path, "/bookmarks", query).json[0]["dataSetDimensions"] == [3, 2]
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
