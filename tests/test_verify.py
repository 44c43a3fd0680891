import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from vggvox_tf import scoring, verify
from vggvox_tf.calibration import Calibration
from vggvox_tf.decision import decide
from vggvox_tf.speaker_encoder import SpeakerEncoder
from vggvox_tf.trials import read_pairs

# llr = 10·score − 4: 0 at 0.4
CALIBRATION = Calibration(10.0, -4.0, "f", "cosine", "whole", "none", "dev.txt", 1000, 9000, 40, 0.05, 0.2, 0.15)


def test_a_decision_in_words():
    lines = verify.describe(decide(0.5, CALIBRATION), 0.5).splitlines()
    assert lines[0] == "same speaker" and lines[1].split() == ["score", "0.5000", "(cosine)"]
    assert lines[2].split()[:2] == ["probability", "0.7311"]  # 1 / (1 + e⁻¹)
    assert lines[3].split()[:2] == ["threshold", "0.4000,"] and "dev.txt" in lines[3] and len(lines) == 4
    assert verify.describe(decide(0.3, CALIBRATION), 0.5).startswith("different speakers\n")
    assert "No cosine reaches" in verify.describe(decide(0.9, CALIBRATION, p_target=1e-4), 1e-4)  # (9.2 + 4) / 10 > 1


def test_without_a_calibration_nothing_is_pretended():
    lines = verify.describe(decide(0.9), 0.5).splitlines()
    assert lines[0] == "no decision" and "no calibration" in lines[-1] and len(lines) == 3
    lines = verify.describe(decide(0.9, threshold=0.5), 0.5).splitlines()
    assert lines[0] == "same speaker" and lines[2].split() == ["threshold", "0.5000,", "given"]
    assert "no calibration" in lines[-1]


def test_a_table_of_pairs(tmp_path):
    (tmp_path / "pairs.txt").write_text("b a\na c\nc b\n")
    pairs = read_pairs(tmp_path / "pairs.txt")
    decisions = [decide(0.5, CALIBRATION), decide(np.nan, CALIBRATION), decide(0.1, None)]
    assert list(verify.table(pairs, decisions)) == [
        "decision\tscore\tprobability\ta\tb",
        "same\t0.5000\t0.7311\tb\ta",
        "unusable recording\t\t\ta\tc",
        "no decision\t0.1000\t\tc\tb",
    ]


def run(*arguments):
    command = [sys.executable, "-m", "vggvox_tf.verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_two_recordings(encoder_file, tiny_corpus):
    a, b = tiny_corpus / "s0/a/0.wav", tiny_corpus / "s3/b/1.wav"
    done = run(a, b, f"--encoder={encoder_file}")
    encoder = SpeakerEncoder.load(encoder_file)
    a, b = scoring.unit_length(encoder.embed_files([a, b]))
    assert done.returncode == 0 and "no decision" in done.stdout and f"{a @ b:.4f} (cosine)" in done.stdout


def test_a_list_of_pairs_with_one_bad_recording(encoder_file, tiny_corpus, tmp_path):
    fingerprint = SpeakerEncoder.load(encoder_file).fingerprint
    (tmp_path / "encoder.keras").write_bytes(encoder_file.read_bytes())
    dataclasses.replace(CALIBRATION, fingerprint=fingerprint).save(tmp_path / "encoder.calibration.json")
    assert json.loads((tmp_path / "encoder.calibration.json").read_text())["slope"] == 10
    for name in ("s0/a/0.wav", "s3/b/1.wav"):
        (tmp_path / name.replace("/", "-")).symlink_to(tiny_corpus / name)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    (tmp_path / "pairs.txt").write_text("s0-a-0.wav s3-b-1.wav\ns0-a-0.wav silent.wav\n")
    done = run(f"--encoder={tmp_path}/encoder.keras", f"--pairs={tmp_path}/pairs.txt", f"--output={tmp_path}/out.tsv")
    assert done.returncode == 1 and "1 of 3 recordings cannot be used" in done.stderr
    assert "silent.wav: silent" in done.stderr and "Traceback" not in done.stderr
    _, first, second = (tmp_path / "out.tsv").read_text().splitlines()
    decision, score, probability, *_ = first.split("\t")
    assert float(probability) == pytest.approx(1 / (1 + np.exp(4 - 10 * float(score))), abs=1e-3)
    assert decision == ("same" if float(score) >= 0.4 else "different")
    assert second == "unusable recording\t\t\ts0-a-0.wav\tsilent.wav"
