#!/usr/bin/env bash
# Starts a trainer on the machines of a hostfile (lines of "HOST slots=GPUS") by DeepSpeed's launcher, which
# reaches them by ssh without a password, with RUN on storage that they share and everything at the same paths:
#   HOSTFILE=hosts bash launch/deepspeed.sh encoder.train --config configs/encoder/base.yaml --out RUN/encoder ...
# By pdsh where it is installed, else by plain ssh; LAUNCHER=openmpi, mpich, ... names another of DeepSpeed's.
# Without ssh, the same on each with its own NODE_RANK:
#   HOSTFILE=hosts NODE_RANK=0 MASTER_ADDR=HOST bash launch/deepspeed.sh ...
# OMP_*, GLOO_* and NCCL_* go to the other machines, and what FORWARD names ("HF_HOME TMPDIR"). pdsh puts them on
# command lines, which anyone there can read: credentials belong into files there, such as ~/.aws/credentials.
set -euo pipefail
: "${HOSTFILE:?lines of HOST slots=GPUS}" "${MASTER_PORT:=29500}"
bin=$(cd "${VENV:-.venv}/bin" && pwd)
options=(--hostfile "$HOSTFILE" --master_port "$MASTER_PORT")
mapfile -t hosts < <(grep -oE '^[^#[:space:]]+' "$HOSTFILE")
# As lines NAME=VALUE, quoted for a shell.
forwarded() {
    local name
    for name in ${FORWARD:-} $(compgen -e | grep -E '^(OMP|GLOO|NCCL)_'); do
        if [ -n "${!name+set}" ]; then printf '%s=%q\n' "$name" "${!name}"; fi
    done
}
if [ -n "${NODE_RANK:-}" ]; then
    options+=(--no_ssh --node_rank "$NODE_RANK" --master_addr "${MASTER_ADDR:?the first host}")
elif [ ${#hosts[@]} -gt 1 ]; then
    if ! command -v ssh >/dev/null; then
        echo "error: DeepSpeed's launcher reaches the ${#hosts[@]} hosts of $HOSTFILE by ssh, which isn't installed" \
            "here. Install it, or run this script on every host with its own NODE_RANK=0, 1, ... and" \
            "MASTER_ADDR=${hosts[0]}, or use launch/torchrun.sh." >&2
        exit 2
    fi
    : "${LAUNCHER:=$(command -v pdsh >/dev/null && echo pdsh || echo ssh)}"
    if [ "$LAUNCHER" = ssh ]; then
        exec "$bin/python" "$(dirname "${BASH_SOURCE[0]}")/over_ssh.py" "$@"
    fi
    DS_ENV_FILE=$(mktemp)
    export DS_ENV_FILE
    { cat ~/.deepspeed_env .deepspeed_env 2>/dev/null || true; forwarded; } >"$DS_ENV_FILE"
    options+=(--launcher "$LAUNCHER" --force_multi)
fi
PATH=$bin:$PATH exec deepspeed "${options[@]}" --no_local_rank --module "$@"
