#!/usr/bin/env bash
# Starts a trainer on the machines of a hostfile (lines of "HOST slots=GPUS") by DeepSpeed's launcher, which
# reaches them by ssh, with RUN on storage that they share:
#   HOSTFILE=hosts bash launch/deepspeed.sh encoder.train --config configs/encoder/base.yaml --out RUN/encoder ...
# Without ssh, the same on each with its own NODE_RANK:
#   HOSTFILE=hosts NODE_RANK=0 MASTER_ADDR=HOST bash launch/deepspeed.sh ...
set -euo pipefail
: "${HOSTFILE:?lines of HOST slots=GPUS}" "${MASTER_PORT:=29500}"
bin=$(cd "${VENV:-.venv}/bin" && pwd)
options=(--hostfile "$HOSTFILE" --master_port "$MASTER_PORT")
if [ -n "${NODE_RANK:-}" ]; then
    options+=(--no_ssh --node_rank "$NODE_RANK" --master_addr "${MASTER_ADDR:?the first host}")
fi
PATH=$bin:$PATH exec deepspeed "${options[@]}" --no_local_rank --module "$@"
