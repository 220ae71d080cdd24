#!/usr/bin/env bash
# Install from a folder of wheels, check and measure on one GPU, without a network.
#
#   benchmarks/gpu.sh WHEELS [OUT]      OUT defaults to docs/results; docs/guides/gpu.md describes WHEELS
#   SMOKE=1 benchmarks/gpu.sh - OUT     tiny models on the CPU with the interpreter in PYTHON; installs nothing
#
# Prints a short table at the end, with the parts that failed or timed out. The parts after them still run.
set -euo pipefail
cd "$(dirname "$0")/.."

wheels=${1:?usage: benchmarks/gpu.sh WHEELS [OUT]}
out=${2:-docs/results}
mkdir -p "$out"
failed=()

# in_time SECONDS NAME COMMAND...: run a part, and record its name if it fails.
in_time() {
    local seconds=$1 name=$2
    shift 2
    echo "== $name (at most $seconds s)"
    timeout --kill-after=20 "$seconds" "$@" || failed+=("$name (status $?)")
}

install() {
    local venv=${VENV:-/tmp/megatron-ssd-gpu}
    # Use the machine's torch: it has its CUDA libraries, and TransformerEngine is built against it.
    python3.12 -m venv --system-site-packages "$venv"
    python=$venv/bin/python
    "$python" -m pip install --quiet --no-index --find-links "$wheels" --no-deps "$wheels"/*.whl
    "$python" -m pip install --quiet --no-index --no-deps --no-build-isolation -e .
}

checks() {
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
    "$python" - <<'PYTHON'
import importlib.metadata as metadata
import torch
print("torch", torch.__version__, "CUDA", torch.version.cuda, "capability", torch.cuda.get_device_capability())
for package in ("megatron-core", "transformer-engine", "transformers"):
    print(package, metadata.version(package))
import transformer_engine.pytorch
PYTHON
}

if [ "${SMOKE:-}" = 1 ]; then
    python=${PYTHON:-python3}
    options=(--device cpu --tiny)
else
    install
    options=()
    in_time 120 "versions" checks
    in_time 600 "tests/gpu" "$python" -m pytest -q -m gpu tests/gpu
fi
for part in ${PARTS:-specs fp8 recompute speed}; do
    in_time 600 "$part" "$python" -m benchmarks.gpu_measure --part "$part" --out "$out" "${options[@]}"
done

echo
"$python" -m benchmarks.gpu_measure --table --out "$out"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
