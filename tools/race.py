"""Trains one recipe after another for the same time, or the same number of steps, and makes a table of their EERs.

  python -m tools.race --corpus=train.tsv --corpus_root=/data/vox2 --trials=vox1.txt,libri.txt \\
    --trials_roots=/data/vox1,/data/libri --noise=/data/noise --reverberation=/data/rir --minutes=20 --output=runs/race
  python -m tools.race … --rows=vggm,aam --seeds=0,1,2         some of them, each with three seeds

A row is a list of runs of vggvox_tf.train, each from the one before it, with a share of the time each. With --steps in
place of --minutes a row gives the same figures whenever it is run, whatever else the machine does. What a row has
in common with the others is configs/vggm_small.cfg; the row's own flags come after it. A run that several rows begin
with is trained once. Some rows fuse the encoders of others, or hear recordings at several speeds. What is finished is
not run again, so that a table can be made in several sittings. The table goes to OUTPUT/race.md, .json and, as a
picture, .png.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from absl import app, flags

from vggvox_tf import plots

FLAGS = flags.FLAGS
BASE = "configs/vggm_small.cfg"


def define_flags():
    # Not at import: tests import this beside other modules with flags of the same names.
    flags.DEFINE_string("corpus", None, "Training recordings, as of vggvox_tf.train.")
    flags.DEFINE_string("corpus_root", None, "Folder its paths start from.")
    flags.DEFINE_list("trials", None, "Trial lists to test on, comma-separated.")
    flags.DEFINE_list("trials_roots", None, "Folders their paths start from, one each.")
    flags.DEFINE_string("noise", None, "Folder of noises, for the rows that add them.")
    flags.DEFINE_string("reverberation", None, "Folder of impulse responses, for the rows that use them.")
    flags.DEFINE_list("common", [], "Flags for every row, such as --normalisation=time; a row's own come after them.")
    flags.DEFINE_float("minutes", 20.0, "Time of each row.", 0.2)
    flags.DEFINE_integer("steps", None, "Steps of each row, in place of a time.", 20)
    flags.DEFINE_list("rows", [], f"Rows to run, of: {', '.join(NAMES)}. Default: all.")
    flags.DEFINE_list("seeds", ["0"], "Seeds to run each row with.")
    flags.DEFINE_string("output", None, "Folder for the runs and the table.")
    flags.mark_flags_as_required(["corpus", "trials", "trials_roots", "output"])


SOFTMAX = ["--loss=softmax", "--learning_rate=1e-3"]
STAGE_2 = ["--optimizer=adam", "--learning_rate=1e-4", "--final_learning_rate=1e-5", "--warmup_steps=20",
           "--freeze_batch_norm"]  # fmt: skip


def after(first, *flags):
    """Stage 1 for three quarters of the time, then a metric loss."""
    return [(0.75, first), (0.25, [*STAGE_2, *flags])]


def alone(*flags):
    return [(1.0, list(flags))]


FIVE_SPEEDS = "0.8,0.9,1,1.1,1.2"
FINER = ["--encoder=resnet34", "--width=0.25", "--mel_bands=80", "--squeeze_excitation", "--stem_stride=2"]
MUON = ["--optimizer=muon", "--learning_rate=1e-2", "--weight_decay=0.1"]

# name -> [(share of the time, flags after the common ones)]
ROWS = {
    "vggm": alone(),
    # losses
    "softmax": alone(*SOFTMAX),
    "am": alone("--loss=am"),
    "aam": alone("--loss=aam"),
    "angular_prototypical": alone("--loss=angular_prototypical"),
    "prototypical": alone("--loss=prototypical"),
    "softmax+angular_prototypical": alone("--loss=softmax,angular_prototypical", "--learning_rate=1e-3"),
    "aam+prototypical": alone("--loss=aam,prototypical"),
    "aam+trihard": alone("--loss=aam,trihard"),
    "softmax-then-contrastive-hard": after(SOFTMAX, "--loss=contrastive"),
    "softmax-then-contrastive-half_hard": after(SOFTMAX, "--loss=contrastive", "--mining=half_hard"),
    "softmax-then-contrastive-semi_hard": after(SOFTMAX, "--loss=contrastive", "--mining=semi_hard"),
    "softmax-then-contrastive-random": after(SOFTMAX, "--loss=contrastive", "--mining=random"),
    "softmax-then-contrastive-offline": after(SOFTMAX, "--loss=contrastive", "--mining=offline"),
    "softmax-then-triplet-hard": after(SOFTMAX, "--loss=triplet"),
    "softmax-then-triplet-semi_hard": after(SOFTMAX, "--loss=triplet", "--mining=semi_hard"),
    "softmax-then-triplet-random": after(SOFTMAX, "--loss=triplet", "--mining=random"),
    "softmax-then-trihard": after(SOFTMAX, "--loss=trihard"),
    "softmax-then-trihard-soft": after(SOFTMAX, "--loss=trihard", "--soft_margin"),
    "softmax-then-quadruplet": after(SOFTMAX, "--loss=quadruplet"),
    "softmax-then-msml": after(SOFTMAX, "--loss=msml"),
    "vggm-then-contrastive-hard": after([], "--loss=contrastive"),
    "vggm-then-trihard": after([], "--loss=trihard"),
    "vggm-then-quadruplet": after([], "--loss=quadruplet"),
    "vggm-then-large-margin": [
        (0.8, []),
        (0.2, ["--loss=aam", "--optimizer=adam", "--learning_rate=2e-4", "--class_margin=0.4", "--crop_seconds=3"]),
    ],
    # optimizer and schedule
    "vggm-muon": alone(*MUON),
    "sgd": alone("--optimizer=sgd", "--learning_rate=0.05", "--weight_decay=0.01"),
    "cyclic": alone("--schedule=cyclic"),
    "weight-average": alone("--weight_average=0.998", "--final_learning_rate=5e-4"),
    # encoder
    "average-pooling": alone("--pooling=average"),
    "self-attentive-pooling": alone("--pooling=self_attentive"),
    "attentive-statistics": alone("--pooling=attentive_statistics"),
    "netvlad": alone("--pooling=netvlad"),
    "ghostvlad": alone("--pooling=ghostvlad"),
    "thin-resnet34": alone("--encoder=resnet34", "--width=0.25", "--mel_bands=80"),
    "thin-se-resnet34": alone("--encoder=resnet34", "--width=0.25", "--mel_bands=80", "--squeeze_excitation"),
    "finer-se-resnet34": alone(*FINER),
    "finer-se-resnet34-muon": alone(*FINER, *MUON),
    "width-0.25": alone("--width=0.25"),
    "width-0.5": alone("--width=0.5"),
    "width-0.75": alone("--width=0.75"),
    # front end
    "257-rows": alone("--mel_bands=0", "--rows=257", "--frequency_mask=25"),
    "257-linear-rows": alone("--mel_bands=0", "--rows=257", "--frequency_mask=25", "--compression=linear"),
    "power-law": alone("--compression=power"),
    "mean-normalisation": alone("--normalisation=mean"),
    "running-normalisation": alone("--normalisation=running"),
    "time-normalisation": alone("--normalisation=time"),
    "learned-normalisation": alone("--normalisation=learned"),
    # augmentation
    "no-augmentation": alone(
        "--speeds=", "--nospeeds_are_speakers", "--frequency_mask=0", "--time_mask=0", "--gain=0", "--filter=0"
    ),
    "speeds-only": alone("--frequency_mask=0", "--time_mask=0"),
    "masks-only": alone("--speeds=", "--nospeeds_are_speakers"),
    "speeds-are-the-same-speaker": alone("--nospeeds_are_speakers"),
    "five-speeds": alone(f"--speeds={FIVE_SPEEDS}"),
    "no-gain": alone("--gain=0"),
    "no-filter": alone("--filter=0"),
    "babble": alone("--babble_share=0.3"),
    "noise": alone("--noise=NOISE", "--noise_share=0.3"),
    "reverberation": alone("--reverberation=REVERBERATION", "--reverberation_share=0.2"),
    "noise-and-reverberation": alone(
        "--noise=NOISE",
        "--noise_share=0.3",
        "--reverberation=REVERBERATION",
        "--reverberation_share=0.2",
        "--gain=6",
    ),
}


# name -> rows whose encoders it fuses, and the speeds at which each hears a recording. In minutes, those of each row:
# they can run side by side, on cores of their own. A row that is named again is trained with the next seed.
FUSED = {
    "vggm-and-thin-se-resnet34": (["vggm", "thin-se-resnet34"], "1"),
    "vggm-heard-at-three-speeds": (["vggm"], "0.9,1,1.1"),
    "vggm-heard-at-five-speeds": (["vggm"], FIVE_SPEEDS),
    "vggm-and-thin-se-resnet34-heard-at-five-speeds": (["vggm", "thin-se-resnet34"], FIVE_SPEEDS),
    "vggm-and-finer-se-resnet34-heard-at-five-speeds": (["vggm", "finer-se-resnet34"], FIVE_SPEEDS),
    "two-finer-se-resnet34-heard-at-five-speeds": (["finer-se-resnet34", "finer-se-resnet34"], FIVE_SPEEDS),
    "two-finer-se-resnet34-muon-heard-at-five-speeds": (["finer-se-resnet34-muon"] * 2, FIVE_SPEEDS),
    "two-thin-se-resnet34-heard-at-five-speeds": (["thin-se-resnet34", "thin-se-resnet34"], FIVE_SPEEDS),
}
NAMES = [*ROWS, *FUSED]


def stage_flags(own, first, given=()):
    """A stage's flags: the common ones that it does not change itself and that have an effect in it, then its own."""
    common = [line for line in Path(BASE).read_text().splitlines() if line.startswith("--")] + list(given)
    changed = {name_of(flag) for flag in own}
    values = {name_of(flag): flag for flag in common + own}
    loss = values["loss"].split("=")[1]
    dropped = set()
    if not first:  # the encoder comes with the stage before
        dropped |= {"encoder", "width", "mel_bands", "rows", "compression", "normalisation", "pooling"}
        dropped |= {"squeeze_excitation", "stem_stride", "embedding_dim"}
    if "am" not in loss.split(",") and "aam" not in loss.split(","):
        dropped |= {"class_margin", "margin_warmup_epochs"}
    if not first and "margin_warmup_epochs" not in changed:
        dropped |= {"margin_warmup_epochs"}
    if loss in ("softmax", "am", "aam") or "--mining=random" in own or "--mining=offline" in own:
        dropped |= {"utterances_per_speaker"}
    if {"--mining=random", "--mining=offline"} & set(own):
        dropped |= {"speeds_are_speakers"}
    if values.get("speeds") == "--speeds=":
        dropped |= {"speeds", "speeds_are_speakers"}
    if values.get("mel_bands") == "--mel_bands=0":
        dropped |= {"mel_bands"}
    return [flag for name, flag in values.items() if name not in dropped]


def name_of(flag):
    """loss of --loss=aam, speeds_are_speakers of --nospeeds_are_speakers."""
    return re.match(r"--(?:no(?=speeds_))?(\w+)", flag)[1]


def run(module, *flags):
    subprocess.run([sys.executable, "-m", module, *flags], check=True)


def folder_of(name, seed):
    length = f"{FLAGS.steps}steps" if FLAGS.steps else f"{FLAGS.minutes:g}min"
    return Path(FLAGS.output) / f"{name}-{length}-seed{seed}"


def stages_of(name, seed):
    """Folders of the runs of a row. What another row before it begins with as well is that row's."""
    folders = []
    for number in range(1, len(ROWS[name]) + 1):
        first = next(row for row, stages in ROWS.items() if stages[:number] == ROWS[name][:number])
        folders.append(folder_of(first, seed) / f"stage{number}")
    return folders


def train(name, seed):
    """Trains a row of ROWS, unless it is there already; returns the folders of its runs."""
    stages, before = stages_of(name, seed), None
    for number, ((share, own), stage) in enumerate(zip(ROWS[name], stages, strict=True)):
        given = [flag.replace("NOISE", FLAGS.noise or "").replace("REVERBERATION", FLAGS.reverberation or "")
                 for flag in stage_flags(own, number == 0, FLAGS.common)]  # fmt: skip
        given += [f"--init_from={before}"] if before else []
        given += [f"--corpus={FLAGS.corpus}", f"--seed={seed}", f"--run={stage}", "--projector_every=1000"]
        given += [f"--corpus_root={FLAGS.corpus_root}"] if FLAGS.corpus_root else []
        given += [f"--trials={FLAGS.trials[0]}", f"--trials_root={FLAGS.trials_roots[0]}"]
        epochs = 10 if share > 0.5 else 2
        steps = f"--steps_per_epoch={round(share * FLAGS.steps / epochs)}" if FLAGS.steps else None
        run("vggvox_tf.train", *given, f"--epochs={epochs}", steps or f"--time_budget={share * FLAGS.minutes}")
        before = stage
    return stages


def race(name, seed):
    """Trains and tests a row, unless it is there already; returns its EERs on the lists, and what it took."""
    folder = folder_of(name, seed)
    names, speeds = FUSED.get(name, ([name], "1"))
    parts = [train(part, int(seed) + names[:number].count(part)) for number, part in enumerate(names)]
    encoders = [f"{stages[-1]}/encoder.keras" for stages in parts]
    if name in FUSED:
        together = folder / "fused"
        if not (together / "encoder.keras").exists():
            run("tools.fuse_encoders", f"--encoders={','.join(encoders)}", f"--speeds={speeds}", f"--output={together}")
        encoders = [f"{together}/encoder.keras"]
    lists = zip(FLAGS.trials, FLAGS.trials_roots, list_names(), strict=True)
    eers = {trials: test(encoders[0], trials, root, folder / f"test-{name.replace('/', '-')}")
            for trials, root, name in lists}  # fmt: skip
    return {"eers": eers, "utterances": sum(map(utterances, parts))}


def test(encoder, trials, root, output):
    """The EER of an encoder on a list, of the report in `output`; writes that unless it is there already."""
    report = output / "metrics.json"
    if not (report.exists() and tested(report)["trial_list"] == trials):  # another list can have the same name
        given = [f"--encoder={encoder}", f"--trials={trials}", f"--trials_root={root}", f"--output={output}"]
        run("vggvox_tf.evaluate", *given)
    return tested(report)["systems"][0]["eer"]


def tested(report):
    (entry,) = json.loads(report.read_text())["lists"]
    return entry


def utterances(stages):
    """Utterances that a row's runs were trained on, by their flags."""
    total = 0
    for stage in stages:
        lines = (stage / "flags.cfg").read_text().splitlines()
        values = dict(line[2:].split("=", 1) for line in lines)
        total += int(values["epochs"]) * int(values["steps_per_epoch"]) * int(values["batch_size"])
    return total


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    names = FLAGS.rows or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        raise app.UsageError(f"--rows: expected some of {', '.join(NAMES)}; found {', '.join(unknown)}")
    if stray := [flag for flag in FLAGS.common if not flag.startswith("--")]:
        raise app.UsageError(
            "--common: expected flags, comma-separated, those with commas in quotes, such as "
            f"""'--width=0.5,"--speeds=0.9,1,1.1"'; found {stray[0]}"""
        )
    if len(FLAGS.trials) != len(FLAGS.trials_roots):
        raise app.UsageError("--trials_roots must have one folder for each list of --trials")
    table = Path(FLAGS.output) / "race.json"
    for seed in FLAGS.seeds:
        for name in names:
            row = race(name, seed)
            # Read again: others may have raced on another core meanwhile.
            results = json.loads(table.read_text()) if table.exists() else {}
            results.setdefault(name, {})[seed] = row
            table.write_text(json.dumps(results, indent=1))
            table.with_suffix(".md").write_text(markdown(results))
            title = f"EER by recipe, lowest on {list_names()[0]} first"
            plots.eers(eers_of(results), list_names(), table.with_suffix(".png"), title)
    print(table.with_suffix(".md").read_text())


def list_names():
    """With their folders: many lists are called trials.txt."""
    return ["/".join(Path(trials).with_suffix("").parts[-2:]) for trials in FLAGS.trials]


def eers_of(results):
    """Of each row that was tested on all of --trials, for each list the EERs of its seeds; the lowest mean on the first
    list comes first."""
    rows = {}
    for name, runs in results.items():
        eers = [run["eers"] for run in runs.values() if set(run["eers"]) >= set(FLAGS.trials)]
        if eers:
            rows[name] = [tuple(seed[trials] for seed in eers) for trials in FLAGS.trials]
    return dict(sorted(rows.items(), key=lambda row: mean(row[1][0])))


def markdown(results):
    """The table; of several seeds mean and spread (lowest to highest)."""
    lists = list_names()
    lines = [
        f"| row | {' | '.join(f'{name} EER %' for name in lists)} | seeds | utterances |",
        "|---|" + "---|" * (len(lists) + 2),
    ]
    for name, eers in eers_of(results).items():
        cells = []
        for seeds in eers:
            spread = f" ({100 * min(seeds):.2f}–{100 * max(seeds):.2f})" if len(seeds) > 1 else ""
            cells.append(f"{100 * mean(seeds):.2f}{spread}")
        count = mean(run["utterances"] for run in results[name].values())
        lines.append(f"| {name} | {' | '.join(cells)} | {len(eers[0])} | {count:,.0f} |")
    return "\n".join(lines) + "\n"


def mean(values):
    values = list(values)
    return sum(values) / len(values)


if __name__ == "__main__":
    define_flags()
    app.run(main)
