#!/usr/bin/env bash
# The whole pipeline as Slurm's jobs, one a stage, each begun when those that it reads from are done, all by
# slurm.sbatch: saved before the time limit, queued again, cancelled if an earlier one fails. launch/stages.sh lists the
# variables that it shares with pipeline.sh; of its own it has:
#   NODES    machines of the encoder's and the prior's training (1)     GPUS   of a machine (8; 0: CPUs)
#   CORES    of the machine that prepares data (32)                     SHARDS jobs that share the sampling (1)
#   CONFIG=base RUN=/shared/base ASSETS=/shared/assets NODES=4 SHARDS=16 DRY_RUN=1 bash launch/pipeline_slurm.sh
# What your cluster asks of every job goes into Slurm's own SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT, ...
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
. "$here/stages.sh"
: "${NODES:=1}" "${GPUS:=8}" "${CORES:=32}" "${SHARDS:=1}"
declare -A ids
begun=

# submit NAME "NAMES THAT IT NEEDS" OPTION ... -- WORD ...
submit() {
    local name=$1 need after= options=()
    for need in $2; do after+=${ids[$need]:+:${ids[$need]}}; done
    shift 2
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    if [ -n "$after" ]; then options+=(--dependency "afterok$after" --kill-on-invalid-dep yes); fi
    ids[$name]="JOB-OF-${name^^}"
    local id
    id=$(do_it sbatch --parsable --job-name "$name" "${options[@]}" "$here/slurm.sbatch" "$@")
    if [ -z "$DRY_RUN" ]; then ids[$name]=${id%%;*}; fi
}

trainer=(--nodes "$NODES" --ntasks-per-node "$((GPUS ? GPUS : 2))" --gpus-per-node "$GPUS")
one_gpu=(--nodes 1 --ntasks-per-node 1 --gpus-per-node "$((GPUS ? 1 : 0))")
all_gpus=(--nodes 1 --ntasks-per-node 1 --gpus-per-node "$GPUS" --cpus-per-task "$((8 * (GPUS ? GPUS : 1)))")
cores=(--nodes 1 --ntasks-per-node 1 --gpus-per-node 0)
for stage in "${STAGES[@]}"; do
    if [ "$stage" = "$FROM" ]; then begun=1; fi
    [ -n "$begun" ] || continue
    words_of "$stage"
    case $stage in
        data-prep) submit "$stage" "" "${cores[@]}" --cpus-per-task "$CORES" -- "${words[@]}" ;;
        train-clip) submit "$stage" data-prep "${one_gpu[@]}" -- "${words[@]}" ;;
        train-encoder) submit "$stage" data-prep "${trainer[@]}" -- "${words[@]}" ;;
        encode) submit "$stage" "train-clip train-encoder" "${all_gpus[@]}" -- "${words[@]}" ;;
        train-prior) submit "$stage" encode "${trainer[@]}" -- "${words[@]}" ;;
        sample)
            if [ "$SHARDS" = 1 ]; then
                submit "$stage" train-prior "${one_gpu[@]}" -- "${words[@]}"
            else
                words[4]=$RUN/shards
                submit shards train-prior "${one_gpu[@]}" --array "0-$((SHARDS - 1))" -- "${words[@]}"
                submit "$stage" shards "${cores[@]}" -- sampling merge "$RUN/shards" --out "$RUN/samples"
            fi ;;
        eval) submit "$stage" sample "${one_gpu[@]}" -- "${words[@]}" ;;
    esac
done
echo "the report will be $RUN/report.html, the objects in $RUN/samples; squeue --me shows the jobs" >&2
