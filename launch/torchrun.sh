#!/usr/bin/env bash
# Starts a trainer on every GPU of this machine, or on CPUs in CPU_NPROC processes (2); NPROC decides otherwise:
#   bash launch/torchrun.sh encoder.train --config configs/encoder/base.yaml --out RUN/encoder --set data=RUN/data
# Two processes of half of the cores' threads each, which meet once a step, are faster on CPUs than one whose
# threads meet in every operation, and far faster when anything else runs.
# On several machines, with RUN on storage that they share, the same on each (docs/clusters.md):
#   NNODES=4 MASTER_ADDR=FIRST_HOST bash launch/torchrun.sh ...
# NNODES=2:4 begins with two and goes on with what is left, or comes. After a lost process or machine the others
# start again from the newest checkpoint, MAX_RESTARTS times (3; 0 on one machine).
set -euo pipefail
# Kubeflow's operators say such things of each pod, which are said anew below.
unset RANK WORLD_SIZE LOCAL_RANK "${!PET_@}"
python=${VENV:-.venv}/bin/python
# Says at once if another command writes there or nothing is left to do, before anything heavy starts.
status=0
SHAPELOOM_LOOKS_ONLY=1 "$python" -m "$@" || status=$?
[ "$status" = 3 ] || exit "$status"
: "${NNODES:=1}" "${MASTER_PORT:=29400}" "${CPU_NPROC:=2}"
: "${NPROC:=$("$python" -c "import torch; from shapeloom.cores import usable; print(torch.cuda.device_count() or min($CPU_NPROC, usable()))")}"
if [ "$NNODES" = 1 ]; then
    [ "$NPROC" = 1 ] && [ "${MAX_RESTARTS:-0}" = 0 ] && exec "$python" -m "$@"
    where=(--standalone --max-restarts "${MAX_RESTARTS:-0}")
else
    : "${MASTER_ADDR:?the first host, by a name or address that the others can reach}"
    echo "$(hostname): meeting the other machines ($NNODES) at $MASTER_ADDR:$MASTER_PORT" >&2
    where=(--nnodes "$NNODES" --max-restarts "${MAX_RESTARTS:-3}" --rdzv-backend c10d --rdzv-id "shapeloom-$MASTER_PORT"
        --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" --rdzv-conf "last_call_timeout=${LAST_CALL:-10}")
    if [ -n "${LOCAL_ADDR:-}" ]; then where+=(--local-addr "$LOCAL_ADDR"); fi
fi
exec "$python" -m shapeloom.torchrun "${where[@]}" --nproc-per-node "$NPROC" -m "$@"
