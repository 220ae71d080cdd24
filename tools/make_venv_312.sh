#!/usr/bin/env bash
# Make an environment with Python 3.12 from its lock.
#
#   tools/make_venv_312.sh next    .venv-next: Megatron-Core 0.19.2; about 5 GB, most of it torch's CUDA build
#   tools/make_venv_312.sh te      .venv-te: TransformerEngine and the torch that it is built for; about 6 GB
#
# TransformerEngine's part for torch is on PyPI as source only. TE_SITE names a folder with the installed packages
# transformer_engine*, built for Python 3.12 and the torch of requirements/te.txt, or a tar archive of such a folder.
# Without TE_SITE it is built, which takes nvcc of CUDA 13 and many minutes.
#
# A stamp file, named after a hash of the lock, marks a finished installation, so a second call does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/python.sh
. tools/python.sh

name=${1:?usage: tools/make_venv_312.sh next|te}
case $name in
    next | te) ;;
    *)
        echo "error: tools/make_venv_312.sh $name: the environment must be next or te" >&2
        exit 2
        ;;
esac
lock=requirements/$name.txt
venv=.venv-$name
python=$venv/bin/python
stamp=$venv/.installed-$(cat setup.py "$lock" | sha256sum | cut -c1-16)

# Find TransformerEngine before anything is installed; print the folder that has it, or nothing if it is to be built.
find_transformer_engine() {
    if [ -z "${TE_SITE:-}" ]; then
        command -v nvcc >/dev/null && return
        echo "error: TE_SITE is not set and there is no nvcc: name a folder or an archive that has TransformerEngine for" \
            "Python 3.12 (make test-te TE_SITE=PATH), or install CUDA 13 to build it" >&2
        return 1
    fi
    local folder=$TE_SITE
    if [ -f "$folder" ]; then
        folder=$work
        tar -xf "$TE_SITE" -C "$folder"
    fi
    if ! compgen -G "$folder/transformer_engine*" >/dev/null; then
        echo "error: TE_SITE=$TE_SITE: no transformer_engine* is at its top: name a folder of installed packages," \
            "or an archive of one" >&2
        return 1
    fi
    echo "$folder"
}

# From FOLDER, or built if it is empty.
install_transformer_engine() { # FOLDER
    local version
    version=$(sed -nE 's/.*"transformer-engine\[.*\]==([0-9.]+)".*/\1/p' setup.py)
    if [ -n "$1" ]; then
        cp -r "$1"/transformer_engine* "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    else
        "$python" -m pip install --no-cache-dir --no-deps "transformer-engine==$version" "transformer-engine-cu13==$version"
        NVTE_FRAMEWORK=pytorch "$python" -m pip install --no-cache-dir --no-deps --no-build-isolation \
            "transformer-engine-torch==$version"
    fi
    "$python" -c "import transformer_engine.pytorch
from importlib.metadata import version
found = version('transformer-engine')
assert found == '$version', f'TransformerEngine {found} is not the $version of setup.py'"
}

[ ! -e "$stamp" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
te_folder=
[ "$name" != te ] || te_folder=$(find_transformer_engine)
if ! "$python" -c 'import pip, sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
    base=$(find_python_next)
    echo "making $venv with $base"
    "$base" -m venv --clear "$venv"
fi
rm -f "$venv"/.installed-*
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$python" -m pip install --no-cache-dir --no-deps -r "$lock"
"$python" -m pip install --no-deps --no-build-isolation --quiet -e .
[ "$name" != te ] || install_transformer_engine "$te_folder"
"$python" -m pip check
touch "$stamp"
