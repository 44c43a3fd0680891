"""Which utterances make the batch of step n: pure functions of (seed, n).

There is no shuffle buffer and no iterator state: a batch is computed from the number of its step alone, so resuming at
step n is exact, and each of several workers can compute its own part of the same order.

A sampler has a `batch_size` N, is called with a step number and returns int64 utterance indices (N,) into the corpus.
It costs O(N) a step whatever the size of the corpus, but for one permutation at the start of each pass (36 ms for
1,092,009 utterances).

NumPy's counter-based Philox generator gives each (seed, stream, step) random numbers of its own. TensorFlow's
`index_shuffle` would spare the permutation, but is visibly uneven: over 20,000 seeds the first of nine elements landed
on some places half as often again as on others (9.0 % to 13.7 %).
"""

import functools

import numpy as np

# Each kind of decision has a stream of random numbers of its own.
ORDER, DRAWS, CROPS, MINING = range(4)


class SamplingError(ValueError):
    """A corpus that cannot fill the batches that are asked for."""


def generator(seed, stream, step):
    """Random numbers that depend on (seed, stream, step) only."""
    # The step is the counter's highest word, so the streams of neighbouring steps never meet.
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, step]))


@functools.lru_cache(maxsize=4)
def permutation(seed, number, size):
    """The order of pass `number` through `size` elements; the last few are kept, as steps ask for them in turn."""
    return generator(seed, ORDER, number).permutation(size)


class UtteranceSampler:
    """Passes over all utterances, each in an order of its own, for the classifier; no utterance is left out.

    A batch that reaches the end of a pass goes on with the next one, so that all batches are equally large.
    """

    def __init__(self, corpus, batch_size, seed):
        self.utterances = len(corpus)
        self.batch_size = batch_size
        self.seed = seed

    def __call__(self, step):
        positions = step * self.batch_size + np.arange(self.batch_size)
        passes, places = np.divmod(positions, self.utterances)
        indices = np.empty(self.batch_size, np.int64)
        for number in range(passes[0], passes[-1] + 1):
            rows = passes == number
            indices[rows] = permutation(self.seed, number, self.utterances)[places[rows]]
        return indices


class SpeakerSampler:
    """P×K batches: P distinct speakers, K utterances of each, speaker by speaker.

    Speakers come in passes, each in an order of its own; up to P − 1 speakers sit out a pass, others in each. The K
    utterances come from distinct sessions as far as the speaker has them, then are distinct utterances, and only where
    there are fewer than K is one repeated (it will be cropped differently).
    """

    def __init__(self, corpus, speakers_per_batch, utterances_per_speaker, seed):
        speakers = len(corpus.speaker_names)
        if speakers < speakers_per_batch:
            raise SamplingError(
                f"a batch of {speakers_per_batch} speakers with {utterances_per_speaker} utterances each needs as many "
                f"training speakers, found {speakers}: lower the batch size or raise the utterances per speaker"
            )
        self.draw = UtteranceDraw(corpus)
        self.batch_size = speakers_per_batch * utterances_per_speaker
        self.speakers = speakers
        self.speakers_per_batch = speakers_per_batch
        self.utterances_per_speaker = utterances_per_speaker
        self.seed = seed

    def __call__(self, step):
        number, batch = divmod(step, self.speakers // self.speakers_per_batch)
        order = permutation(self.seed, number, self.speakers)
        chosen = order[batch * self.speakers_per_batch :][: self.speakers_per_batch]
        random = generator(self.seed, DRAWS, step)
        return np.concatenate([self.draw(random, speaker, self.utterances_per_speaker) for speaker in chosen])


class PairSampler:
    """Random pairs: first the B anchors, then their B partners (anchor i belongs to partner i).

    Anchors' speakers come in passes, so each speaker is an anchor equally often. The first round(B · positive_share)
    pairs are of the same speaker, from another session where there is one. The others pair the anchor with another
    speaker: with probability `same_gender_share` one of the same gender, else one of the other; None asks for neither.
    Where a gender is unknown, or has no other speaker, any other speaker is taken.

    Args:
      mined: a mining.MinedPairs, from whose pairs of the step the negative ones are drawn instead.
    """

    def __init__(self, corpus, pairs, positive_share, seed, same_gender_share=None, mined=None):
        if len(corpus.speaker_names) < 2:
            raise SamplingError("pairs of different speakers need two training speakers or more, found one")
        self.draw = UtteranceDraw(corpus)
        self.speakers = len(corpus.speaker_names)
        self.genders = np.array(corpus.genders)
        self.of_gender = {gender: np.flatnonzero(self.genders == gender) for gender in "fm"}
        self.batch_size = 2 * pairs
        self.pairs = pairs
        self.positives = round(pairs * positive_share)
        self.same_gender_share = same_gender_share
        self.seed = seed
        self.mined = mined

    def __call__(self, step):
        random = generator(self.seed, DRAWS, step)
        passes, places = np.divmod(step * self.pairs + np.arange(self.pairs), self.speakers)
        speakers = [
            permutation(self.seed, int(n), self.speakers)[place] for n, place in zip(passes, places, strict=True)
        ]
        random.shuffle(speakers)  # so that which speakers are positive does not depend on their place in the pass
        pairs = [self.draw(random, speaker, 2) for speaker in speakers[: self.positives]]
        if self.mined:
            pairs.extend(random.choice(self.mined(step), self.pairs - self.positives))
            return np.stack(pairs, axis=1).reshape(-1)
        for speaker in speakers[self.positives :]:
            partners = (speaker, self.another(random, speaker))
            pairs.append(np.concatenate([self.draw(random, each, 1) for each in partners]))
        return np.stack(pairs, axis=1).reshape(-1)

    def another(self, random, speaker):
        """A speaker other than `speaker`."""
        gender = self.genders[speaker]
        if self.same_gender_share is not None and gender:
            same = random.random() < self.same_gender_share
            candidates = self.of_gender[gender if same else {"f": "m", "m": "f"}[gender]]
            candidates = candidates[candidates != speaker] if same else candidates
            if candidates.size:
                return random.choice(candidates)
        other = random.integers(self.speakers - 1)
        return other + (other >= speaker)


class UtteranceDraw:
    """Draws utterances of one speaker: from distinct sessions first, then distinct utterances, then repeated ones."""

    def __init__(self, corpus):
        # Utterances are sorted by speaker, then session, so both are ranges: [starts[i], starts[i + 1]).
        self.utterances = starts(corpus.sessions)
        speaker_of_session = corpus.speakers[self.utterances[:-1]]
        self.sessions = starts(speaker_of_session)

    def __call__(self, random, speaker, count):
        sessions = random.permutation(np.arange(self.sessions[speaker], self.sessions[speaker + 1]))
        chosen = np.resize(sessions, count)
        indices = np.empty(count, np.int64)
        for session in sessions[:count]:
            rows = np.flatnonzero(chosen == session)
            first, last = self.utterances[session], self.utterances[session + 1]
            indices[rows] = first + np.resize(random.permutation(last - first), rows.size)
        return indices


def starts(ids):
    """For ids 0, 0, 1, 2, 2 …, ascending without gaps: where each begins, and the length: 0, 2, 3, …, N."""
    return np.append(np.flatnonzero(np.diff(ids, prepend=-1)), len(ids))
