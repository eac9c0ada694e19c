#!/usr/bin/env bash
# Starts a trainer on every GPU of this machine, or on CPUs in CPU_NPROC processes (2); NPROC decides otherwise:
#   bash launch/torchrun.sh encoder.train --config configs/encoder/base.yaml --out RUN/encoder --set data=RUN/data
# Two processes of half of the cores' threads each, which meet once a step, are faster on CPUs than one whose
# threads meet in every operation, and far faster when anything else runs.
# On several machines, with RUN on storage that they share, the same on each with its own NODE_RANK:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST bash launch/torchrun.sh ...
set -euo pipefail
python=${VENV:-.venv}/bin/python
# Says at once if another command writes there or nothing is left to do, before anything heavy starts.
status=0
SHAPELOOM_LOOKS_ONLY=1 "$python" -m "$@" || status=$?
[ "$status" = 3 ] || exit "$status"
: "${NNODES:=1}" "${NODE_RANK:=0}" "${MASTER_ADDR:=127.0.0.1}" "${MASTER_PORT:=29400}"
: "${CPU_NPROC:=2}"
: "${NPROC:=$("$python" -c "import os, torch; print(torch.cuda.device_count() or min($CPU_NPROC, os.cpu_count()))")}"
if [ "$NNODES" = 1 ] && [ "$NPROC" = 1 ]; then
    exec "$python" -m "$@"
fi
if [ "$NNODES" = 1 ]; then
    where=(--standalone)
else
    where=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
fi
exec "$python" -m torch.distributed.run "${where[@]}" --nproc_per_node "$NPROC" -m "$@"
