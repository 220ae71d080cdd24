#!/usr/bin/env bash
# Check and measure on one GPU, in one call and without a network. docs/guides/gpu.md describes it.
#
#   benchmarks/gpu.sh [--site FOLDER] [--out OUT] [--minutes 8] [--parts PART ...] [--again]
#   benchmarks/gpu.sh --device cpu --tiny    # a rehearsal without a GPU
#
# The archives (*.tar.xz) of --site have the packages that the interpreter PYTHON (python3) lacks.
set -euo pipefail
began=$(date +%s)
project=$(cd "$(dirname "$0")/.." && pwd)
options=()
site=
while [ $# -gt 0 ]; do
    case $1 in
        --site) site=${2:-}; shift $(($# > 1 ? 2 : 1))
            if ! compgen -G "$site/*.tar.xz" >/dev/null; then
                echo "error: --site $site: there is no archive (*.tar.xz); docs/guides/gpu.md says what it holds" >&2
                exit 2
            fi ;;
        *) options+=("$1"); shift ;;
    esac
done

if [ -n "$site" ]; then
    unpacked=$(mktemp -d)
    trap 'rm -rf "$unpacked"' EXIT
    jobs=()
    for archive in "$site"/*.tar.xz; do
        folder=$unpacked/$(basename "$archive" .tar.xz)
        mkdir "$folder"
        tar xJf "$archive" -C "$folder" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job"; done
    for folder in "$unpacked"/*; do
        if [ -d "$folder/site" ]; then folder=$folder/site; fi
        PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH}
    done
fi
export PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# vLLM's own sampler needs no flashinfer, which few machines have.
export VLLM_USE_FLASHINFER_SAMPLER=${VLLM_USE_FLASHINFER_SAMPLER:-0} VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
python=${PYTHON:-python3}
# Looked for and not imported: importing torch takes seconds of the call.
if ! "$python" -c 'from importlib.util import find_spec; assert all(map(find_spec, ("hydra", "megatron", "pytest", "torch")))' \
    2>/dev/null; then
    echo "error: PYTHON=$python: lacks packages that this script needs; install them as docs/guides/gpu.md says, and" \
        "name the Python that has them" >&2
    exit 2
fi
"$python" -m benchmarks.gpu_run --began "$began" "${options[@]}"
