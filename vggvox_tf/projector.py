"""Embeddings as files that TensorBoard's embedding projector opens: one tensor per call, with its table of metadata.

A folder then holds

    <name>.tsv              one tensor per export, (N, D), no header
    <name>.bookmarks.json   views of it that the page offers: PCA, and t-SNE where it is given
    metadata.tsv            what the N points are: written once, the same for every tensor that names it. Tensors of
                            other points, or with columns of their own, name another table, metadata-….tsv
    sprite.png              a picture of each point, as an option
    projector_config.pbtxt  which tensors there are: written last, so that it never names a missing file

What TensorBoard 2.17 does with them, read in its plugin and seen in a browser:

- A folder counts only if it is a run, that is holds an event file, or if it is the logdir itself.
- The server reads the configs when it starts and again when a run appears or disappears, not when a config
  changes. Start (or restart) TensorBoard after the export to see it; and export before a run's event file is
  created, so that a TensorBoard that is already running finds both at once.
- With the configs it parses every tensor file they name, in Python: see MAX_VALUES.
- It caches a tensor under its run and *title*, so a file is not overwritten with other content (or, as the speakers'
  mean vectors are, under another title).
- The page lists the tensors with more points first, and those of equally many by title, ignoring the order in the
  config, and opens the first. So the title of the newest tensor is marked "(newest)", which sorts before letters and
  digits.
- It opens with its own PCA, without colours, and nothing in the files can change that: it offers the bookmarks in a
  panel that it unfolds at the lower right, and applies one when it is clicked.
- Its own PCA is of a random projection to 200 dimensions where there are more; a bookmark's is exact.
- In place of the points it draws their sprites, multiplied with the points' colours. It finds them right only if the
  picture has as many rows as columns. Each costs the browser 4 bytes a pixel.
- The page puts titles into addresses without escaping them: &, # and + would cut or change them.
- A column can be coloured by category only if it has at most 50 different values, and there are 10 colours.
- A column of numbers alone cannot be the label. So labels that are all numbers (LibriSpeech's speakers) are
  written with the column's name before them: "speaker 1089".
- A tensor file that is named and missing breaks the projector of every run.
"""

from __future__ import annotations

import dataclasses
import filecmp
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.linalg
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from vggvox_tf.clusters import nearest_other_speaker
from vggvox_tf.scoring import speaker_means, unit_length

CONFIG_NAME = "projector_config.pbtxt"  # the name TensorBoard looks for
POINTS = "metadata"
SPRITE_NAME = "sprite.png"
NEWEST = "(newest) "
MAX_ROWS = 100_000  # the page asks for no more rows than this and says nothing about the rest

# More values than this, 20,000 points of 512, are reduced by PCA first. A value takes 12 bytes in the file, and the
# server 0.1 µs and 40 bytes of memory when it starts, for each tensor anew: 100,000 × 512 would be a file of 614 MB an
# epoch, and 2 GB and five seconds or more an epoch to wait for before the first picture.
MAX_VALUES = 10_000_000
PCA_DIMENSIONS = 50  # 100,000 × 50 is half of MAX_VALUES; the page goes on from 10 components

MAX_SPRITE = 8192  # pixels of the sprite's sides; the page refuses a larger one
THUMBNAIL = 32  # pixels of one point's picture, where they fit

MAX_CATEGORIES = 50  # different values of a column that the page gives colours to
_COMPONENTS = 10  # of the page's PCA: a bookmark with fewer would break its menu of components

_BLOCK = 1 << 18  # values formatted at a time: about 20 MB of intermediate arrays, whatever N and D are

# A value is written as sign, six digits, "e" and a power of ten, −0.0123456 as "-123456e-07": twelve bytes
# with the tab behind it, which numpy looks up as three words of four bytes. np.savetxt and "%.6g" take eight
# and six times as long. Float32 needs the powers −50 (1.40130e-45) to +33 (3.40282e+38).
_POWERS = np.arange(-50, 34)
_SIGN_3_DIGITS = np.array([f"{sign}{i:03}" for sign in "+-" for i in range(1000)], "S4").view(np.uint32)
_3_DIGITS_E = np.array([f"{i:03}e" for i in range(1000)], "S4").view(np.uint32)
_POWER_TAB = np.array([f"{power:+03}\t" for power in _POWERS], "S4").view(np.uint32)
_SCALE = 10.0**-_POWERS


@dataclasses.dataclass(frozen=True)
class Sprite:
    """A picture of every point in one file; made by `write_sprite`."""

    points: int
    width: int  # pixels of one point's picture
    height: int


def export(
    folder: str | os.PathLike,
    name: str,
    embeddings: np.ndarray,
    metadata: Mapping[str, Sequence[str]],
    title: str | None = None,
    replace: bool = False,
    points: str = POINTS,
    sprite: Sprite | None = None,
    tsne: np.ndarray | None = None,
    newest: bool = True,
) -> None:
    """Adds one tensor to the projector of `folder` (created if missing) and makes it the one that opens.

    Every file is written under a temporary name and renamed, so a TensorBoard never reads half of one.

    Args:
        folder: a run's folder (it must hold an event file to count, see above) or the logdir itself.
        name: file name without its ending, for example "epoch-03".
        embeddings: (N, D) float32, finite, 2 <= N <= 100,000 and D >= 2. Written with six significant digits. More
            than MAX_VALUES numbers are reduced to 50 principal components, and the title then ends in "(PCA 50)".
        metadata: columns of N values each, for example speaker, session, gender; the first is the label shown at a
            point. Tabs and line breaks become spaces.
        title: what the projector shows, for example "epoch 03 (EER 6.2 %)"; `name` if not given.
        replace: overwrite a tensor of the same name and other content, and its table of metadata if it is the only one
            to name it, as a resumed run may have to where results are not reproducible bit by bit. A TensorBoard that
            has the tensor open goes on to show the old one.
        points: file name without its ending of the table of metadata, "metadata" or "metadata-…". Tensors of the same
            points share one.
        sprite: pictures of the N points, from `write_sprite`.
        tsne: (N, 2), to be offered as a bookmark beside PCA.
        newest: False leaves the tensor that opens, for one that accompanies another.

    Raises:
        ValueError: for anything else than the above; if the table is there with other content (other points); if the
            tensor is there with other content and `replace` is not set; if another tensor has this title.
    """
    folder = Path(folder)
    embeddings = np.asarray(embeddings)
    _check_embeddings(embeddings)
    label, table = _metadata_table(metadata, len(embeddings))
    title = _checked_title(name if title is None else title)
    if not re.fullmatch(r"[\w-][\w.-]*", name) or name.startswith(POINTS):
        raise ValueError(
            f"Expected a file name of letters, digits, -, _ and dots, and not metadata…. Received {name!r}; "
            "what a reader should see goes into title."
        )
    if not re.fullmatch(rf"{POINTS}(-[\w.-]+)?", points):
        raise ValueError(f"Expected points to be metadata or metadata-…. Received {points!r}.")
    for what, rows in (("sprite", sprite and sprite.points), ("tsne", None if tsne is None else len(tsne))):
        if rows not in (None, len(embeddings)):
            raise ValueError(f"Expected {what} to be of the {len(embeddings)} points. Received {rows}.")
    if embeddings.size > MAX_VALUES:
        embeddings = principal_components(embeddings, PCA_DIMENSIONS, centred=False)
        title += f" (PCA {embeddings.shape[1]})"
    before = _read_config(folder)
    config = _with_tensor(before, name, title, folder, embeddings.shape, points, sprite, newest)
    shared = any(
        entry.metadata_path == f"{points}.tsv" for entry in before.embeddings if entry.tensor_path != f"{name}.tsv"
    )

    folder.mkdir(parents=True, exist_ok=True)
    _write(
        folder / f"{points}.tsv",
        [table.encode()],
        if_different=None
        if replace and not shared
        else "All tensors of a table show the same points; give these another table, or export them to another folder.",
    )
    _write(
        folder / f"{name}.tsv",
        _tsv(embeddings),
        if_different=None if replace else "Give every export a name of its own, or pass replace=True.",
    )
    _write(folder / _bookmarks_name(name), [_bookmarks(embeddings, metadata, label, tsne).encode()])
    _write(folder / CONFIG_NAME, [text_format.MessageToString(config, as_utf8=True).encode()])


def export_speakers(
    folder: str | os.PathLike,
    name: str,
    embeddings: np.ndarray,
    metadata: Mapping[str, Sequence[str]],
    title: str,
    sprite: Sprite | None = None,
    tsne: np.ndarray | None = None,
) -> None:
    """Adds utterances to the projector, each with its nearest other speaker, and their speakers as a tensor of its own.

    An utterance's nearest other speaker is another one with every tensor, so each has a table of its own. The tensor
    "speakers" holds the mean direction of each speaker's utterances; the next export replaces it.

    Args:
        folder, name, embeddings, sprite, tsne: as for `export`; a tensor of this name is replaced.
        metadata: columns of the utterances, among them "speaker", and "gender" if that is known.
        title: of the tensor; that of the speakers begins with "speakers, ".
    """
    speakers = np.asarray(metadata["speaker"])
    export(
        folder,
        name,
        embeddings,
        {**metadata, "nearest other speaker": nearest_other_speaker(embeddings, speakers)},
        title,
        replace=True,
        points=f"{POINTS}-{name}",
        sprite=sprite,
        tsne=tsne,
    )
    names, means = speaker_means(embeddings, speakers)
    if len(names) < 2:
        return  # the page shows no single point
    first = {speaker: row for row, speaker in reversed(list(enumerate(speakers.tolist())))}
    columns = {"speaker": names}
    if "gender" in metadata:
        columns["gender"] = [metadata["gender"][first[speaker]] for speaker in names.tolist()]
    columns["utterances"] = np.unique(speakers, return_counts=True)[1]
    columns["nearest other speaker"] = nearest_other_speaker(means, names)
    export(
        folder,
        "speakers",
        means,
        columns,
        f"speakers, {title}",
        replace=True,
        points=f"{POINTS}-speakers",
        newest=False,
    )


def subset(
    speakers: Sequence[str], seed: int, most_speakers: int | None = None, most_each: int | None = None
) -> np.ndarray:
    """Sorted indices of the utterances to show: of so many speakers, so many each, MAX_ROWS at most in all.

    Drawn from the seed, so that all epochs show the same points. `speakers` (N,) says who speaks in each utterance.
    """
    random = np.random.default_rng(seed)
    names, numbers = np.unique(speakers, return_inverse=True)
    chosen = random.permutation(len(names))[:most_speakers]
    rows = random.permutation(np.flatnonzero(np.isin(numbers, chosen)))
    if most_each is not None:
        # Utterances in random order, grouped by speaker: an utterance's rank in its group is how many came before it.
        grouped = rows[np.argsort(numbers[rows], kind="stable")]
        starts = np.searchsorted(numbers[grouped], numbers[grouped])
        rows = random.permutation(grouped[np.arange(len(grouped)) - starts < most_each])
    return np.sort(rows[:MAX_ROWS])


def sprite_size(points: int) -> int:
    """Pixels, width and height, of one point's picture such that those of all points fit into a sprite."""
    return min(THUMBNAIL, MAX_SPRITE // math.ceil(math.sqrt(points)))


def write_sprite(folder: str | os.PathLike, thumbnails: np.ndarray) -> Sprite:
    """Writes the points' pictures, uint8 (N, h, w) grey, into `folder`, for exports of these points to name.

    Raises:
        ValueError: for anything else, or where they do not fit into MAX_SPRITE pixels: see `sprite_size`.
    """
    thumbnails = np.asarray(thumbnails)
    if thumbnails.ndim != 3 or thumbnails.dtype != np.uint8 or not thumbnails.size:
        raise ValueError(f"Expected pictures uint8 (N, h, w). Received {thumbnails.dtype} {thumbnails.shape}.")
    count, height, width = thumbnails.shape
    side = math.ceil(math.sqrt(count))  # the page counts rows as if there were as many as columns
    if side * max(height, width) > MAX_SPRITE:
        raise ValueError(
            f"Expected pictures of {count:,} points of at most {MAX_SPRITE // side} pixels a side, so that "
            f"{side} × {side} of them fit into the {MAX_SPRITE} × {MAX_SPRITE} that TensorBoard loads. Received "
            f"{height} × {width}."
        )
    grid = np.full((side * side, height, width), 255, np.uint8)
    grid[:count] = thumbnails
    grid = grid.reshape(side, side, height, width).swapaxes(1, 2).reshape(side * height, side * width)
    png = io.BytesIO()
    Image.fromarray(grid).save(png, "png")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / SPRITE_NAME, [png.getvalue()])
    return Sprite(count, width, height)


def principal_components(vectors: np.ndarray, components: int, centred: bool = True) -> np.ndarray:
    """Vectors (N, D) along the directions of their largest variance, float32 (N, min(components, D)); N may be large.

    Not centred, they are along the directions of the largest mean square, and keep their angles and distances as far as
    so few dimensions can. Signs are fixed, so that pictures of like vectors are alike.
    """
    vectors = np.asarray(vectors, np.float32)
    dimensions = vectors.shape[1]
    components = min(components, dimensions)
    products = (vectors.T @ vectors).astype(np.float64)  # (D, D)
    if centred:
        mean = vectors.mean(axis=0, dtype=np.float64)
        products -= len(vectors) * np.outer(mean, mean)
    _, axes = scipy.linalg.eigh(products, subset_by_index=[dimensions - components, dimensions - 1])
    axes = axes[:, ::-1]  # (D, components), the largest first
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(components)])
    result = vectors @ axes.astype(np.float32)
    return result - (mean @ axes).astype(np.float32) if centred else result


def _check_embeddings(embeddings: np.ndarray) -> None:
    if embeddings.ndim != 2 or min(embeddings.shape) < 2 or embeddings.dtype.kind != "f":
        raise ValueError(
            "Expected embeddings (N, D) of floats with N >= 2 and D >= 2, the least the projector shows. "
            f"Received {embeddings.dtype} {embeddings.shape}."
        )
    if len(embeddings) > MAX_ROWS:
        raise ValueError(
            f"Expected at most {MAX_ROWS:,} embeddings, as TensorBoard's projector shows no more. Received "
            f"{len(embeddings):,}; draw a subset of the speakers or utterances (from a seed, so that all "
            "epochs show the same points)."
        )
    if not np.isfinite(embeddings).all():
        row = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
        raise ValueError(f"Expected finite embeddings. Received NaN or infinity in row {row}.")


def _checked_title(title: str) -> str:
    title = " ".join(title.split()).removeprefix(NEWEST)
    # "%" is safe unless it looks like an escape: "6.2 %)" is, "%20" is not. TensorBoard cuts ":0" off.
    bad = re.search(r"[&#+]|%[0-9A-Fa-f]{2}|:0$", title)
    if bad or not title:
        what = f"{bad[0]!r} in {title!r}" if bad else "none"
        raise ValueError(
            "Expected a title without &, #, + and %XX and not ending in :0, which the projector's page does "
            f"not escape. Received {what}."
        )
    return title


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _metadata_table(metadata: Mapping[str, Sequence[str]], rows: int) -> tuple[str, str]:
    """The label's column, and the table's text: a header exactly if there are two columns, then `rows` lines."""
    if not metadata:
        raise ValueError("Expected at least one column of metadata, the label. Received none.")
    spaces = str.maketrans("\t\n\r", "   ")
    columns = {}
    for column, values in metadata.items():
        if len(values) != rows:
            raise ValueError(
                f"Expected {rows} values of metadata, one per embedding. Received {len(values)} in column {column!r}."
            )
        columns[str(column).translate(spaces)] = [str(value).translate(spaces) for value in values]
    label, values = next(iter(columns.items()))
    # The page skips blank lines, which would give every later point the label of its neighbour.
    values = [value if value.strip() else "?" for value in values]
    if all(map(_is_number, values)):
        values = [f"{label} {value}" for value in values]
    columns[label] = values
    lines = ["\t".join(row) for row in zip(*columns.values(), strict=True)]
    if len(columns) > 1:
        lines.insert(0, "\t".join(columns))
    return label if len(columns) > 1 else "label", "\n".join(lines) + "\n"


def _bookmarks_name(name: str) -> str:
    return f"{name}.bookmarks.json"


def _bookmarks(
    embeddings: np.ndarray, metadata: Mapping[str, Sequence[str]], label: str, tsne: np.ndarray | None
) -> str:
    """The states of the page that its bookmarks are: PCA in two dimensions, and t-SNE where there is one.

    Coloured by the first column that the page has colours for, speaker if there are few enough.
    """
    few = [column for column, values in metadata.items() if 1 < len(set(values)) <= MAX_CATEGORIES]
    colour = (str(few[0]) if len(metadata) > 1 else label) if few else "No color map"
    # In float64, in which the square of no float32 overflows.
    places = principal_components(unit_length(np.asarray(embeddings, np.float64)), _COMPONENTS)
    places = np.pad(places, [(0, 0), (0, _COMPONENTS - places.shape[1])])
    keys = [f"pca-{i}" for i in range(_COMPONENTS)]
    views = {"PCA": "pca"}
    if tsne is not None:
        places = np.concatenate([places, tsne], axis=1)
        keys += ["tsne-0", "tsne-1"]
        views = {"t-SNE": "tsne"} | views
    pattern = "{" + ",".join(f'"{key}":%.4g' for key in keys) + "}"
    projections = ",".join(pattern % tuple(row) for row in places.tolist())
    coloured = f", coloured by {colour}" if few else ""
    states = []
    for view, projection in views.items():
        state = {
            "label": f"{view}{coloured}",
            "isSelected": False,
            "selectedProjection": projection,
            "dataSetDimensions": embeddings.shape,
            "pcaComponentDimensions": [0, 1],
            "tSNEIteration": 0,
            "tSNEPerplexity": 30,
            # The slider's, a power of ten. The page goes on with a t-SNE of its own; at 0.001 nothing is seen of that.
            "tSNELearningRate": -3 if projection == "tsne" else 1,
            "tSNEis3d": False,
            "umapIs3d": True,
            "umapNeighbors": 15,
            "umapMinDist": 0.1,
            "selectedPoints": [],
            "selectedColorOptionName": colour,
            "forceCategoricalColoring": False,
            "selectedLabelOption": label,
            "customSelectedSearchByMetadataOption": label,
            **{f"custom{side}Text": "" for side in ("XLeft", "XRight", "YUp", "YDown")},
            **{f"custom{side}Regex": False for side in ("XLeft", "XRight", "YUp", "YDown")},
        }
        states.append(json.dumps(state)[:-1] + f',"projections":[{projections}]}}')
    return f"[{','.join(states)}]"


def _tsv(embeddings: np.ndarray) -> Iterator[bytes]:
    """(N, D) floats as tab-separated lines with six significant digits, a block of rows at a time."""
    rows = max(1, _BLOCK // embeddings.shape[1])
    for start in range(0, len(embeddings), rows):
        values = embeddings[start : start + rows].astype(np.float32).astype(np.float64)
        size = np.abs(values)
        power = np.floor(np.log10(size, where=size > 0, out=np.zeros_like(size))).astype(np.int32) - 5
        digits = np.rint(size * _SCALE[power - _POWERS[0]]).astype(np.int32)  # 0, or 100,000 … 1,000,000
        carried = digits == 1_000_000  # 9.999996 rounds to 10.00000, which is a digit longer
        digits[carried] = 100_000
        power[carried] += 1
        upper, lower = np.divmod(digits, 1000)
        words = np.stack(
            [_SIGN_3_DIGITS[upper + 1000 * (values < 0)], _3_DIGITS_E[lower], _POWER_TAB[power - _POWERS[0]]],
            axis=-1,
        )
        text = words.view(np.uint8).reshape(len(values), -1)
        text[:, -1] = ord("\n")  # instead of the tab behind the last value
        yield text.tobytes()


def _read_config(folder: Path) -> ProjectorConfig:
    config = ProjectorConfig()
    path = folder / CONFIG_NAME
    if path.exists():
        try:
            text_format.Parse(path.read_text(encoding="utf-8"), config)
        except text_format.ParseError as error:
            raise ValueError(f"Expected a projector config in {path}; mend or delete it: {error}") from error
    return config


def _with_tensor(
    config: ProjectorConfig,
    name: str,
    title: str,
    folder: Path,
    shape: tuple[int, int],
    points: str,
    sprite: Sprite | None,
    newest: bool,
) -> ProjectorConfig:
    """A copy of `config` with this tensor first, marked as the newest if it is. Entries of the same file are replaced,
    and those whose file was deleted are dropped: one of them makes TensorBoard show no tensor of any run."""
    path = f"{name}.tsv"
    result = ProjectorConfig()
    result.CopyFrom(config)
    del result.embeddings[:]
    entry = result.embeddings.add(
        tensor_name=NEWEST + title if newest else title,
        tensor_path=path,
        tensor_shape=shape,
        metadata_path=f"{points}.tsv",
        bookmarks_path=_bookmarks_name(name),
    )
    if sprite:
        entry.sprite.image_path = SPRITE_NAME
        entry.sprite.single_image_dim.extend([sprite.width, sprite.height])
    for entry in config.embeddings:
        if entry.tensor_path == path or (entry.tensor_path and not (folder / entry.tensor_path).exists()):
            continue
        kept = result.embeddings.add()
        kept.CopyFrom(entry)
        if newest:
            kept.tensor_name = entry.tensor_name.removeprefix(NEWEST)
        if kept.tensor_name.removeprefix(NEWEST) == title:
            raise ValueError(
                f"Expected a title that no other tensor in {folder} has. Received {title!r}, the title of "
                f"{entry.tensor_path}."
            )
    return result


def _write(path: Path, blocks: Iterable[bytes], if_different: str | None = None) -> None:
    """Writes `path` whole or not at all. With `if_different`, a file with other content is an error that ends
    in that advice."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(blocks)
        if if_different and path.exists() and not filecmp.cmp(temporary, path, shallow=False):
            raise ValueError(f"{path} is there with other content. {if_different}")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
