# shellcheck shell=bash
# Sourced by the job scripts, in the root of the checkout.
#
# Environment: PYTHON  interpreter with the package installed (default: python3 with IMAGE, else .venv/bin/python)
#              IMAGE   container for srun --container-image (pyxis), built from the Dockerfile
#              MOUNTS  its mounts, SRC:DST[,SRC:DST...]; the checkout is always mounted
#              SETUP   lines of shell to run first, such as "module load cuda"

if [ -n "${SETUP:-}" ]; then
    set +u # the shell functions of modules use variables that are not set
    eval "$SETUP"
    set -u
fi

python=${PYTHON:-.venv/bin/python}
container=()
if [ -n "${IMAGE:-}" ]; then
    python=${PYTHON:-python3}
    container=(--container-image="$IMAGE" --container-mounts="$PWD:$PWD${MOUNTS:+,$MOUNTS}" --container-workdir="$PWD")
elif ! command -v "$python" >/dev/null; then
    echo "error: there is no $python in $PWD; make the environment there, or set PYTHON to an interpreter" >&2
    exit 2
fi
# Use the checkout's package, even if the image contains an older one.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# run_step JOB ARGUMENTS: run a step of the job with srun's options, and Python's arguments after "--". Then end with its
# status. If that is 75 (EX_TEMPFAIL), a signal stopped it with its work saved, and JOB is requeued.
run_step() {
    local job=$1 options=() status=0
    shift
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    # A step does not get all cores of its job by itself.
    srun "${options[@]}" ${SLURM_CPUS_ON_NODE:+--cpus-per-task="$SLURM_CPUS_ON_NODE"} \
        "${container[@]}" "$python" "$@" || status=$?
    if [ "$status" -eq 75 ]; then
        echo "requeueing job $job" >&2
        scontrol requeue "$job"
    fi
    exit "$status"
}
