"""Recordings of any container as mono samples at 16 kHz: the whole (`load`), a crop of it (`load_crop`), or crops of
several as 16-bit PCM (`load_crops`).

One decoder per container, chosen by `python -m tools.benchmark decoders`:

- WAV and FLAC: soundfile, which seeks to the crop. MP3: soundfile from the start.
- m4a/AAC: PyAV, which bundles FFmpeg, seeking to a few frames before the crop.
- Ogg: PyAV from the start. So too MP3 and FLAC that state no length.

Decoding MP3 and Ogg from the start keeps a crop equal to that part of the whole: MP3 borrows bits from earlier
frames, and libsndfile's seek in Vorbis may be a block off (libsndfile issue 885). A crop of AAC starts at the right
sample, too; only the noise that the codec puts in the place of noise-like bands is drawn anew after a seek.
The container is recognised by content, never by the suffix. Nothing here imports TensorFlow.

A path may also name a recording in a shard of tools/make_shards.py: `00000.tfrecord:OFFSET+LENGTH:a/b.m4a`, where the
first part is the shard's path and the last the recording's own. It is read at once and decoded from memory.
"""

import contextlib
import functools
import io
import math
import os
import re

import av
import numpy as np
import soundfile
from scipy import signal

from vggvox_tf.corpus import SHARDED

SAMPLE_RATE = 16000
# -80 dBFS, the level of three steps of 16-bit PCM: a recording that never gets there holds no speech.
SILENCE = 1e-4
# Of 16-bit PCM: int16 samples are FULL_SCALE times those in [-1, 1].
FULL_SCALE = 2**15
# Decoders overshoot full scale by some per cent, which is clipped. Far more than that is a float file holding
# integers, which clipping would turn into noise.
OVERLOAD = 8.0

# Kaiser-windowed sinc of scipy's resample_poly: this many zero crossings on either side.
_ZERO_CROSSINGS = 10
# Writers to a pipe, who cannot go back to fill in the size, leave at least this in a WAV header.
_UNKNOWN_SIZE = 0x7FFFF000
_CUT_SHORT = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
# Samples decoded before an AAC crop. A frame overlaps with the one before: two frames of the longest kind, 2048.
_RUN_UP = 4096
# FFmpeg's other demuxers read playlists and scripts, which may point to other files and hosts.
_FFMPEG_FORMATS = "aac,flac,mov,mp3,matroska,webm,ogg"
# FFmpeg's names, without the "p" that follows where every channel has a plane of its own.
_SAMPLE_TYPES = {"flt": np.float32, "s16": np.int16, "s32": np.int32}


class AudioError(ValueError):
    """A recording that cannot be used. `path` names the file, `reason` what is wrong with it."""

    def __init__(self, path, reason):
        super().__init__(path, reason)  # both as arguments, so that the error survives pickling
        self.path = path
        self.reason = reason

    def __str__(self):
        return f"{self.path}: {self.reason}"


def load(path):
    """Decodes a recording.

    Args:
      path: file name as str, bytes or os.PathLike.

    Returns:
      float32 (n,), mono, 16 kHz, in [-1, 1]: channels averaged, overshoot clipped.

    Raises:
      AudioError: the file is missing, empty, cut short, unreadable, silent, or holds NaN or infinite samples.
    """
    path = os.fsdecode(path)
    with _opened(path) as source:
        return _with_sound(path, _read(source, 0, None))


def load_crop(path, position, samples):
    """Decodes a crop, reading as little of the file as its codec allows.

    The crop starts at floor(position · (n − samples + 1)) of the recording's n samples and equals that part
    of `load(path)` (AAC: but for the noise it substitutes, see above). A recording shorter than the crop is repeated
    (np.resize). A silent crop (no sample reaches `SILENCE`) of a recording with sound is moved: it starts at the next
    audible sample or, where the rest of the recording is silent, at its first one; and no later than n − samples.

    Args:
      path: file name as str, bytes or os.PathLike.
      position: in [0, 1), where 0 is the first possible crop.
      samples: length of the crop at 16 kHz.

    Returns:
      float32 (samples,), mono, 16 kHz, in [-1, 1].

    Raises:
      AudioError: as for `load`; damage outside what had to be read goes unnoticed.
      ValueError: position or samples is out of range.
    """
    if not 0 <= position < 1 or samples < 1:
        raise ValueError(f"Expected 0 <= position < 1 and samples >= 1. Received: {position}, {samples}.")
    path = os.fsdecode(path)
    with _opened(path) as source:
        length = _length(source)
        whole = length is None or length <= samples
        start = 0 if whole else _crop_start(position, length, samples)
        waveform = _read(source, start, None if whole else start + samples)
    if whole:
        waveform = _with_sound(path, waveform)
    else:
        peak = _peak(path, waveform)
        if peak >= SILENCE:
            return _clipped(waveform, peak)
        waveform = load(path)

    return crop_of(waveform, position, samples)


def crop_of(waveform, position, samples, silence=SILENCE):
    """The crop of a recording that is decoded already; see `load_crop`.

    Args:
      waveform: (n,) float or integer, with at least one sample that reaches `silence`.
      silence: in the waveform's own units.

    Returns:
      (samples,) of the waveform's type, a copy.
    """
    if len(waveform) <= samples:
        return np.resize(waveform, samples)
    start = _crop_start(position, len(waveform), samples)
    if _largest(waveform[start : start + samples]) < silence:
        audible = np.flatnonzero((waveform >= silence) | (waveform <= -silence))
        following = audible[audible >= start]
        start = min((following if following.size else audible)[0], len(waveform) - samples)
    return waveform[start : start + samples].copy()  # a view would keep the whole recording in memory


def load_crops(paths, positions, samples):
    """Crops of several recordings as 16-bit PCM, which takes half of the memory and of the way to the device.

    Args:
      paths, positions, samples: of each as for `load_crop`.

    Returns:
      int16 (N, samples), and the AudioErrors by row; a row with an error holds nothing of use.
    """
    crops, errors = np.empty((len(paths), samples), np.int16), {}
    for row, (path, position) in enumerate(zip(paths, positions, strict=True)):
        try:
            crops[row] = to_pcm16(load_crop(path, position, samples))
        except AudioError as error:
            errors[row] = error
    return crops, errors


def to_pcm16(waveform):
    """[-1, 1] as int16, rounded; what came from 16-bit samples becomes these again."""
    return np.minimum(np.rint(waveform * np.float32(FULL_SCALE)), FULL_SCALE - 1).astype(np.int16)


def num_samples(path):
    """The length in 16 kHz samples that `load` returns: from the header, or by decoding where it has none.

    Raises:
      AudioError: the file is missing, empty, unreadable, or (WAV) cut short.
    """
    path = os.fsdecode(path)
    with _opened(path) as source:
        length = _length(source)
        return len(_read(source, 0, None)) if length is None else length


def _crop_start(position, length, samples):
    # A float32 position would round the product to 24 bits; even a float64 may round up, past the last start.
    return min(int(float(position) * (length - samples + 1)), length - samples)


def _largest(waveform):
    """Largest magnitude. max and min hand NaN on, and in floats the lowest int16 has one."""
    return max(float(waveform.max()), -float(waveform.min()))


def _peak(path, waveform):
    """Largest magnitude; raises where the samples are no audio."""
    peak = _largest(waveform)
    if not math.isfinite(peak):
        raise AudioError(path, "holds NaN or infinite samples")
    if peak > OVERLOAD:
        raise AudioError(path, f"samples reach {peak:.6g}; expected within [-1, 1], rescale the file")
    return peak


def _with_sound(path, waveform):
    """Clipped; raises if it is silent."""
    peak = _peak(path, waveform)
    if peak < SILENCE:
        raise AudioError(path, f"silent: no sample reaches {SILENCE} (-80 dBFS)")
    return _clipped(waveform, peak)


def _clipped(waveform, peak):
    return waveform if peak <= 1 else np.clip(waveform, -1, 1)


# Resampling


@functools.lru_cache
def _resampler(rate):
    """(up, down, reach, window) from `rate` to 16 kHz; the window has `reach` taps beside its centre."""
    divisor = math.gcd(SAMPLE_RATE, rate)
    up, down = SAMPLE_RATE // divisor, rate // divisor
    reach = _ZERO_CROSSINGS * max(up, down)
    # What resample_poly designs by itself, at every call, for a millisecond.
    window = signal.firwin(2 * reach + 1, 1 / max(up, down), window=("kaiser", 5.0)).astype(np.float32)
    return up, down, reach, window


def _length(source):
    """Samples at 16 kHz, or None where the header does not say."""
    return None if source.frames is None else -(-source.frames * SAMPLE_RATE // source.rate)


def _read(source, start, stop):
    """Samples [start, stop) at 16 kHz as float32; stop = None, or beyond the end, is the recording's end."""
    length = _length(source)
    if length is not None:
        stop = length if stop is None else min(stop, length)
    if source.rate == SAMPLE_RATE:
        return source.read(start, stop)

    # Output j is centred on source sample j·down/up and sees reach/up source samples to each side. The first
    # sample read is a multiple of `down`, so that it falls on an output sample: number first·up/down.
    up, down, reach, window = _resampler(source.rate)
    first = max(0, (start * down - reach) // up) // down * down
    last = None if stop is None else (stop * down + reach) // up + 1
    if source.frames is not None:
        last = min(last, source.frames)
    resampled = signal.resample_poly(source.read(first, last), up, down, window=window)
    offset = first // down * up
    return resampled[start - offset : None if stop is None else stop - offset]


def _mono(channels):
    """Mean of the channels, a sequence of (n,) float32 or scaled integer arrays, as float32 (n,)."""
    if channels[0].dtype.kind == "i":
        scale = np.float32(1 / (np.iinfo(channels[0].dtype).max + 1))
        channels = [channel.astype(np.float32) for channel in channels]
        for channel in channels:
            channel *= scale
    return channels[0] if len(channels) == 1 else sum(channels) / len(channels)


# Shards


class _Shard:
    """An open shard. On a network disk it is the opening that is slow."""

    def __init__(self, path):
        self.descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.descriptor).st_size

    def __del__(self):  # once neither the cache nor a reader has it
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


# VoxCeleb2's 72 GB are 140 shards of 512 MB. A process may have 256 files open on macOS, 1,024 on Linux.
_shard = functools.lru_cache(maxsize=200)(_Shard)


def _from_shard(path):
    """The bytes of a recording in a shard; None if the path names a plain file."""
    match = SHARDED.fullmatch(path)
    if not match:
        return None
    offset, length = int(match["offset"]), int(match["length"])
    shard = _shard(match["shard"])
    if offset + length > shard.size:
        raise AudioError(path, f"its shard has {shard.size} bytes, not {offset + length}: cut short, or of other files")
    content = b""
    while len(content) < length:  # one round, but for a recording of more than 2 GB
        piece = os.pread(shard.descriptor, length - len(content), offset + len(content))
        if not piece:
            raise AudioError(path, f"its shard was cut short to {offset + len(content)} bytes")
        content += piece
    return content


# Containers


@contextlib.contextmanager
def _opened(path):
    """A source with `rate`, `frames` (None if unknown), `read(start, stop)`; any failure is an AudioError."""
    try:
        with contextlib.closing(_source(path)) as source:
            if source.frames == 0:
                raise AudioError(path, "has no samples")
            yield source
    except soundfile.LibsndfileError as error:
        raise AudioError(path, f"damaged or cut short; libsndfile says: {error.error_string}") from error
    except av.FFmpegError as error:
        raise AudioError(path, f"damaged or cut short; FFmpeg says: {error.strerror}") from error
    except OSError as error:
        raise AudioError(path, error.strerror or str(error)) from error


def _source(path):
    content = _from_shard(path)
    with _raw(path, content) as file:
        head = file.read(12)
    if not head:
        raise AudioError(path, "is empty (0 bytes)")
    if head[4:8] == b"ftyp":
        try:
            return _FFmpeg(path, content, "mp4")
        except av.error.InvalidDataError as error:
            raise AudioError(path, "MP4 without a readable index (moov), probably cut short") from error
    if head[:4] == b"OggS":
        return _FFmpeg(path, content, "ogg")
    try:
        source = _Libsndfile(path, content)
    except soundfile.LibsndfileError as error:
        try:
            return _FFmpeg(path, content)
        except (av.FFmpegError, AudioError):
            reason = f"neither libsndfile ({error.error_string}) nor FFmpeg can read it; it begins {head!r}"
            raise AudioError(path, reason) from error
    if source.frames is None or (source.container == "MP3" and not _mp3_states_length(path, content)):
        source.close()
        return _FFmpeg(path, content)
    return source


def _raw(path, content):
    """The recording's bytes as a file."""
    return open(path, "rb", buffering=0) if content is None else io.BytesIO(content)


def _mp3_states_length(path, content):
    """Whether an MP3's first frame holds its length.

    Where it does not, libsndfile guesses from one frame's bit rate and drops what is beyond: in one case 43 %
    of a file of variable rate.
    """
    with _raw(path, content) as file:
        head = file.read(10)
        if head[:3] == b"ID3":  # its size: four bytes of seven bits
            size = functools.reduce(lambda high, low: high << 7 | low, head[6:10])
            file.seek(10 + size)
        else:
            file.seek(0)
        frame = file.read(256)
    return any(tag in frame for tag in (b"Xing", b"Info", b"VBRI"))


class _Libsndfile:
    """A recording that libsndfile reads: of the file, or of its content where that is given."""

    def __init__(self, path, content=None):
        self._path = path
        self._file = file = soundfile.SoundFile(path if content is None else io.BytesIO(content))
        self.container = file.format
        self.rate = file.samplerate
        # FLAC written to a pipe states no length, which libsndfile reports as the largest number there is.
        self.frames = file.frames if file.frames < 2**62 else None
        # 16-bit files as they are: numpy converts them to float in a quarter of libsndfile's time.
        self._dtype = "int16" if file.subtype == "PCM_16" else "float32"
        cut = _CUT_SHORT.search(file.extra_info)
        if cut and int(cut[2]) < int(cut[1]) < _UNKNOWN_SIZE:
            file.close()
            raise AudioError(path, f"cut short: header says {cut[1]} bytes of samples, file has {cut[2]}")

    def close(self):
        self._file.close()

    def read(self, start, stop):
        """Source samples [start, stop) as float32 (stop − start,)."""
        first = 0 if self.container == "MP3" else start  # its seek is up to 5e-4 off, or fails
        if first:
            self._file.seek(first)
        # One read: soundfile seeks after each, so that a second one would not be exact either.
        samples = self._file.read(stop - first, self._dtype)
        if len(samples) < stop - first:
            raise _truncated(self._path, first + len(samples), self.frames, self.rate)
        samples = samples[start - first :]
        return _mono([samples] if samples.ndim == 1 else samples.T)


class _FFmpeg:
    """A recording that FFmpeg reads: of the file, or of its content where that is given.

    Length and positions are those of MP4's edit list (Ogg: of its pages), which leave out the encoder's delay at
    the start (FFmpeg skips it) and its padding at the end (FFmpeg hands it out, and it is cut here).
    """

    def __init__(self, path, content=None, container_format=None):
        self._path = path
        file = "file:" + path  # which stops FFmpeg taking a colon in the name for a protocol
        if content is not None:
            file = io.BytesIO(content)
            file.name = path  # its suffix breaks a tie between formats, as a file's does
        # A named format saves the probing.
        self._container = av.open(
            file,
            format=container_format,
            options={"format_whitelist": _FFMPEG_FORMATS},
            metadata_errors="ignore",
        )
        try:
            if not self._container.streams.audio:
                raise AudioError(path, "has no audio stream")
            self._stream = stream = self._container.streams.audio[0]
            self._codec = stream.codec_context
            self._codec.thread_count = 1  # the pipeline decodes many files at a time
            self.rate = self._codec.sample_rate
            sample_format = self._codec.format.name if self._codec.format else "nothing"
            if not self.rate or sample_format.removesuffix("p") not in _SAMPLE_TYPES:
                raise AudioError(path, f"FFmpeg decodes its {self._codec.name} to {sample_format}, not PCM")
            self._channel_count = self._codec.channels
            self._dtype = _SAMPLE_TYPES[sample_format.removesuffix("p")]
            # Elsewhere the duration is an estimate, in milliseconds or (Opus) counts the encoder's delay.
            self.frames = None
            names = self._container.format.name.split(",")
            self._seeks = "mp4" in names
            exact = self._seeks or ("ogg" in names and self._codec.name == "vorbis")
            if exact and stream.duration is not None:
                self.frames = round(stream.duration * stream.time_base * self.rate)
        except Exception:
            self.close()
            raise

    def close(self):
        self._container.close()

    def read(self, start, stop):
        """Source samples [start, stop), or to the end; float32 (stop − start,)."""
        pieces = []
        decoded = 0
        if self._seeks and start > _RUN_UP:
            self._container.seek(int((start - _RUN_UP) / self.rate / self._stream.time_base), stream=self._stream)
            decoded = None  # the first frame says where it lies
        for packet in self._container.demux(self._stream):
            for frame in self._codec.decode(packet):
                if decoded is None:
                    decoded = round(frame.pts * frame.time_base * self.rate)
                    if decoded > start:
                        raise AudioError(self._path, f"its index leads to sample {decoded} instead of {start}")
                position, decoded = decoded, decoded + frame.samples
                if decoded > start:
                    piece = self._channels(frame)
                    if position < start or (stop is not None and decoded > stop):
                        piece = piece[:, max(0, start - position) : None if stop is None else max(0, stop - position)]
                    pieces.append(piece)
            if stop is not None and decoded >= stop:
                break
        decoded = decoded or 0
        if self.frames is not None and decoded < stop:
            # An edit list counts in milliseconds: rounded up, it ends that much after the last sample.
            if not pieces or decoded < stop - self.rate / 1000:
                raise _truncated(self._path, decoded, self.frames, self.rate)
            pieces.append(np.zeros((len(pieces[0]), stop - decoded), self._dtype))
        if not pieces:
            raise AudioError(self._path, "has no samples")
        return _mono(np.concatenate(pieces, axis=1))

    def _channels(self, frame):
        """A decoded frame as (channels, samples)."""
        if len(frame.planes) == 1:  # mono, or interleaved
            samples = frame.samples
            return np.frombuffer(frame.planes[0], self._dtype, samples * self._channel_count).reshape(samples, -1).T
        return np.stack([np.frombuffer(plane, self._dtype, frame.samples) for plane in frame.planes])


def _truncated(path, decoded, stated, rate):
    return AudioError(
        path, f"cut short: its header says {stated / rate:.3f} s, decoding ends at {decoded / rate:.3f} s"
    )
