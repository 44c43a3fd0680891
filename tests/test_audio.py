"""audio.py against soundfile, PyAV and scipy used directly, and against values derived by hand."""

import concurrent.futures
import itertools
import math
import pathlib
import pickle
import re
import subprocess
import sys

import av
import numpy as np
import pytest
import soundfile
from scipy import signal

from vggvox_tf import audio

CONTAINERS = ("wav", "flac", "ogg", "mp3", "m4a")
LAYOUTS = ((16000, 1), (44100, 2))  # (rate, channels)
CROP = 24000


def speech_like(samples, channels=1, seed=0):
    """(samples, channels) of noise that falls with frequency, so that resampling has little to cut off."""
    shape = 1 / (1 + np.linspace(0, 20, samples // 2 + 1) ** 2)
    noise = np.random.default_rng(seed).standard_normal((samples, channels))
    filtered = np.fft.irfft(np.fft.rfft(noise, axis=0) * shape[:, None], samples, axis=0)
    return (0.5 * filtered / np.abs(filtered).max()).astype(np.float32)


def write_av(path, waveform, rate, codec="aac", options=None, stream_options=None):
    """Encodes float32 (n, channels) with FFmpeg."""
    layout = {1: "mono", 2: "stereo"}[waveform.shape[1]]
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, options=stream_options or {})
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform.T), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0  # without a time stamp, no edit list would state the delay
        for packet in itertools.chain(stream.encode(frame), stream.encode(None)):
            container.mux(packet)
    return path


def write(path, waveform, rate=16000):
    if path.suffix == ".m4a":  # without noise substitution, so that a crop equals that part of the whole
        return write_av(path, waveform, rate, stream_options={"aac_pns": "0"})
    soundfile.write(path, waveform, rate)
    return path


def reference(path):
    """The whole recording by the plainest means: (n,) float32 at 16 kHz."""
    if path.suffix == ".m4a":
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            rate, stated = stream.rate, stream.duration
            assert stream.time_base.denominator == rate
            samples = np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], axis=1).T
        samples = samples[:stated]
    else:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if rate == 16000:
        return mono
    divisor = math.gcd(16000, rate)
    return signal.resample_poly(mono, 16000 // divisor, rate // divisor)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """(container, rate, channels) → a file of 5.3 s."""
    folder = tmp_path_factory.mktemp("recordings")
    paths = {}
    for container, (rate, channels) in itertools.product(CONTAINERS, LAYOUTS):
        path = folder / f"{rate}-{channels}.{container}"
        paths[container, rate, channels] = write(path, speech_like(int(5.3 * rate), channels), rate)
    return paths


def every_recording(test):
    layouts = [(container, *layout) for container, layout in itertools.product(CONTAINERS, LAYOUTS)]
    return pytest.mark.parametrize("recording", layouts, ids=lambda key: f"{key[0]}-{key[1]}-{key[2]}")(test)


# Whole recordings


@every_recording
def test_load_agrees_with_the_plain_decoder(recordings, recording):
    path = recordings[recording]
    waveform = audio.load(path)
    assert waveform.dtype == np.float32
    assert waveform.shape == (84800,)  # 5.3 s
    np.testing.assert_allclose(waveform, reference(path), atol=2e-6)


@every_recording
def test_load_agrees_with_the_signal_that_was_encoded(recordings, recording):
    """Lossy codecs change the samples and must not move them: the cross-correlation peaks at lag 0."""
    container, rate, channels = recording
    original = speech_like(int(5.3 * rate), channels).mean(axis=1)
    if rate == 44100:
        original = signal.resample_poly(original, 160, 441)
    waveform = audio.load(recordings[recording])
    spectra = np.fft.rfft(waveform, 2**18) * np.conj(np.fft.rfft(original, 2**18))
    assert np.argmax(np.fft.irfft(spectra)) == 0
    error = np.sqrt(np.mean((waveform - original) ** 2) / np.mean(original**2))
    assert error < (1e-3 if container in ("wav", "flac") else 0.3)


def test_sixteen_bit_samples_are_divided_by_32768(tmp_path):
    samples = np.array([-32768, -1, 0, 1, 16384, 32767], np.int16)
    soundfile.write(tmp_path / "x.wav", samples, 16000)
    expected = np.array([-1, -1 / 32768, 0, 1 / 32768, 0.5, 32767 / 32768], np.float32)
    np.testing.assert_array_equal(audio.load(tmp_path / "x.wav"), expected)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW"])
def test_other_sample_formats(tmp_path, subtype):
    waveform = speech_like(16000)
    soundfile.write(tmp_path / "x.wav", waveform, 16000, subtype=subtype)
    np.testing.assert_allclose(audio.load(tmp_path / "x.wav"), waveform[:, 0], atol=0.02)


def test_resampling_keeps_a_sine_and_averages_channels(tmp_path):
    """1 kHz at amplitudes 0.5 and 0.25 is 1 kHz at 0.375; one second at 44.1 kHz is 16,000 samples."""
    sine = np.sin(2 * np.pi * 1000 * np.arange(44100) / 44100)
    soundfile.write(tmp_path / "x.wav", np.stack([0.5 * sine, 0.25 * sine], axis=1), 44100, subtype="FLOAT")
    waveform = audio.load(tmp_path / "x.wav")
    expected = 0.375 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    assert waveform.shape == (16000,)
    np.testing.assert_allclose(waveform[100:-100], expected[100:-100], atol=1e-3)


@pytest.mark.parametrize("samples", [38112, 38119, 38911, 38912, 38913, 500])
def test_m4a_length_is_the_edit_lists(tmp_path, samples):
    """AAC frames hold 1024 samples; the edit list counts milliseconds, 16 samples, rounded up."""
    path = write(tmp_path / "x.m4a", speech_like(samples))
    assert len(audio.load(path)) == audio.num_samples(path) == -(-samples // 16) * 16


@pytest.mark.parametrize("samples", [36864, 36870, 38119, 38913])
def test_m4a_length_within_a_millisecond_at_44100_hz(tmp_path, samples):
    """The stated length, rounded to a millisecond, may lie beyond the last sample: that is no error."""
    path = write(tmp_path / "x.m4a", speech_like(samples, 2), 44100)
    assert abs(len(audio.load(path)) - samples * 160 / 441) <= 16 + 1
    assert len(audio.load(path)) == audio.num_samples(path)


@every_recording
def test_num_samples_is_what_load_returns(recordings, recording):
    assert audio.num_samples(recordings[recording]) == len(audio.load(recordings[recording]))


def test_overshoot_is_clipped(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.array([0.5, 1.25, -1.5]), 16000, subtype="FLOAT")
    np.testing.assert_array_equal(audio.load(tmp_path / "x.wav"), [0.5, 1, -1])
    np.testing.assert_array_equal(audio.load_crop(tmp_path / "x.wav", 0.9, 2), [1, -1])


# Crops


@every_recording
@pytest.mark.parametrize("position", [0, 0.01, 0.37, 0.62, 0.9999999])
def test_a_crop_is_that_part_of_the_whole(recordings, recording, position):
    """Exactly, at another rate too: the crop's samples come from the same products in the same order."""
    path = recordings[recording]
    start = math.floor(position * (84800 - CROP + 1))
    crop = audio.load_crop(path, position, CROP)
    assert crop.dtype == np.float32
    tolerance = 0 if recording[1] == 16000 else 1e-6
    np.testing.assert_allclose(crop, audio.load(path)[start : start + CROP], rtol=0, atol=tolerance)


def test_crops_of_aac_with_substituted_noise(tmp_path):
    """White noise at a low bit rate: bands are replaced by noise drawn anew after a seek, all else stays in its place.

    A 500 Hz tone stands 30 dB above it, so crop and whole agree but for the noise, and best without a shift.
    """
    tone = 0.3 * np.sin(2 * np.pi * 500 * np.arange(80000) / 16000)
    noise = 0.01 * np.random.default_rng(0).standard_normal(80000)
    waveform = (tone + noise).astype(np.float32)[:, np.newaxis]
    path = write_av(tmp_path / "x.m4a", waveform, 16000, stream_options={"b": "24000"})
    whole = audio.load(path)
    for start in (0, 5000, 33333, 55999):
        crop = audio.load_crop(path, (start + 0.5) / (80000 - CROP + 1), CROP)
        shifts = range(max(0, start - 3), min(80000 - CROP, start + 3) + 1)
        errors = {shift: np.sqrt(np.mean((crop - whole[shift : shift + CROP]) ** 2)) for shift in shifts}
        assert min(errors, key=errors.get) == start and errors[start] < 0.02


def test_crops_of_ogg_with_transients(tmp_path):
    """Clicks make Vorbis switch block sizes, where libsndfile's seek lands a block away (its issue 885)."""
    waveform = 0.1 * speech_like(80000)[:, 0]
    click = np.random.default_rng(1).standard_normal(200) * np.exp(-np.arange(200) / 30)
    for start in range(2000, 79000, 3777):
        waveform[start : start + 200] += 0.3 * click
    soundfile.write(tmp_path / "x.ogg", waveform, 16000)
    whole = audio.load(tmp_path / "x.ogg")
    assert len(whole) == 80000
    np.testing.assert_allclose(whole, soundfile.read(tmp_path / "x.ogg")[0], atol=2e-6)
    for start in range(1000, 75000, 1500):
        crop = audio.load_crop(tmp_path / "x.ogg", (start + 0.5) / (80000 - 4000 + 1), 4000)
        np.testing.assert_array_equal(crop, whole[start : start + 4000])


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 48000, 16001])
def test_a_crop_at_any_rate(tmp_path, rate):
    soundfile.write(tmp_path / "x.wav", speech_like(2 * rate), rate)
    whole = audio.load(tmp_path / "x.wav")
    assert len(whole) == 32000
    for position in (0, 0.003, 0.5, 0.98, 0.999):
        start = math.floor(position * (32000 - 7000 + 1))
        crop = audio.load_crop(tmp_path / "x.wav", position, 7000)
        np.testing.assert_allclose(crop, whole[start : start + 7000], rtol=0, atol=1e-6)


def test_a_short_recording_is_repeated(tmp_path):
    """Three samples a b c as a crop of eight: a b c a b c a b, wherever the crop would start."""
    soundfile.write(tmp_path / "x.wav", np.array([0.25, -0.5, 0.125]), 16000)
    expected = [0.25, -0.5, 0.125, 0.25, -0.5, 0.125, 0.25, -0.5]
    for position in (0, 0.7):
        np.testing.assert_array_equal(audio.load_crop(tmp_path / "x.wav", position, 8), expected)
    np.testing.assert_array_equal(audio.load_crop(tmp_path / "x.wav", 0.7, 3), [0.25, -0.5, 0.125])


def test_every_start_is_reached_and_none_beyond(tmp_path):
    """Four samples, crops of two: starts 0, 1, 2 for the thirds of [0, 1), up to the position next to 1."""
    soundfile.write(tmp_path / "x.wav", np.array([1, 2, 3, 4]) / 8, 16000)
    for position, first in ((0, 1), (0.33, 1), (0.34, 2), (0.67, 3), (1 - 2**-53, 3)):
        assert audio.load_crop(tmp_path / "x.wav", position, 2)[0] == first / 8
    assert audio.load_crop(tmp_path / "x.wav", np.float32(1 - 2**-24), 2)[0] == 3 / 8


def test_a_silent_crop_moves_to_the_next_sound(tmp_path):
    """Sound at samples 500–599 and 900–919 of 1000; crops of 100, so the start is floor(position · 901)."""
    waveform = np.zeros(1000, np.float32)
    waveform[500:600] = 0.5
    waveform[900:920] = 0.25
    soundfile.write(tmp_path / "x.wav", waveform, 16000)

    def crop(start):
        return audio.load_crop(tmp_path / "x.wav", (start + 0.5) / 901, 100)

    np.testing.assert_array_equal(crop(450), waveform[450:550])  # partly silent: as drawn
    np.testing.assert_array_equal(crop(10), waveform[500:600])  # silent: the next sound
    np.testing.assert_array_equal(crop(700), waveform[900:1000])
    waveform[900:] = 0
    soundfile.write(tmp_path / "x.wav", waveform, 16000)
    np.testing.assert_array_equal(crop(700), waveform[500:600])  # silent up to the end: the first sound
    waveform[500:600], waveform[990:] = 0, 0.5
    soundfile.write(tmp_path / "x.wav", waveform, 16000)
    np.testing.assert_array_equal(crop(700), waveform[900:1000])  # no later than the last possible start


def test_16_bit_samples_come_back_as_they_were(tmp_path):
    """The lowest, the highest, and all between; others are rounded, and +1 is one step too high."""
    samples = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "x.wav", samples, 16000)
    np.testing.assert_array_equal(audio.to_pcm16(audio.load(tmp_path / "x.wav")), samples)
    np.testing.assert_array_equal(
        audio.to_pcm16(np.float32([1, 0.49 / 32768, 2.51 / 32768, -1])), [32767, 0, 3, -32768]
    )


def test_several_crops_as_16_bit_samples(recordings, tmp_path):
    paths = [*recordings.values(), tmp_path / "missing.wav"]
    positions = np.linspace(0, 0.99, len(paths))
    crops, errors = audio.load_crops(paths, positions, CROP)
    assert crops.shape == (len(paths), CROP) and crops.dtype == np.int16
    for crop, path, position in zip(crops, paths[:-1], positions, strict=False):
        assert np.abs(crop / 32768 - audio.load_crop(path, position, CROP)).max() <= 0.5 / 32768
    assert list(errors) == [len(paths) - 1] and errors[len(paths) - 1].path == str(tmp_path / "missing.wav")


def test_a_crop_of_a_decoded_recording(tmp_path):
    """As load_crop has it, in 16-bit steps: 100 samples of silence (steps 3 and −3 are below 1e-4), then the lowest."""
    samples = np.array([3, -3] * 50 + [-32768, 0, 5, 7], np.int16)
    soundfile.write(tmp_path / "x.wav", samples, 16000)
    for position in (0, 0.3, 0.97, 0.999):
        crop = audio.crop_of(samples, position, 4, audio.SILENCE * audio.FULL_SCALE)
        assert crop.dtype == np.int16 and crop.base is None
        np.testing.assert_array_equal(crop, audio.load_crop(tmp_path / "x.wav", position, 4) * 32768)
    np.testing.assert_array_equal(crop, [-32768, 0, 5, 7])


@pytest.mark.parametrize(("position", "samples"), [(1, 10), (-0.1, 10), (math.nan, 10), (0.5, 0)])
def test_impossible_crops_are_refused(recordings, position, samples):
    with pytest.raises(ValueError, match="Expected 0 <= position < 1"):
        audio.load_crop(recordings["wav", 16000, 1], position, samples)


def test_threads_decode_the_same(recordings):
    paths = list(recordings.values()) * 4
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        crops = list(pool.map(lambda path: audio.load_crop(path, 0.5, CROP), paths))
    for path, crop in zip(paths, crops, strict=True):
        np.testing.assert_array_equal(crop, audio.load_crop(path, 0.5, CROP))


# Names and containers


def test_paths_of_any_kind(recordings):
    for path in (recordings["wav", 16000, 1], recordings["m4a", 16000, 1]):
        for name in (str(path), str(path).encode()):
            np.testing.assert_array_equal(audio.load(name), audio.load(path))


def test_a_name_with_a_colon_is_no_protocol(recordings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("http:ü.m4a").write_bytes(recordings["m4a", 16000, 1].read_bytes())
    assert len(audio.load("http:ü.m4a")) == 84800


@pytest.mark.parametrize("container", CONTAINERS)
def test_content_decides_not_the_suffix(recordings, tmp_path, container):
    path = recordings[container, 16000, 1]
    for suffix in (".flac", ".m4a", ".wav", ""):
        renamed = tmp_path / f"renamed{suffix}"
        renamed.write_bytes(path.read_bytes())
        np.testing.assert_array_equal(audio.load_crop(renamed, 0.3, CROP), audio.load_crop(path, 0.3, CROP))


def test_wav_and_flac_written_to_a_pipe_state_no_length(recordings, tmp_path):
    """WAV: 0xFFFFFFFF bytes. FLAC: 0 samples, in STREAMINFO's 36 bits from the low half of byte 21."""
    wav = bytearray(recordings["wav", 16000, 1].read_bytes())
    assert wav[36:40] == b"data"
    wav[4:8] = wav[40:44] = b"\xff" * 4
    flac = bytearray(recordings["flac", 16000, 1].read_bytes())
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    for suffix, content in (("wav", wav), ("flac", flac)):
        path = tmp_path / f"pipe.{suffix}"
        path.write_bytes(content)
        whole = audio.load(recordings[suffix, 16000, 1])
        assert audio.num_samples(path) == len(whole)
        np.testing.assert_array_equal(audio.load(path), whole)
        np.testing.assert_array_equal(
            audio.load_crop(path, 0.5, CROP), audio.load_crop(recordings[suffix, 16000, 1], 0.5, CROP)
        )


@pytest.mark.parametrize("quality", [{"b": "32000"}, {"flags": "+qscale", "global_quality": str(6 * 118)}])
def test_mp3_without_a_length_keeps_its_tail(tmp_path, quality):
    """A quiet second, then loud ones: libsndfile's guess from the first frame's rate would cut a VBR file."""
    waveform = speech_like(10 * 16000)
    waveform[:16000] *= 0.01
    options = {"write_xing": "0", "id3v2_version": "0"}
    path = write_av(tmp_path / "x.mp3", waveform, 16000, "libmp3lame", options, quality)
    assert b"Xing" not in path.read_bytes() and b"Info" not in path.read_bytes()
    loaded = audio.load(path)
    # Whole frames of 576 samples: delay and padding stay, as nothing states them.
    assert len(waveform) <= len(loaded) <= len(waveform) + 4 * 576
    assert audio.num_samples(path) == len(loaded)
    start = math.floor(0.9 * (len(loaded) - CROP + 1))
    np.testing.assert_array_equal(audio.load_crop(path, 0.9, CROP), loaded[start : start + CROP])


def test_raw_aac(tmp_path):
    """ADTS states no length and no delay: everything decoded is the recording."""
    path = write_av(tmp_path / "x.aac", speech_like(32000), 16000)
    assert audio.num_samples(path) == len(audio.load(path)) == 33 * 1024  # 1024 of delay + 32,000, rounded up


@pytest.mark.parametrize("channels", [1, 2])
def test_lossless_m4a(tmp_path, channels):
    """ALAC holds 16-bit integers."""
    waveform = np.round(speech_like(30000, channels) * 32768).astype(np.int16)
    layout = "mono" if channels == 1 else "stereo"
    with av.open(str(tmp_path / "x.m4a"), "w") as container:
        stream = container.add_stream("alac", rate=16000, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform.T), format="s16p", layout=layout)
        frame.sample_rate, frame.pts = 16000, 0
        for packet in itertools.chain(stream.encode(frame), stream.encode(None)):
            container.mux(packet)
    loaded = audio.load(tmp_path / "x.m4a")
    np.testing.assert_allclose(loaded[:30000], waveform.mean(axis=1) / 32768, atol=1e-7)
    assert len(loaded) == 30000


def test_tensorflow_is_not_imported():
    code = "import sys, vggvox_tf.audio; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Bad files


def assert_error(path, reason, functions=(audio.load, lambda path: audio.load_crop(path, 0.99, CROP))):
    for function in functions:
        with pytest.raises(audio.AudioError, match=reason) as caught:
            function(path)
        assert caught.value.path == str(path)
        assert str(caught.value) == f"{path}: {caught.value.reason}"


def test_error_is_a_value_error_that_pickles():
    error = pickle.loads(pickle.dumps(audio.AudioError("a.wav", "silent")))
    assert isinstance(error, ValueError)
    assert (str(error), error.path, error.reason) == ("a.wav: silent", "a.wav", "silent")


@pytest.mark.parametrize("container", CONTAINERS)
def test_missing_and_empty(tmp_path, container):
    path = tmp_path / f"x.{container}"
    assert_error(path, "No such file", (audio.load, audio.num_samples))
    path.touch()
    assert_error(path, "empty", (audio.load, audio.num_samples))
    assert_error(tmp_path, "directory")


def test_no_samples(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(0), 16000)
    assert_error(tmp_path / "x.wav", "no samples", (audio.load, audio.num_samples))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("content", [b"Not a recording.\n" * 100, b"#EXTM3U\n#EXTINF:9,\nother.aac\n", b"\0" * 5000])
def test_files_that_are_no_audio(tmp_path, container, content):
    path = tmp_path / f"x.{container}"
    path.write_bytes(content)
    assert_error(path, re.escape(f"begins {content[:12]!r}"))


@pytest.mark.parametrize("container", ["wav", "flac", "mp3", "m4a"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cut_short(recordings, tmp_path, container, layout):
    content = recordings[(container, *layout)].read_bytes()
    path = tmp_path / f"x.{container}"
    path.write_bytes(content[: len(content) * 2 // 3])
    assert_error(path, "cut short")


def test_wav_cut_short_says_how_much_is_missing(tmp_path):
    """1,000 samples of two bytes, of which 600 are left."""
    soundfile.write(tmp_path / "x.wav", speech_like(1000), 16000)
    (tmp_path / "x.wav").write_bytes((tmp_path / "x.wav").read_bytes()[: 44 + 1200])
    assert_error(tmp_path / "x.wav", "2000 bytes of samples, file has 1200", (audio.load, audio.num_samples))


def test_m4a_cut_short_behind_its_index(tmp_path):
    """With the index in front the file opens; a crop from its intact part is still good."""
    waveform = speech_like(80000)
    path = write_av(tmp_path / "x.m4a", waveform, 16000, options={"movflags": "+faststart"})
    whole = audio.load(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert_error(path, "cut short")
    np.testing.assert_array_equal(audio.load_crop(path, 0, CROP), whole[:CROP])


def test_m4a_with_damaged_frames(tmp_path):
    path = write_av(tmp_path / "x.m4a", speech_like(80000), 16000)
    content = bytearray(path.read_bytes())
    content[1000:4000] = np.random.default_rng(0).bytes(3000)  # inside mdat, which precedes the index
    path.write_bytes(content)
    assert_error(path, "damaged", (audio.load, lambda path: audio.load_crop(path, 0, CROP)))
    assert len(audio.load_crop(path, 0.99, CROP)) == CROP  # which lies behind the damage


@pytest.mark.parametrize("container", CONTAINERS)
def test_silent(tmp_path, container):
    """0.9e-4 is under -80 dBFS; lossy codecs are given digital silence."""
    level = 0.9e-4 if container in ("wav", "flac") else 0
    path = write(tmp_path / f"x.{container}", np.full((CROP * 2, 1), level, np.float32))
    assert_error(path, "silent")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_samples_that_are_no_numbers(tmp_path, value, rate):
    waveform = speech_like(2 * rate, 2)
    waveform[-rate // 2, 1] = value
    soundfile.write(tmp_path / "x.wav", waveform, rate, subtype="FLOAT")
    assert_error(tmp_path / "x.wav", "NaN or infinite")


def test_floats_that_were_not_scaled(tmp_path):
    soundfile.write(tmp_path / "x.wav", speech_like(CROP) * 32768, 16000, subtype="FLOAT")
    assert_error(tmp_path / "x.wav", r"samples reach 16384; expected within \[-1, 1\]")
