#!/usr/bin/env bash
# Install the programs that pip cannot install, for the demo or for the tests.
#
#   tools/system_packages.sh demo      bubblewrap (sandbox of graded programs), a C++ compiler and Python's headers
#                                      (vLLM compiles its model on a CPU), libnuma (vLLM's own library needs it)
#   tools/system_packages.sh test      also chromium (tests open the report in a browser)
#   tools/system_packages.sh cluster   SLURM and mmdebstrap, for the tests of the job scripts and of the image's libraries,
#                                      which are skipped without them
#
# Uses apt-get as root or through "sudo -n". Otherwise it prints one line with what to install, and exits with status 1.
set -euo pipefail
cd "$(dirname "$0")/.."

purpose=${1:?usage: tools/system_packages.sh demo|test|cluster}
declare -A package_of=([bwrap]=bubblewrap [g++]=g++ [chromium]=chromium [slurmctld]=slurm-wlm [munged]=munge
    [mmdebstrap]=mmdebstrap)
case $purpose in
    demo) programs=(bwrap g++) ;;
    test) programs=(bwrap g++ chromium) ;;
    cluster) programs=(slurmctld munged mmdebstrap) ;;
    *)
        echo "error: tools/system_packages.sh $purpose: the purpose must be demo, test or cluster" >&2
        exit 2
        ;;
esac

missing=()
for program in "${programs[@]}"; do
    command -v "$program" >/dev/null || missing+=("${package_of[$program]}")
done
has_headers='import os, sysconfig, sys; sys.exit(not os.path.isfile(sysconfig.get_path("include") + "/Python.h"))'
if [ -x .venv/bin/python ] && ! .venv/bin/python -c "$has_headers"; then
    missing+=(python3.11-dev)
fi
has_numa=
for library in /usr/lib/*/libnuma.so.1 /usr/lib64/libnuma.so.1 /usr/lib/libnuma.so.1; do
    if [ -e "$library" ]; then has_numa=yes; fi
done
[ -n "$has_numa" ] || missing+=(libnuma1)
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n)
fi
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
    echo "installing ${missing[*]} with apt-get"
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install --yes --no-install-recommends "${missing[@]}"
else
    echo "error: not installed: ${missing[*]}; needed for $purpose; install them with the system's package manager" \
        "(this account has no apt-get as root)" >&2
    exit 1
fi
