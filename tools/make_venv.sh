#!/usr/bin/env bash
# Make .venv from the locked requirements, or bring it up to date.
#
#   tools/make_venv.sh cpu     what the demo needs
#   tools/make_venv.sh dev     also what tests and checks need
#
# A stamp file, named after a hash of the locks, marks a finished installation, so a second call does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/python.sh
. tools/python.sh

level=${1:?usage: tools/make_venv.sh cpu|dev}
venv=.venv
python=$venv/bin/python

stamp_of() { # LEVEL: the path of its stamp
    local files=(setup.py requirements/cpu.txt)
    [ "$1" = cpu ] || files+=(requirements/dev.txt)
    echo "$venv/.installed-$1-$(cat "${files[@]}" | sha256sum | cut -c1-16)"
}

ensure_venv() {
    if ! "$python" -c 'import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        local base
        base=$(find_python)
        echo "making $venv with $base"
        "$base" -m venv --clear "$venv"
    fi
}

install() { # LEVEL
    local stamp
    stamp=$(stamp_of "$1")
    [ ! -e "$stamp" ] || return 0
    ensure_venv
    rm -f "$venv/.installed-$1-"*
    if [ "$1" = cpu ]; then
        echo "installing torch and the locked requirements into $venv, about 4 GB; this takes minutes"
        echo "1 of 2: torch"
        install_torch "$python"
        echo "2 of 2: $(grep -cE '^[A-Za-z0-9]' requirements/cpu.txt) packages of requirements/cpu.txt"
        "$python" -m pip install --quiet --no-deps -r requirements/cpu.txt
        "$python" -m pip install --no-deps --no-build-isolation --quiet -e .
    else
        echo "installing $(grep -cE '^[A-Za-z0-9]' requirements/dev.txt) packages of requirements/dev.txt for tests and checks"
        "$python" -m pip install --quiet --no-deps -r requirements/dev.txt
    fi
    touch "$stamp"
}

export PIP_DISABLE_PIP_VERSION_CHECK=1
case $level in
    cpu) install cpu ;;
    dev)
        install cpu
        install dev
        ;;
    *)
        echo "error: tools/make_venv.sh $level: the level must be cpu or dev" >&2
        exit 2
        ;;
esac
