"""A corpus: which utterances there are, who speaks in each, and in which session.

Read either from a folder, whose layout says who speaks (VoxCeleb1, VoxCeleb2, LibriSpeech, any folder per
speaker), or from a manifest, a TSV file that lists a folder once so that a million files are not listed at
every start. No audio is opened here, and TensorFlow is not needed.
"""

import contextlib
import dataclasses
import logging
import math
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aac")
MANIFEST_COLUMNS = ("path", "speaker", "session", "seconds", "gender")
# The path of a recording in a shard, as tools/make_shards.py writes it: 00000.tfrecord:000000000012+4711:a/b.m4a
SHARDED = re.compile(
    r"(?P<shard>.+?\.tfrecord):(?P<offset>[0-9]{1,18})\+(?P<length>[0-9]{1,18}):(?P<original>.+)", re.DOTALL
)

LAYOUTS = """Expected one of
  wav/, dev/wav/ or test/wav/ with <speaker>/<session>/<file>.wav   (VoxCeleb1)
  dev/aac/ or test/aac/ with <speaker>/<session>/<file>.m4a         (VoxCeleb2)
  train-*/, dev-*/ or test-*/ with <speaker>/<chapter>/<file>.flac  (LibriSpeech)
  <speaker>/<file> or <speaker>/<session>/<file>                    (any folder per speaker)
with audio files ending in """ + ", ".join(AUDIO_SUFFIXES)

# Folders between the root and the speakers: containers' names, subsets' names, and the archives' own names.
_SUBSET = re.compile(r"wav|aac|flac|mp3|m4a|(train|dev|test)(-.*)?|vox[12]_(dev|test)_(wav|aac)")
# Where a session's name begins like this, the "speaker" above it is a whole corpus (vox1/test/wav/id10270/…).
_NESTED_CORPUS = re.compile(r"((train|dev|test)/)?(wav|aac)/[^/]+|(train|dev|test)-(clean|other)[^/]*/[^/]+")

_log = logging.getLogger(__name__)


class CorpusError(ValueError):
    """A folder or manifest that cannot be read as a corpus; the message says what was expected and found."""


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """N utterances of S speakers, sorted by (speaker, session, path), so both are contiguous."""

    root: Path  # paths are relative to it
    paths: np.ndarray  # (N,) object: str, posix
    speakers: np.ndarray  # (N,) int32, index into speaker_names
    sessions: np.ndarray  # (N,) int32, index into session_names; a session belongs to one speaker
    seconds: np.ndarray  # (N,) float32, nan where unknown
    speaker_names: list[str]  # (S,) sorted
    session_names: list[str]  # the session's own name, e.g. "5r0dWxy17C8"; "" where there is none
    genders: list[str]  # (S,) "m", "f" or ""

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, mask: np.ndarray) -> "Corpus":
        """The utterances where `mask` (N,) bool is true; speakers and sessions are numbered anew."""
        mask = np.asarray(mask)
        if mask.shape != (len(self),) or mask.dtype != bool:
            raise CorpusError(f"Expected a bool mask ({len(self)},), got {mask.dtype} {mask.shape}")
        if not mask.any():
            raise CorpusError("No utterance is left in the selection")
        kept_speakers, speakers = np.unique(self.speakers[mask], return_inverse=True)
        kept_sessions, sessions = np.unique(self.sessions[mask], return_inverse=True)
        return Corpus(
            root=self.root,
            paths=self.paths[mask],
            speakers=speakers.astype(np.int32),
            sessions=sessions.astype(np.int32),
            seconds=self.seconds[mask],
            speaker_names=[self.speaker_names[s] for s in kept_speakers],
            session_names=[self.session_names[s] for s in kept_sessions],
            genders=[self.genders[s] for s in kept_speakers],
        )

    def summary(self) -> str:
        """One line: speakers with genders, utterances, sessions, hours as far as known."""
        counts = {g: self.genders.count(g) for g in ("f", "m", "")}
        known = np.isfinite(self.seconds)
        hours = float(self.seconds[known].sum(dtype=np.float64)) / 3600
        time = f"{hours:.2f} hours" + ("" if known.all() else f" in the {known.sum():,} of known length")
        return (
            f"{len(self.speaker_names):,} speakers ({counts['f']:,} f, {counts['m']:,} m, "
            f"{counts['']:,} unknown), {len(self):,} utterances, {len(self.session_names):,} sessions"
            + (f", {time}" if known.any() else ", lengths unknown")
        )


def read_corpus(
    path: str | os.PathLike,
    root: str | os.PathLike | None = None,
    progress: Callable[[int], None] | None = None,
) -> Corpus:
    """Reads a folder (see LAYOUTS) or a manifest (`.tsv`).

    Args:
      path: the folder or manifest.
      root: what the paths are relative to. Default: the folder itself, or the manifest's own folder. For a
        folder it must be that folder or one above it.
      progress: called with the number of audio files found so far, once per folder listed.

    Raises:
      CorpusError: nothing there, nothing readable there, or a layout that does not say who speaks.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, Path(root) if root is not None else path, progress)
    if path.suffix.lower() == ".tsv":
        return read_manifest(path, root)
    if not path.exists():
        raise CorpusError(f"{path} does not exist. Expected a corpus folder, or a manifest (.tsv)")
    raise CorpusError(f"{path} is neither a folder nor a manifest (.tsv, from python -m tools.make_manifest)")


def combine(corpora: Sequence[Corpus]) -> Corpus:
    """One corpus of several, with paths from the folder that all their roots lie in.

    Speakers of the same name are taken for the same person, and their sessions are kept apart.

    Raises:
      CorpusError: a file is in two of them.
    """
    roots = [Path(os.path.abspath(corpus.root)) for corpus in corpora]
    root = Path(os.path.commonpath(roots))
    names = sorted({name for corpus in corpora for name in corpus.speaker_names})
    number = {name: index for index, name in enumerate(names)}
    genders = {}
    paths, speakers, sessions, keys = [], [], [], []
    for index, (corpus, its_root) in enumerate(zip(corpora, roots, strict=True)):
        below = its_root.relative_to(root)
        paths += [(below / path).as_posix() for path in corpus.paths]
        ranks = np.array([number[name] for name in corpus.speaker_names], np.int32)
        speakers.append(ranks[corpus.speakers])
        sessions.append(corpus.sessions + len(keys))
        speaker_of_session = dict(zip(corpus.sessions.tolist(), speakers[-1].tolist(), strict=True))
        keys += [(speaker_of_session[k], f"{index}/{name}") for k, name in enumerate(corpus.session_names)]
        for name, gender in zip(corpus.speaker_names, corpus.genders, strict=True):
            genders[name] = genders.get(name) or gender
    return _build(
        root,
        paths,
        np.concatenate(speakers),
        np.concatenate(sessions).astype(np.int32),
        np.concatenate([corpus.seconds for corpus in corpora]),
        names,
        keys,
        [genders[name] for name in names],
    )


# --- manifests ---------------------------------------------------------------------------------------------


def read_manifest(path: str | os.PathLike, root: str | os.PathLike | None = None) -> Corpus:
    """Reads a manifest: TSV, UTF-8, header `path speaker session seconds gender`, rows in any order.

    Args:
      path: the manifest.
      root: what its paths are relative to; the manifest's own folder by default.

    Raises:
      CorpusError: names file, line, what was expected and what was found. A path must stay inside the root:
        absolute ones and any with a `..` are refused (behind a link even `a/../b` may lead elsewhere).
    """
    path = Path(path)
    # Only the path is kept as a Python object per row; everything else goes into flat arrays.
    paths: list[str] = []
    speakers, sessions, seconds = array("i"), array("i"), array("f")
    speaker_ids: dict[str, int] = {}
    session_ids: dict[tuple[int, str], int] = {}
    genders: list[str] = []
    try:
        # "utf-8-sig" drops the byte-order mark that spreadsheets write.
        file = open(path, encoding="utf-8-sig", errors="surrogateescape")  # noqa: SIM115
    except OSError as error:
        raise CorpusError(f"Cannot read the manifest {path}: {error.strerror}") from error
    with file:
        header = file.readline().rstrip("\n")
        if tuple(header.split("\t")) != MANIFEST_COLUMNS:
            raise CorpusError(
                f"{path}, line 1: expected the tab-separated header {' '.join(MANIFEST_COLUMNS)}, "
                f"found {header[:80]!r}. python -m tools.make_manifest writes one"
            )
        for number, line in enumerate(file, start=2):
            row = line.rstrip("\n").split("\t")
            if len(row) != len(MANIFEST_COLUMNS):
                raise CorpusError(
                    f"{path}, line {number}: expected {len(MANIFEST_COLUMNS)} tab-separated columns "
                    f"({' '.join(MANIFEST_COLUMNS)}), found {len(row)}: {line[:80]!r}"
                )
            name, speaker, session, length, gender = row
            if fault := path_fault(name):
                raise CorpusError(f"{path}, line {number}: {fault}")
            speaker_id = speaker_ids.get(speaker)
            if speaker_id is None:
                if not speaker:
                    raise CorpusError(f"{path}, line {number}: expected a speaker, found an empty column")
                speaker_id = speaker_ids[speaker] = len(genders)
                genders.append("")
            if gender and gender != genders[speaker_id]:
                if gender not in ("m", "f"):
                    raise CorpusError(f"{path}, line {number}: expected gender m, f or empty, found {gender!r}")
                if genders[speaker_id]:
                    raise CorpusError(
                        f"{path}, line {number}: gender of speaker {speaker} is {gender!r} here and "
                        f"{genders[speaker_id]!r} above"
                    )
                genders[speaker_id] = gender
            try:
                value = float(length) if length else math.nan
            except ValueError:
                value = -1.0
            if value <= 0 or value == math.inf or (length and value != value):
                raise CorpusError(
                    f"{path}, line {number}: expected seconds above 0 (or empty if unknown), found {length!r}"
                )
            paths.append(name)
            speakers.append(speaker_id)
            sessions.append(session_ids.setdefault((speaker_id, session), len(session_ids)))
            seconds.append(value)
    if not paths:
        raise CorpusError(f"{path} lists no utterances: only a header was found")
    return _build(
        Path(root) if root is not None else path.parent,
        paths,
        np.asarray(speakers, np.int32),
        np.asarray(sessions, np.int32),
        np.asarray(seconds, np.float32),
        list(speaker_ids),
        list(session_ids),
        genders,
        duplicate=lambda a, b, name: f"{path}: {name} stands on line {a + 2} and again on line {b + 2}",
    )


def write_manifest(corpus: Corpus, path: str | os.PathLike) -> None:
    """Writes the manifest that `read_manifest` reads; under its final name only once it is complete."""
    columns = zip(
        corpus.paths, corpus.speakers.tolist(), corpus.sessions.tolist(), corpus.seconds.tolist(), strict=True
    )
    with replacing(path) as file:
        file.write("\t".join(MANIFEST_COLUMNS) + "\n")
        for name, speaker, session, length in columns:
            row = (
                name,
                corpus.speaker_names[speaker],
                corpus.session_names[session],
                "" if math.isnan(length) else f"{length:.6g}",
                corpus.genders[speaker],
            )
            line = "\t".join(row)
            if line.count("\t") != len(row) - 1 or "\n" in line or "\r" in line:
                raise CorpusError(f"A manifest cannot hold tabs or line breaks in names; rename {name!r}")
            file.write(line + "\n")


def path_fault(path: str) -> str | None:
    """What is wrong with a relative path from a manifest or a trial list; None if nothing is."""
    if not path:
        return "expected a path, found an empty column"
    sharded = SHARDED.fullmatch(path) if ".tfrecord:" in path else None
    for part in sharded.group("shard", "original") if sharded else (path,):
        if part[0] == "/":
            return f"expected a path relative to the root, found the absolute {part!r}"
        if ".." in part and ".." in part.split("/"):
            return f"expected a path inside the root, without '..', found {part!r}"
    return None


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[TextIO]:
    """Opens a temporary text file beside `path` that takes its name if the block succeeds, else vanishes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# --- folders -----------------------------------------------------------------------------------------------


def _read_folder(folder: Path, root: Path, progress: Callable[[int], None] | None) -> Corpus:
    prefix = os.path.relpath(folder, root)
    if prefix == ".." or prefix.startswith("../"):
        raise CorpusError(f"Expected the root {root} to be the corpus folder {folder} or one above it")
    prefix = "" if prefix == "." else prefix.replace(os.sep, "/") + "/"

    skipped: list[str] = []  # broken or circular links
    loose: list[str] = []  # audio files outside any speaker's folder
    paths: list[str] = []
    speakers, sessions = array("i"), array("i")
    speaker_ids: dict[str, int] = {}
    session_ids: dict[tuple[int, str], int] = {}
    for base in _find_bases(str(folder), ""):
        names, files, _ = _scan(os.path.join(folder, base), skipped)
        loose += [base + name for name in files]
        pending = [(name, "") for name in names]  # (speaker, session) whose folders are still to be listed
        while pending:
            speaker, session = pending.pop()
            below = f"{base}{speaker}/" + (f"{session}/" if session else "")
            folders, files, _ = _scan(os.path.join(folder, below), skipped)
            pending += [(speaker, f"{session}/{name}" if session else name) for name in folders]
            if not files:
                continue
            speaker_id = speaker_ids.setdefault(speaker, len(speaker_ids))
            session_id = session_ids.setdefault((speaker_id, session), len(session_ids))
            paths += [f"{prefix}{below}{name}" for name in files]
            speakers.extend([speaker_id] * len(files))
            sessions.extend([session_id] * len(files))
            if progress:
                progress(len(paths))

    if skipped:
        _log.warning("%s: skipped %d broken or circular links: %s", folder, len(skipped), _some(skipped))
    if not paths and loose:
        raise CorpusError(
            f"{folder} holds {len(loose)} audio files ({_some(loose)}) but no folder per speaker, so nothing "
            f"says who speaks. {LAYOUTS}"
        )
    if not paths:
        raise CorpusError(f"No audio files below {folder}. {LAYOUTS}")
    if loose:
        _log.warning("%s: ignored %d audio files in no speaker's folder: %s", folder, len(loose), _some(loose))
    if all(_SUBSET.fullmatch(name) for name in speaker_ids):
        raise CorpusError(
            f"{folder}: audio files lie directly in {_some(sorted(speaker_ids))}, with no folder per "
            f"speaker, so nothing says who speaks. {LAYOUTS}"
        )
    names = list(speaker_ids)
    for speaker_id, session in session_ids:
        if _NESTED_CORPUS.match(session):
            raise CorpusError(
                f"{folder / names[speaker_id]} looks like a corpus of its own (it holds {session}/), not "
                "like a speaker. Give that folder instead, or write one manifest per corpus"
            )
    genders = read_genders(folder)
    return _build(
        root,
        paths,
        np.asarray(speakers, np.int32),
        np.asarray(sessions, np.int32),
        np.full(len(paths), np.nan, np.float32),
        names,
        list(session_ids),
        [genders.get(name, "") for name in names],
    )


def _find_bases(folder: str, below: str) -> list[str]:
    """The folders that directly hold speakers, as "" or "dev/wav/", relative to `folder`."""
    here = os.path.join(folder, below)
    names, _, _ = _scan(here, [])
    subsets, others = [], []
    for name in names:
        if _SUBSET.fullmatch(name):
            folders, files, _ = _scan(os.path.join(here, name), [])
            # One that directly holds audio is a speaker with an odd name.
            (subsets if folders and not files else others).append(name)
        else:
            others.append(name)
    if not subsets:
        return [below]
    if speakers := [name for name in others if _leads_to_audio(os.path.join(here, name))]:
        raise CorpusError(
            f"{here}: cannot tell subsets from speakers: {_some(subsets)} look like subsets, but beside them "
            f"{_some(speakers)} hold audio too. Give one subset's folder, or a manifest. {LAYOUTS}"
        )
    return [base for name in subsets for base in _find_bases(folder, f"{below}{name}/")]


def _leads_to_audio(folder: str) -> bool:
    """Whether the first folder with files holds audio; looks no further (VoxCeleb2's txt/ is as large)."""
    folders, files, others = _scan(folder, [])
    if files or others:
        return bool(files)
    return any(_leads_to_audio(os.path.join(folder, name)) for name in folders)


def _scan(folder: str, skipped: list[str]) -> tuple[list[str], list[str], int]:
    """Lists one folder, without what is hidden: names of folders, names of audio files, number of others.

    Links are followed; broken ones, and ones that lead back to a folder above, are added to `skipped`.
    """
    folders, files, others = [], [], 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == "." or name == "__MACOSX":
                    continue
                if entry.is_symlink() and (not os.path.exists(entry.path) or _leads_back(entry.path, folder)):
                    skipped.append(entry.path)
                    continue
                if entry.is_dir():
                    folders.append(name)
                elif name[name.rfind(".") :].lower() in AUDIO_SUFFIXES and "." in name:
                    files.append(name)
                else:
                    others += 1
    except OSError as error:
        # No mere warning: a part of the corpus would be missing without anybody noticing.
        message = f"Cannot list {folder}: {error.strerror or error}. Make it readable or move it away"
        raise CorpusError(message) from error
    return folders, files, others


def _leads_back(link: str, folder: str) -> bool:
    target = os.path.realpath(link)
    return os.path.join(os.path.realpath(folder), "").startswith(os.path.join(target, ""))


# --- genders -----------------------------------------------------------------------------------------------


def read_genders(root: str | os.PathLike) -> dict[str, str]:
    """Speaker to "m" or "f", from the meta files in `root` or up to two folders above it; the nearest wins.

    Read are vox1_meta.csv (tabs), vox2_meta.csv (commas with spaces, byte-order mark, CRLF) and LibriSpeech's
    SPEAKERS.TXT (bars, comments with semicolons). A meta file without the columns needed is a CorpusError.
    """
    # abspath: the parent of "." would be "." again.
    here = Path(os.path.abspath(root))
    genders: dict[str, str] = {}
    for folder in reversed([here, *here.parents][:3]):
        for name in ("vox1_meta.csv", "vox2_meta.csv", "SPEAKERS.TXT"):
            if (folder / name).is_file():
                genders.update(_read_meta(folder / name))
    return genders


def _read_meta(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise CorpusError(f"Cannot read the speakers' genders from {path}: {error.strerror}") from error
    if path.name == "SPEAKERS.TXT":
        separator, speaker, gender = "|", 0, 1
        rows = [line for line in lines if not line.startswith(";")]
    else:
        separator = "\t" if lines and "\t" in lines[0] else ","
        header = [cell.strip().casefold() for cell in lines[0].split(separator)] if lines else []
        speaker = next((i for i, cell in enumerate(header) if re.fullmatch(r"voxceleb[12] id", cell)), -1)
        gender = header.index("gender") if "gender" in header else -1
        rows = lines[1:]
        if speaker < 0 or gender < 0:
            raise CorpusError(
                f"{path}: expected the columns 'VoxCeleb1 ID' or 'VoxCeleb2 ID', and 'Gender'; found {header}"
            )
    genders = {}
    for row in rows:
        cells = [cell.strip() for cell in row.split(separator)]
        if len(cells) > max(speaker, gender) and cells[gender].lower() in ("m", "f"):
            genders[cells[speaker]] = cells[gender].lower()
    return genders


# --- shared ------------------------------------------------------------------------------------------------


def _build(
    root: Path,
    paths: list[str],
    speakers: np.ndarray,
    sessions: np.ndarray,
    seconds: np.ndarray,
    speaker_names: Sequence[str],
    session_keys: Sequence[tuple[int, str]],
    genders: Sequence[str],
    duplicate: Callable[[int, int, str], str] | None = None,
) -> Corpus:
    """Numbers speakers and sessions in sorted order and sorts the utterances by (speaker, session, path).

    Args:
      root, paths, seconds: as in Corpus, rows in any order.
      speakers, sessions: (N,) int32, indices into the next two, which are in any order.
      speaker_names: (S,) str. session_keys: (index into speaker_names, name).
      genders: (S,) str.
      duplicate: the message for a path that rows a < b share.
    """
    speaker_order = sorted(range(len(speaker_names)), key=speaker_names.__getitem__)
    speaker_rank = _inverse(speaker_order)
    session_order = sorted(
        range(len(session_keys)), key=lambda k: (speaker_rank[session_keys[k][0]], session_keys[k][1])
    )
    speakers = speaker_rank[speakers]
    sessions = _inverse(session_order)[sessions]

    names = np.empty(len(paths), object)
    names[:] = paths
    order = np.argsort(names, kind="stable")  # timsort: nearly free where the rows are sorted already
    names = names[order]
    same = np.flatnonzero(names[1:] == names[:-1])
    if len(same):
        first = int(same[0])
        message = duplicate or (lambda a, b, name: f"{name} is listed twice")
        raise CorpusError(message(int(order[first]), int(order[first + 1]), names[first]))
    # Sessions are numbered by speaker, so their order is (speaker, session).
    by_session = np.argsort(sessions[order], kind="stable")
    order = order[by_session]
    return Corpus(
        root=root,
        paths=names[by_session],
        speakers=speakers[order],
        sessions=sessions[order],
        seconds=seconds[order],
        speaker_names=[speaker_names[s] for s in speaker_order],
        session_names=[session_keys[k][1] for k in session_order],
        genders=[genders[s] for s in speaker_order],
    )


def _inverse(order: Sequence[int]) -> np.ndarray:
    """(K,) int32 with inverse[order[k]] = k."""
    inverse = np.empty(len(order), np.int32)
    inverse[np.asarray(order, np.int64)] = np.arange(len(order), dtype=np.int32)
    return inverse


def _some(names: Sequence[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
