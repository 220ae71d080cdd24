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

# pip prints several lines per package; a terminal gets a count of packages instead.
install_requirements() { # FILE
    if [ -t 1 ]; then
        PYTHONUNBUFFERED=1 "$python" -m pip install --progress-bar off --no-deps -r "$1" |
            awk -v total="$(count "$1")" '
                /^(Collecting|Requirement already)/ { printf "\r%d of %d packages", ++found, total; fflush() }
                /^Installing collected/ { printf "\nunpacking them"; fflush() }
                END { print "" }'
    else
        "$python" -m pip install --quiet --no-deps -r "$1"
    fi
}

count() { # FILE: the number of its packages
    grep -cE '^[A-Za-z0-9]' "$1"
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
        echo "2 of 2: $(count requirements/cpu.txt) packages of requirements/cpu.txt"
        install_requirements requirements/cpu.txt
        "$python" -m pip install --no-deps --no-build-isolation --quiet -e .
    else
        echo "installing $(count requirements/dev.txt) packages of requirements/dev.txt for tests and checks"
        install_requirements requirements/dev.txt
    fi
    touch "$stamp"
}

export PIP_DISABLE_PIP_VERSION_CHECK=1
exec 9<tools/make_venv.sh
if ! flock --nonblock 9; then
    echo "waiting until another command has finished with $venv"
    flock 9
fi
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
