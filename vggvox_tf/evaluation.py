"""The test of an encoder: trial lists by every protocol, normalisation and calibration, as numbers for a report."""

import dataclasses
from pathlib import Path

import numpy as np
from absl import logging

from vggvox_tf import breakdown, calibration, cli, metrics, scoring
from vggvox_tf.audio import SAMPLE_RATE
from vggvox_tf.corpus import read_corpus, read_genders
from vggvox_tf.embeddings import Embeddings
from vggvox_tf.speaker_encoder import CROPS
from vggvox_tf.trials import VOXCELEB1_LISTS, TrialError, read_trials, read_voxceleb1_trials, speaker_of

P_TARGETS = (0.01, 0.05)
# A speaker's cohort vector is the mean of this many of their utterances, or of all where there are fewer.
COHORT_UTTERANCES = 10


def open_trials(name, root, trained_on=()):
    """A trial list by its file or VoxCeleb1 name, whose recordings exist.

    Raises:
      TrialError: an unusable list, or one that names some of the speakers `trained_on`, whose error rates would say
        little about strangers.
    """
    trials = read_voxceleb1_trials(name, root) if name in VOXCELEB1_LISTS else read_trials(name, root)
    if known := sorted(trials.speakers() & set(trained_on)):
        raise TrialError(
            f"{name} names {len(known)} speakers that the encoder was trained on (first {known[0]}), so its error "
            "rates would say little about strangers. Test on other speakers, or give --allow_training_speakers, which "
            "the report will say"
        )
    trials.check_files()
    return trials


def short_name(trial_list):
    """What a list is called in the report: VoxCeleb1's name for it, or its file's without folder and ending."""
    return trial_list if trial_list in VOXCELEB1_LISTS else Path(trial_list).stem


def cohort_vectors(encoder, path, root, exclude, batch_size):
    """One vector of unit length a speaker (K, D), to normalise scores with.

    Args:
      encoder: a SpeakerEncoder.
      path, root: embeddings on disk (.npz), or a corpus, of which COHORT_UTTERANCES recordings a speaker are embedded.
      exclude: speakers to leave out.
    """
    if path.endswith(".npz"):
        embeddings = Embeddings.load(path, encoder.fingerprint)
        speakers, vectors = embeddings.speakers, embeddings.vectors
    else:
        corpus = read_corpus(path, root)
        corpus = corpus.select(evenly_spread(corpus.speakers, COHORT_UTTERANCES))
        logging.info("Embedding the cohort: %s", corpus.summary())
        errors, progress = {}, cli.show_progress(len(corpus))
        vectors = encoder.embed_files(
            corpus.paths, corpus.root, batch_size=batch_size, progress=progress, errors=errors
        )
        for error in errors.values():
            logging.warning("Left out of the cohort: %s", error)
        usable = np.isfinite(vectors).all(axis=1)
        speakers, vectors = np.array(corpus.speaker_names)[corpus.speakers][usable], vectors[usable]
    kept = ~np.isin(speakers, sorted(exclude))
    if shared := len(set(speakers[~kept])):
        logging.warning("%d speakers of the cohort are in the trial lists, and were left out of it.", shared)
    return scoring.speaker_means(vectors[kept], speakers[kept])[1]


def evenly_spread(groups, count):
    """A mask (N,) of `count` elements of each group, as evenly spread over it as can be, or all of a smaller one.

    Args:
      groups: (N,) sorted numbers.
    """
    place = np.arange(len(groups)) - np.searchsorted(groups, groups)  # (N,) 0, 1, … in each group
    sizes = np.bincount(groups)[groups]
    # floor(place · count / size) is a new number where an element is taken.
    return (place == 0) | (place * count // sizes != (place - 1) * count // sizes)


class Scorer:
    """Scores of trial lists by every protocol and normalisation asked for; each recording is embedded once.

    Args:
      encoder: a SpeakerEncoder.
      lists: the trials.Trials that will be scored.
      protocols, kinds: some of scoring.PROTOCOLS and of scoring.NORMALISATIONS.
      cohort: (K, D), or None without normalisation.
      top: how many of the cohort's highest scores the adaptive s-norm takes.
    """

    def __init__(self, encoder, lists, protocols, kinds, distance, cohort, top, batch_size):
        self.protocols, self.kinds, self.distance = protocols, kinds, distance
        paths = sorted({str(trials.root / path) for trials in lists for path in trials.paths})
        self._row = {path: row for row, path in enumerate(paths)}
        lengths = encoder.lengths(paths)
        self._seconds = lengths / SAMPLE_RATE

        def embed(crops):
            return encoder.embed_files(paths, "", crops, lengths, batch_size, cli.show_progress(len(paths)))

        self._vectors = {}
        if "whole" in protocols:
            self._vectors["whole"] = embed(None)
        if {"mean", "pairs"} & set(protocols):
            crops = embed(CROPS)
            self._vectors |= {"mean": crops.mean(axis=1), "pairs": crops}
        self._statistics = {}
        for adaptive in sorted({kind == "as-norm" for kind in kinds if kind != "none"}):
            for protocol in protocols:
                self._statistics[protocol, adaptive] = scoring.cohort_statistics(
                    self._vectors[protocol], cohort, distance, top if adaptive else None
                )

    def rows(self, trials):
        """(U,) where the recordings of a list stand among those of all lists."""
        return np.array([self._row[str(trials.root / path)] for path in trials.paths])

    def seconds(self, trials):
        """(U,) lengths of a list's recordings."""
        return self._seconds[self.rows(trials)]

    def scores(self, trials):
        """Scores (M,) of a list by (protocol, kind), in the order of the report."""
        rows = self.rows(trials)
        trials = dataclasses.replace(trials, enrol=rows[trials.enrol], test=rows[trials.test])
        scores = {}
        for protocol in self.protocols:
            raw = scoring.score(trials, self._vectors[protocol], self.distance)
            for kind in self.kinds:
                statistics = self._statistics.get((protocol, kind == "as-norm"))
                scores[protocol, kind] = scoring.normalise(raw, trials, statistics, kind)
        return scores


def calibrate(scorer, trials, trial_list, encoder):
    """calibration.Calibration by (protocol, kind), fitted on the scores of a development list."""
    return {
        (protocol, kind): calibration.calibrate(
            scores, trials.labels, fingerprint=encoder.fingerprint, distance=scorer.distance, protocol=protocol,
            normalisation=kind, trial_list=trial_list, speakers=len(trials.speakers()),
        )
        for (protocol, kind), scores in scorer.scores(trials).items()
    }  # fmt: skip


def evaluate_list(scorer, trials, trial_list, trained_on, calibrations, threshold):
    """The report's entry on one list, ready for json.dump, and the scores (M,) by (protocol, kind).

    Args:
      trial_list: the list's name or file.
      trained_on: names of the training speakers, as far as known.
      calibrations: what `calibrate` returns, or {}.
      threshold: a score at which decisions on the raw scores are counted as well, or None.
    """
    numbers = {speaker: number for number, speaker in enumerate(sorted(trials.speakers()))}
    speakers = np.array([numbers[speaker_of(path)] for path in trials.paths])
    enrolled, tested = speakers[trials.enrol], speakers[trials.test]
    scored = scorer.scores(trials)
    systems, note = [], trials.known_speakers_note(trained_on)
    for (protocol, kind), scores in scored.items():
        chosen = threshold if kind == "none" else None
        try:
            interval = list(metrics.eer_interval(scores, trials.labels, enrolled, tested))
        except metrics.MetricsError as error:  # too few speakers, or paths that do not tell them
            interval, note = None, f"{trials.known_speakers_note(trained_on)} The EER has no interval: {error}".strip()
        systems.append(
            {"protocol": protocol, "normalisation": kind}
            | metrics.summary(scores, trials.labels, P_TARGETS, chosen)
            | {
                "eer_interval": interval,
                "calibration": _calibrated(calibrations.get((protocol, kind)), scores, trials.labels),
            }
        )
    first, scores = systems[0], next(iter(scored.values()))
    entry = {
        "name": short_name(trial_list),
        "trial_list": trial_list,
        "recordings": len(trials.paths),
        "speakers": len(numbers),
        "training_speakers_among_them": len(numbers.keys() & set(trained_on)),
        "note": note,
        "systems": systems,
        "breakdown": breakdown.breakdown(
            trials, scores, first["eer_threshold"], read_genders(trials.root), scorer.seconds(trials)
        ),
    }
    return entry, scored


def _calibrated(fitted, scores, labels):
    """What the report says of calibrated scores."""
    if fitted is None:
        return None

    def actual_dcf(p_target):
        counts = metrics.confusion(scores, labels, fitted.threshold(p_target))
        return metrics.det_cost(1 - counts.recall, counts.fpr, p_target) / min(p_target, 1 - p_target)

    return {
        "slope": fitted.slope,
        "offset": fitted.offset,
        "cllr": metrics.cllr(fitted.llr(scores), labels),
        "threshold": fitted.threshold(),
        "actual_dcf": [{"p_target": p_target, "dcf": actual_dcf(p_target)} for p_target in P_TARGETS],
    }
