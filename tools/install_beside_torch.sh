#!/usr/bin/env bash
# Install a lock beside the torch of an image, and change neither it nor what was built for it.
#
#   tools/install_beside_torch.sh requirements/train.txt
#
# An image's own constraint file pins other packages in some releases, and nothing in others. So the protected packages
# are those that this Python has, and pip gets the lock alone: nothing is resolved. PYTHON names the interpreter.
set -euo pipefail

lock=${1:?usage: tools/install_beside_torch.sh LOCK}
python=${PYTHON:-python}
protected='^(torch|triton|pytorch[-_]triton|transformer[-_]engine.*|apex|flash[-_]attn.*|vllm|flashinfer.*|xgrammar)=='
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Not pip freeze, which writes a path for a package that was installed from one.
built() { "$python" -m pip list --format=freeze --disable-pip-version-check | grep -iE "$protected" | LC_ALL=C sort; }

built >"$work/before" || true
if ! grep -qi '^torch==' "$work/before"; then
    echo "error: $python has no torch: this installs into an image that has one; use an NGC PyTorch image" >&2
    exit 2
fi
PIP_CONSTRAINT=$work/before "$python" -m pip install --no-cache-dir --no-deps --disable-pip-version-check -r "$lock"
built >"$work/after"
if ! diff "$work/before" "$work/after" >&2; then
    echo "error: $lock has replaced a package that the image was built with (see above): remove it from the lock" >&2
    exit 1
fi
echo "unchanged: $(paste -sd ' ' "$work/after")"
