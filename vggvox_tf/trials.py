"""Trial lists: which pairs of utterances a verification system is tested on.

The format is VoxCeleb1's, one trial a line: `1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav`,
where 1 is a target trial (the same speaker) and 0 a non-target trial. A corpus without a list gets one from
`make_trials`.
"""

import dataclasses
import logging
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from vggvox_tf.corpus import Corpus, path_fault, replacing

# Name -> file name and number of trials of VoxCeleb1's lists: original (Nagrani et al. 2017), extended and hard
# (Chung et al. 2018, section 4.2), and each after mislabelled recordings were removed.
VOXCELEB1_LISTS = {
    "vox1-O": ("veri_test.txt", 37_720),
    "vox1-O-cleaned": ("veri_test2.txt", 37_611),
    "vox1-E": ("list_test_all.txt", 581_480),
    "vox1-E-cleaned": ("list_test_all2.txt", 579_818),
    "vox1-H": ("list_test_hard.txt", 552_536),
    "vox1-H-cleaned": ("list_test_hard2.txt", 550_894),
}
VOXCELEB1_LISTS_URL = "https://mm.kaist.ac.kr/datasets/voxceleb/meta/"
# Where the archives of VoxCeleb1 put the speakers' folders.
VOXCELEB1_PLACES = ("wav", "dev/wav", "test/wav", "")

_log = logging.getLogger(__name__)


class TrialError(ValueError):
    """A trial list that cannot be read, or one that the corpus cannot yield."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trials:
    """M trials over U distinct utterances."""

    root: Path  # paths are relative to it
    paths: np.ndarray  # (U,) object: str, posix, sorted, distinct
    enrol: np.ndarray  # (M,) int32, index into paths
    test: np.ndarray  # (M,) int32, index into paths
    labels: np.ndarray | None  # (M,) bool, True: the same speaker (target); None where that is to be found out

    def __len__(self) -> int:
        return len(self.enrol)

    def speakers(self) -> set[str]:
        """Names of the speakers in the list, as its paths tell them."""
        return {speaker_of(path) for path in self.paths}

    def known_speakers_note(self, training_speakers: Collection[str]) -> str:
        """A sentence for wherever an EER on this list is printed; empty if no speaker of it was trained on."""
        speakers = self.speakers()
        known = speakers & set(training_speakers)
        if not known:
            return ""
        share = f"All {len(speakers)}" if known == speakers else f"{len(known)} of the {len(speakers)}"
        return (
            f"{share} speakers of the trial list were trained on: its EER is that of new recordings of known "
            "speakers, and says little about strangers."
        )

    def check_files(self) -> None:
        """Raises TrialError if utterances are missing below the root; says how many and what to give."""
        missing = [path for path in self.paths if not os.path.isfile(os.path.join(self.root, path))]
        if not missing:
            return
        # VoxCeleb1 ships its list apart from the recordings, in whose wav/ folder the paths begin.
        places = [self.root / place for place in VOXCELEB1_PLACES]
        found = next((place for place in places if (place / missing[0]).is_file()), None)
        raise TrialError(
            f"{len(missing):,} of the {len(self.paths):,} utterances of the trial list are missing below "
            f"{self.root}; the first is {missing[0]}. "
            f"Give {found or 'the folder that its paths start from'} as the trial list's root (--trials_root)"
            + (", where it exists" if found else "")
        )


def speaker_of(path: str) -> str:
    """The speaker's folder in `[…/]<speaker>/<session>/<file>` or `<speaker>/<file>`."""
    return path.split("/")[-3:][0]


def read_trials(path: str | os.PathLike, root: str | os.PathLike | None = None) -> Trials:
    """Reads a list in VoxCeleb1's format; columns are separated by spaces, or by tabs where a line has any.

    Args:
      path: the list.
      root: what its paths are relative to; the list's own folder by default.

    Raises:
      TrialError: an unreadable, empty or malformed list (names the line), or a path outside the root.
    """
    return _read(Path(path), root, labelled=True)


def read_pairs(path: str | os.PathLike, root: str | os.PathLike | None = None) -> Trials:
    """Reads a list of pairs of which nothing is known, two paths a line; otherwise as `read_trials`."""
    return _read(Path(path), root, labelled=False)


def _read(path: Path, root: str | os.PathLike | None, labelled: bool) -> Trials:
    expected = "a label and two paths" if labelled else "two paths"
    utterances: dict[str, int] = {}
    pairs: list[int] = []
    labels = bytearray()
    try:
        file = open(path, encoding="utf-8-sig", errors="surrogateescape")  # noqa: SIM115
    except OSError as error:
        raise TrialError(f"Cannot read the list {path}: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, start=1):
            columns = line.rstrip("\n").split("\t") if "\t" in line else line.split()
            if len(columns) != 2 + labelled:
                raise TrialError(
                    f"{path}, line {number}: expected {expected}, found {len(columns)} columns: "
                    f"{line[:120]!r}. Where paths have spaces, separate the columns by tabs"
                )
            if labelled:
                label = columns[0]
                if label not in ("0", "1"):
                    raise TrialError(
                        f"{path}, line {number}: expected the label 1 (same speaker) or 0, found {label!r} in "
                        f"{line[:120]!r}"
                    )
                labels.append(label == "1")
            for side in columns[-2:]:
                utterance = utterances.get(side)
                if utterance is None:
                    if fault := path_fault(side):
                        raise TrialError(f"{path}, line {number}: {fault}")
                    utterance = utterances[side] = len(utterances)
                pairs.append(utterance)
    if not pairs:
        example = "1 speaker/a.wav speaker/b.wav" if labelled else "a.wav b.wav"
        raise TrialError(f"{path} is empty: expected lines such as '{example}'")
    names = np.empty(len(utterances), object)
    names[:] = list(utterances)
    sides = np.asarray(pairs, np.int64).reshape(-1, 2)  # (M, 2)
    labels = np.frombuffer(labels, np.uint8) == 1 if labelled else None
    return _build(Path(root) if root is not None else path.parent, names, sides, labels)


def read_voxceleb1_trials(name: str, folder: str | os.PathLike) -> Trials:
    """Reads one of VOXCELEB1_LISTS from the folder of VoxCeleb1, with its list files and recordings as downloaded.

    The speakers' folders may lie in any of VOXCELEB1_PLACES, or be spread over several of them.

    Raises:
      TrialError: the list is not there, or has another number of trials than it is known to have.
    """
    file_name, expected = VOXCELEB1_LISTS[name]
    folder = Path(folder)
    path = folder / file_name
    if not path.is_file():
        raise TrialError(f"{name} is {path}, which does not exist. It can be had from {VOXCELEB1_LISTS_URL}{file_name}")
    trials = read_trials(path, folder)
    if len(trials) != expected:
        raise TrialError(
            f"{path}: expected the {expected:,} trials of {name}, found {len(trials):,}. Was it cut short? It can be "
            f"had from {VOXCELEB1_LISTS_URL}{file_name}; a list of your own goes by its path, not by that name"
        )
    speakers = {path.split("/")[0] for path in trials.paths}
    places = {
        speaker: next((place for place in VOXCELEB1_PLACES if (folder / place / speaker).is_dir()), "wav")
        for speaker in speakers
    }
    names = np.empty(len(trials.paths), object)
    names[:] = [f"{places[path.split('/')[0]]}/{path}".lstrip("/") for path in trials.paths]
    sides = np.stack([trials.enrol, trials.test], axis=1)
    return _build(folder, names, sides, trials.labels)


def write_trials(trials: Trials, path: str | os.PathLike) -> None:
    """Writes what `read_trials` reads; under its final name only once it is complete."""
    separator = "\t" if any(len(name.split()) != 1 or name != name.strip() for name in trials.paths) else " "
    for name in trials.paths:
        if any(character in name for character in "\t\n\r"):
            raise TrialError(f"A trial list cannot hold tabs or line breaks in names; rename {name!r}")
    names = trials.paths.tolist()
    with replacing(path) as file:
        for label, enrol, test in zip(trials.labels.tolist(), trials.enrol.tolist(), trials.test.tolist(), strict=True):
            file.write(f"{int(label)}{separator}{names[enrol]}{separator}{names[test]}\n")


# --- making lists ------------------------------------------------------------------------------------------


def make_trials(
    corpus: Corpus,
    targets: int | None,
    nontargets: int | None,
    seed: int,
    same_gender: float | None = None,
    cross_session_only: bool = True,
) -> Trials:
    """Draws distinct pairs of distinct utterances, every speaker used as evenly as the corpus allows.

    Args:
      corpus: N utterances.
      targets: number of target trials, at least 1; None for every pair there is.
      nontargets: number of non-target trials, at least 1; None for every pair there is, whatever the genders.
      seed: the list is a function of the corpus and this.
      same_gender: share in [0, 1] of the non-target trials whose speakers have the same known gender; in the
        others genders differ or one is unknown. None: one half where the corpus has that many pairs of either
        kind, otherwise genders play no part.
      cross_session_only: target trials join different sessions only; a speaker with one session then yields
        none. It has no effect where the corpus knows of no sessions at all. False: any two utterances.

    Raises:
      TrialError: fewer distinct pairs exist than were asked for (says how many do), be it of all or of one
        gender.
    """
    for name, count in (("target", targets), ("non-target", nontargets)):
        if count is not None and count < 1:
            raise TrialError(f"Expected at least 1 {name} trial, got {count}")
    if same_gender is not None and not 0 <= same_gender <= 1:
        raise TrialError(f"Expected a share of same-gender trials between 0 and 1, got {same_gender}")
    rng = np.random.default_rng(seed)
    pairs = [_target_pairs(corpus, targets, cross_session_only, rng)]
    pairs += _nontarget_pairs(corpus, nontargets, same_gender, rng)
    sides = np.concatenate(pairs)  # (M, 2)
    labels = np.arange(len(sides)) < len(pairs[0])
    # A pair comes as (earlier, later) in the corpus; which of the two enrols must not depend on that.
    swap = rng.random(len(sides)) < 0.5
    sides[swap] = sides[swap, ::-1]
    trials = _build(corpus.root, corpus.paths, sides, labels)
    order = np.lexsort((trials.test, trials.enrol))
    return dataclasses.replace(trials, enrol=trials.enrol[order], test=trials.test[order], labels=trials.labels[order])


class _Pairs:
    """Every pair of utterances of the same outer and of different inner blocks, numbered but never listed.

    `outer` and `inner` are (N,) int, each block contiguous, inner blocks nested in outer ones. The partners
    of an utterance that stand behind it are then one range, from the end of its inner block to the end of its
    outer block. Target pairs have (outer, inner) = (speaker, session), non-target pairs (all, speaker).
    """

    def __init__(self, outer: np.ndarray, inner: np.ndarray):
        self._partners_begin = _block_ends(inner)  # (N,)
        self._ends = np.cumsum(_block_ends(outer) - self._partners_begin)  # (N,) pairs up to this utterance's
        self.count = int(self._ends[-1])

    def counts_below(self, ends: np.ndarray) -> np.ndarray:
        """How many pairs begin with one of the first `ends` (K,) utterances; ends of at least 1."""
        return self._ends[ends - 1]

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """Pairs (K, 2), left before right, of the given numbers (K,) in [0, count)."""
        left = np.searchsorted(self._ends, numbers, side="right")
        below = np.where(left > 0, self._ends[left - 1], 0)
        return np.stack([left, self._partners_begin[left] + numbers - below], axis=1)


def _block_ends(blocks: np.ndarray) -> np.ndarray:
    """(N,) int64: for each element, the end of the run of equal values that it stands in."""
    breaks = np.flatnonzero(np.diff(blocks)) + 1
    ends = np.append(breaks, len(blocks))
    return np.repeat(ends, np.diff(np.append(0, ends)))


def _target_pairs(corpus: Corpus, wanted: int | None, cross_session_only: bool, rng: np.random.Generator) -> np.ndarray:
    """(K, 2) int64 pairs of one speaker's utterances, as many from each speaker, as far as it has them."""
    cross = cross_session_only and any(corpus.session_names)
    pairs = _Pairs(corpus.speakers, corpus.sessions if cross else np.arange(len(corpus)))
    ends = np.searchsorted(corpus.speakers, np.arange(len(corpus.speaker_names)), side="right")
    available = np.diff(pairs.counts_below(ends), prepend=0)  # (S,) pairs of each speaker
    without = int((available == 0).sum())
    if pairs.count < (wanted or 1):
        raise TrialError(
            f"Asked for {_count(wanted)} target trials; {pairs.count:,} distinct pairs exist"
            + (" that join two sessions of a speaker" if cross else "")
            + f" ({len(corpus):,} utterances, {len(available):,} speakers, {without:,} without a pair). "
            + ("Allow pairs within a session (--same_session), or ask for fewer" if cross else "Ask for fewer")
        )
    if without:
        only = "one session" if cross else "one utterance"
        _log.warning("%d of %d speakers have %s and yield no target trials", without, len(available), only)
    if wanted is None:
        return pairs[np.arange(pairs.count)]
    shares = _even_shares(available, wanted, rng)
    begins = np.cumsum(available) - available
    drawn = [
        begin + rng.choice(count, share, replace=False, shuffle=False)
        for begin, count, share in zip(begins, available, shares, strict=True)
        if share
    ]
    return pairs[np.concatenate(drawn)]


def _even_shares(available: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Splits `wanted` <= available.sum() over speakers evenly, none above what it has available."""
    shares = np.zeros_like(available)
    while wanted:
        open_ = np.flatnonzero(shares < available)
        step = wanted // len(open_)
        if step == 0:  # fewer left than speakers: chance decides who gives one more
            shares[rng.permutation(open_)[:wanted]] += 1
            break
        added = np.minimum(step, available[open_] - shares[open_])
        shares[open_] += added
        wanted -= int(added.sum())
    return shares


def _nontarget_pairs(
    corpus: Corpus, wanted: int | None, same_gender: float | None, rng: np.random.Generator
) -> list[np.ndarray]:
    """Pairs (K, 2) int64 of different speakers' utterances, in one or two arrays."""
    speakers = corpus.speakers.astype(np.int64)
    everything = _Pairs(np.zeros(len(corpus), np.int64), speakers)
    if everything.count < (wanted or 1):
        raise TrialError(
            f"Asked for {_count(wanted)} non-target trials; {everything.count:,} distinct pairs exist "
            f"({len(corpus):,} utterances, {len(corpus.speaker_names):,} speakers)"
        )
    if wanted is None:
        if same_gender is not None:
            raise TrialError("A share of same-gender trials needs a number of non-target trials")
        return [everything[np.arange(everything.count)]]

    # A speaker of unknown gender is a group of its own: never of the same gender as another.
    groups = np.array([{"f": -2, "m": -1}.get(g, s) for s, g in enumerate(corpus.genders)], np.int64)  # (S,)
    same_count = round((0.5 if same_gender is None else same_gender) * wanted)
    # Utterances by gender, so that the groups are contiguous; `back` leads to the corpus's numbering.
    back = np.argsort(groups[speakers], kind="stable")
    speakers_by_group, by_group = speakers[back], groups[speakers][back]
    same = _Pairs(by_group, speakers_by_group)
    other = _Pairs(np.zeros(len(corpus), np.int64), by_group)
    if same.count >= same_count and other.count >= wanted - same_count:
        return [
            back[_draw_evenly(pairs, count, speakers_by_group, groups, within, rng)]
            for pairs, count, within in ((same, same_count, True), (other, wanted - same_count, False))
            if count
        ]
    if same_gender is None:
        return [_draw_evenly(everything, wanted, speakers, np.arange(len(groups)), False, rng)]
    known = ", ".join(f"{corpus.genders.count(g):,} {g or 'unknown'}" for g in ("f", "m", ""))
    raise TrialError(
        f"Asked for {same_count:,} non-target trials of the same gender and {wanted - same_count:,} others; "
        f"{same.count:,} and {other.count:,} distinct pairs exist (speakers: {known}). Genders come from the "
        "corpus's meta file or manifest; without a share asked for, they play no part"
    )


def _draw_evenly(
    pairs: _Pairs,
    wanted: int,
    speakers: np.ndarray,
    groups: np.ndarray,
    within: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws `wanted` distinct pairs (wanted, 2), each speaker about as often as any other.

    Args:
      pairs: the pairs allowed, of N utterances.
      speakers: (N,) int in [0, S), the utterances' speakers, contiguous.
      groups: (S,) int; pairs join speakers of different groups, or of one group if `within`.
    """
    if wanted > pairs.count // 2:
        # Most pairs are needed: drawing until none is repeated would take long, drawing from all does not.
        return pairs[rng.choice(pairs.count, wanted, replace=False, shuffle=False)]
    count = len(speakers)
    by_speaker = np.argsort(speakers, kind="stable")
    sizes = np.bincount(speakers, minlength=len(groups))  # (S,)
    begins = np.cumsum(sizes) - sizes
    chosen = np.empty(0, np.int64)  # pairs as left · N + right, left < right
    while len(chosen) < wanted:
        left, right = _speaker_pairs(groups, wanted - len(chosen), within, rng)
        a = by_speaker[begins[left] + (rng.random(len(left)) * sizes[left]).astype(np.int64)]
        b = by_speaker[begins[right] + (rng.random(len(right)) * sizes[right]).astype(np.int64)]
        before = len(chosen)
        chosen = _add(chosen, np.minimum(a, b) * count + np.maximum(a, b), wanted)
        if len(chosen) - before < len(left) / 10:
            break  # the speakers whose turn it is have hardly any pairs left to give
    while len(chosen) < wanted:  # at least half of all pairs are free, so this ends soon
        extra = pairs[rng.integers(pairs.count, size=2 * (wanted - len(chosen)) + 16)]
        chosen = _add(chosen, extra[:, 0] * count + extra[:, 1], wanted)
    return np.stack([chosen // count, chosen % count], axis=1)


def _add(chosen: np.ndarray, candidates: np.ndarray, wanted: int) -> np.ndarray:
    """`chosen` and the first of the candidates that are new, up to `wanted`, in order."""
    both = np.concatenate([chosen, candidates])
    _, first = np.unique(both, return_index=True)
    return both[np.sort(first)[:wanted]]


def _speaker_pairs(
    groups: np.ndarray, wanted: int, within: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Up to `wanted` pairs of speakers, (K,) and (K,), from rounds in which each is once on either side.

    A round puts the S speakers in random order, members of a group side by side. Within groups, each is
    paired with the next member. Otherwise each is paired with the one b places on, b the size of the largest
    group: nobody then meets a member of the same group, unless that group has more than half of the speakers;
    2b − S of it do, and are left out of the round.
    """
    _, ranks, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    speakers = np.flatnonzero(sizes[ranks] > 1) if within else np.arange(len(groups))
    _, ranks, sizes = np.unique(groups[speakers], return_inverse=True, return_counts=True)
    largest = int(sizes.max())
    kept = len(speakers) if within else len(speakers) - max(0, 2 * largest - len(speakers))
    rounds = -(-wanted // kept)
    rounds = min(rounds, 1 + 4_000_000 // len(speakers))  # bounds the memory; the caller asks again
    order = np.argsort(ranks + rng.random((rounds, len(speakers))), axis=1)  # (rounds, S) random inside groups
    if within:
        ends = np.cumsum(sizes)
        following = np.arange(1, len(speakers) + 1)
        following[ends - 1] = ends - sizes  # after the last member comes the first
        partner = order[:, following]
    else:
        partner = np.roll(order, -largest, axis=1)
    # Of the last round only a part is needed: chance decides which.
    shuffled = np.argsort(rng.random(order.shape), axis=1)
    left = speakers[np.take_along_axis(order, shuffled, axis=1).ravel()]
    right = speakers[np.take_along_axis(partner, shuffled, axis=1).ravel()]
    if not within:
        differ = groups[left] != groups[right]
        left, right = left[differ], right[differ]
    return left[:wanted], right[:wanted]


def _build(root: Path, names: np.ndarray, sides: np.ndarray, labels: np.ndarray | None) -> Trials:
    """Trials from pairs `sides` (M, 2) into `names` (any order, more than are used)."""
    used, sides = np.unique(sides, return_inverse=True)
    sides = sides.reshape(-1, 2)  # NumPy 2.0 and the others disagree about the inverse's shape
    order = np.argsort(names[used], kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return Trials(root, names[used][order], rank[sides[:, 0]], rank[sides[:, 1]], labels)


def _count(wanted: int | None) -> str:
    return "all" if wanted is None else f"{wanted:,}"
