"""Prints what the quickstart has made: python -m tools.quickstart_summary runs/quickstart"""

import json
import os
import sys
from pathlib import Path


def main(runs):
    print(f"\nThe quickstart is done. Everything lies in {runs}.\n")
    print(f"{'stage':<14}{'EER':>9}{'minDCF':>9}{'AUC':>9}   report")
    for stage in ("softmax", "contrastive"):
        evaluation = runs / stage / "eval-trials"
        (results,) = json.loads((evaluation / "metrics.json").read_text())["lists"]
        (system,) = results["systems"]
        cost = system["detection_costs"][0]
        print(
            f"{stage:<14}{100 * system['eer']:>7.2f} %{cost['min_dcf']:>9.3f}{system['auc']:>9.4f}   "
            f"{evaluation / 'report.html'}"
        )
    print(
        f"\n{system['trials']:,} trials over {results['recordings']} recordings of a meeting that was held out. Its "
        f"{results['speakers']} speakers were trained on in other\nmeetings: these are EERs of new recordings of known "
        f"speakers (minDCF at p_target {cost['p_target']:g}).\n"
    )
    print("To see the speakers, and the curves of the training:\n")
    python = sys.executable.removeprefix(f"{os.getcwd()}/")
    print(f"  {python} -m tensorboard.main --logdir={runs}\n")
    print("then open http://localhost:6006/#projector and colour by speaker.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
