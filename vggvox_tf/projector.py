"""Embeddings as files that TensorBoard's embedding projector opens: one tensor per call, one metadata table.

A folder then holds

    <name>.tsv              one tensor per export, (N, D), no header
    metadata.tsv            what the N points are: written once, the same for every tensor of the folder
    projector_config.pbtxt  which tensors there are: written last, so that it never names a missing file

What TensorBoard 2.17 does with them, read in its plugin and seen in a browser:

- A folder counts only if it is a run, that is holds an event file, or if it is the logdir itself.
- The server reads the configs when it starts and again when a run appears or disappears, not when a config
  changes. Start (or restart) TensorBoard after the export to see it; and export before a run's event file is
  created, so that a TensorBoard that is already running finds both at once.
- It caches a tensor under its run and *title*, so a file is never overwritten with other content.
- The page lists the tensors by title, ignoring the order in the config, and opens the first. So the title of
  the newest tensor is marked "(newest)", which sorts before letters and digits.
- The page puts titles into addresses without escaping them: &, # and + would cut or change them.
- A column can be coloured by category only if it has at most 50 different values, and there are 10 colours.
- A column of numbers alone cannot be the label. So labels that are all numbers (LibriSpeech's speakers) are
  written with the column's name before them: "speaker 1089".
- A tensor file that is named and missing breaks the projector of every run.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

CONFIG_NAME = "projector_config.pbtxt"  # the name TensorBoard looks for
METADATA_NAME = "metadata.tsv"
NEWEST = "(newest) "
MAX_ROWS = 100_000  # the page asks for no more rows than this and says nothing about the rest

_BLOCK = 1 << 18  # values formatted at a time: about 20 MB of intermediate arrays, whatever N and D are

# A value is written as sign, six digits, "e" and a power of ten, −0.0123456 as "-123456e-07": twelve bytes
# with the tab behind it, which numpy looks up as three words of four bytes. np.savetxt and "%.6g" take eight
# and six times as long. Float32 needs the powers −50 (1.40130e-45) to +33 (3.40282e+38).
_POWERS = np.arange(-50, 34)
_SIGN_3_DIGITS = np.array([f"{sign}{i:03}" for sign in "+-" for i in range(1000)], "S4").view(np.uint32)
_3_DIGITS_E = np.array([f"{i:03}e" for i in range(1000)], "S4").view(np.uint32)
_POWER_TAB = np.array([f"{power:+03}\t" for power in _POWERS], "S4").view(np.uint32)
_SCALE = 10.0**-_POWERS


def export(
    folder: str | os.PathLike,
    name: str,
    embeddings: np.ndarray,
    metadata: Mapping[str, Sequence[str]],
    title: str | None = None,
    replace: bool = False,
) -> None:
    """Adds one tensor to the projector of `folder` (created if missing) and makes it the one that opens.

    Every file is written under a temporary name and renamed, so a TensorBoard never reads half of one.

    Args:
        folder: a run's folder (it must hold an event file to count, see above) or the logdir itself. name:
        file name without its ending, for example "epoch-03". embeddings: (N, D) float32, finite, 2 <= N <=
        100,000 and D >= 2. Written with six significant digits. metadata: columns of N values each, for
        example speaker, utterance, session, gender; the first is the label
            shown at a point. Tabs and line breaks become spaces.
        title: what the projector shows, for example "epoch 03 (EER 6.2 %)"; `name` if not given. replace:
        overwrite a tensor of the same name and other content, as a resumed run may have to where results
            are not reproducible bit by bit. A TensorBoard that has it open goes on to show the old one.

    Raises:
        ValueError: for anything else than the above; if metadata.tsv is there with other content (other
        points); if
            the tensor is there with other content and `replace` is not set; if another tensor has this title.
    """
    folder = Path(folder)
    embeddings = np.asarray(embeddings)
    _check_embeddings(embeddings)
    table = _metadata_table(metadata, len(embeddings))
    title = _checked_title(name if title is None else title)
    if not re.fullmatch(r"[\w-][\w.-]*", name) or f"{name}.tsv" == METADATA_NAME:
        raise ValueError(
            f"Expected a file name of letters, digits, -, _ and dots, and not metadata. Received {name!r}; "
            "what a reader should see goes into title."
        )
    config = _with_tensor(_read_config(folder), name, title, folder, embeddings.shape)

    folder.mkdir(parents=True, exist_ok=True)
    _write(
        folder / METADATA_NAME,
        [table.encode()],
        if_different="All tensors of a folder show the same points; export these to another folder.",
    )
    _write(
        folder / f"{name}.tsv",
        _tsv(embeddings),
        if_different=None if replace else "Give every export a name of its own, or pass replace=True.",
    )
    _write(folder / CONFIG_NAME, [text_format.MessageToString(config, as_utf8=True).encode()])


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


def _metadata_table(metadata: Mapping[str, Sequence[str]], rows: int) -> str:
    """The text of metadata.tsv: a header exactly if there are two columns or more, then `rows` lines."""
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
    return "\n".join(lines) + "\n"


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
    config: ProjectorConfig, name: str, title: str, folder: Path, shape: tuple[int, int]
) -> ProjectorConfig:
    """A copy of `config` with this tensor first, marked as the newest. Entries of the same file are replaced,
    and those whose file was deleted are dropped: one of them makes TensorBoard show no tensor of any run."""
    path = f"{name}.tsv"
    result = ProjectorConfig()
    result.CopyFrom(config)
    del result.embeddings[:]
    result.embeddings.add(tensor_name=NEWEST + title, tensor_path=path, tensor_shape=shape, metadata_path=METADATA_NAME)
    for entry in config.embeddings:
        if entry.tensor_path == path or (entry.tensor_path and not (folder / entry.tensor_path).exists()):
            continue
        kept = result.embeddings.add()
        kept.CopyFrom(entry)
        kept.tensor_name = entry.tensor_name.removeprefix(NEWEST)
        if kept.tensor_name == title:
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
