# shellcheck shell=bash
# Sourced by tools/make_venv.sh and tools/lock.sh: which Python, and where the CPU build of torch comes from.

TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

# Print the path of a Python 3.11 that can make virtual environments; end with one clear line where there is none.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3 python; do
        [ -n "$candidate" ] || continue
        # A name on PATH may be a shim that does not start, so it is run, not only looked up.
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 with venv found (tried \$PYTHON, python3.11, python3, python): the locked requirements" \
        "are for 3.11; install it (Debian 12: apt-get install python3.11-venv; or: uv python install 3.11)" \
        "or name it: make venv PYTHON=/path/to/python3.11" >&2
    exit 1
}

# install_torch PYTHON: the CPU build at the version that setup.py pins. The local version "+cpu" never matches a CUDA
# build. Indexes that pip is configured with come first, PyTorch's own after them.
install_torch() {
    local python=$1 pin log
    pin=$(grep -oE 'torch==[0-9.]+\+cpu' setup.py)
    if log=$("$python" -m pip install --no-deps "$pin" 2>&1); then
        tail -n 1 <<<"$log"
    elif grep -q 'No matching distribution' <<<"$log"; then
        echo "$pin is not in pip's configured indexes; taking it from $TORCH_CPU_INDEX"
        "$python" -m pip install --no-deps --index-url "$TORCH_CPU_INDEX" "$pin"
    else
        echo "$log" >&2
        return 1
    fi
}
