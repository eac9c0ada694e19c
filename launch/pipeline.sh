#!/usr/bin/env bash
# The whole pipeline, one stage after another, from raw assets to the report: trainers on all GPUs of this machine
# (or of NNODES, launch/torchrun.sh), the other stages in this machine's processes or, where RAY_ADDRESS is set, on
# that cluster. Slurm's twin is pipeline_slurm.sh; launch/stages.sh lists the variables.
#   CONFIG=base RUN=runs/base ASSETS=/data/assets DRY_RUN=1 bash launch/pipeline.sh
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
. "$here/stages.sh"
begun=
for stage in "${STAGES[@]}"; do
    if [ "$stage" = "$FROM" ]; then begun=1; fi
    [ -n "$begun" ] || continue
    echo "--- $stage" >&2
    words_of "$stage"
    case $stage in
        train-encoder) do_it bash "$here/torchrun.sh" "${words[@]}" ;;
        train-prior) do_it env CPU_NPROC=1 bash "$here/torchrun.sh" "${words[@]}" ;; # it has many gradients to share
        train-clip) do_it "$VENV/bin/python" -m "${words[@]}" ;;
        *) do_it "$VENV/bin/python" -m "${words[@]}" ${RAY_ADDRESS:+--executor ray} ;;
    esac
done
echo "--- the report is $RUN/report.html, the objects are in $RUN/samples" >&2
