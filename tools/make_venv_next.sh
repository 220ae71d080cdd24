#!/usr/bin/env bash
# Make .venv-next, the second environment, from requirements/next.txt: Python 3.12, Megatron-Core 0.19.2.
#
# About 5 GB, most of it torch's CUDA build. A stamp file, named after a hash of the lock, marks a finished installation,
# so a second call does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/python.sh
. tools/python.sh

venv=.venv-next
python=$venv/bin/python
stamp=$venv/.installed-$(cat setup.py requirements/next.txt | sha256sum | cut -c1-16)

[ ! -e "$stamp" ] || exit 0
if ! "$python" -c 'import pip, sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
    base=$(find_python_next)
    echo "making $venv with $base"
    "$base" -m venv --clear "$venv"
fi
rm -f "$venv"/.installed-*
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$python" -m pip install --no-deps -r requirements/next.txt
"$python" -m pip install --no-deps --no-build-isolation --quiet -e .
"$python" -m pip check
touch "$stamp"
