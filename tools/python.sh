# shellcheck shell=bash
# Sourced by tools/make_venv.sh, tools/make_venv_312.sh and tools/lock.sh: finds Python and installs torch's CPU build.

TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

# first_python VERSION CANDIDATE...: print the path of the first one with that version that can make virtual environments,
# or fail.
first_python() {
    local version=$1 candidate
    shift
    for candidate in "$@"; do
        [ -n "$candidate" ] || continue
        # A name on PATH may be a shim that does not start, so run it.
        if "$candidate" -c "import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" \
            2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# Print the path of a Python 3.11 that can make virtual environments, or exit with one line.
find_python() {
    first_python 3.11 "${PYTHON:-}" python3.11 python3 python && return
    echo "error: no Python 3.11 with venv found (tried \$PYTHON, python3.11, python3, python): the locked requirements" \
        "are for 3.11; install it (Debian 12: apt-get install python3.11-venv; or: uv python install 3.11)" \
        "or name it: make venv PYTHON=/path/to/python3.11" >&2
    exit 1
}

# The same for Python 3.12 of the other environments. pyenv's shims start only the selected version, so look into its
# folder as well.
find_python_next() {
    first_python 3.12 "${PYTHON_NEXT:-}" python3.12 python3 python \
        "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.12*/bin/python && return
    echo "error: no Python 3.12 with venv found (tried \$PYTHON_NEXT, python3.12, python3, python, pyenv's versions):" \
        "this environment is for 3.12; install it (uv python install 3.12; or: pyenv install 3.12)" \
        "or name it: make test-next PYTHON_NEXT=/path/to/python3.12" >&2
    exit 1
}

# install_torch PYTHON: the CPU build at the version that setup.py pins. The local version "+cpu" never matches a CUDA
# build. Indexes that pip is configured with come first, PyTorch's own after them.
install_torch() {
    local python=$1 pin log
    pin=$(grep -oE 'torch==[0-9.]+\+cpu' setup.py)
    if log=$("$python" -m pip install --quiet --no-deps "$pin" 2>&1); then
        [ -z "$log" ] || echo "$log"  # pip's warnings
    elif grep -q 'No matching distribution' <<<"$log"; then
        echo "$pin is not in pip's configured indexes; taking it from $TORCH_CPU_INDEX"
        "$python" -m pip install --quiet --no-deps --index-url "$TORCH_CPU_INDEX" "$pin"
    else
        echo "$log" >&2
        return 1
    fi
}
