# Of pipeline.sh and pipeline_slurm.sh: what the stages are, from raw assets to the report. Sourced.
#   CONFIG   presets of that name (small)          ASSETS   folder of 3D files; none: the preset's own
#   RUN      folder of everything (runs/CONFIG)    PROMPTS  file of prompts; none: captions of the training assets
#   FROM     the stage to begin with               NUM      objects a prompt (1)
#   DRY_RUN  anything: prints what would be done   VENV     environment (.venv)
# Run again, the same command goes on: what is finished says so.
: "${CONFIG:=small}" "${ASSETS:=}" "${PROMPTS:=}" "${NUM:=1}" "${FROM:=data-prep}" "${VENV:=.venv}" "${DRY_RUN:=}"
: "${RUN:=runs/$CONFIG}"
export VENV
STAGES=(data-prep train-clip train-encoder encode train-prior sample eval)
case " ${STAGES[*]} " in
    *" $FROM "*) ;;
    *) echo "error: FROM=$FROM is no stage; there are ${STAGES[*]}" >&2; exit 2 ;;
esac

# Sets `words` to what follows `python -m` for a stage.
words_of() {
    case $1 in
        data-prep)
            words=(data_prep --config "configs/data_prep/$CONFIG.yaml" --out "$RUN/data")
            # A value of YAML, in its single quotes.
            if [ -n "$ASSETS" ]; then words+=(--set "assets='${ASSETS//\'/\'\'}'"); fi ;;
        train-clip) words=(prior.train_clip --config "configs/clip/$CONFIG.yaml" --out "$RUN/clip" --set "data=$RUN/data") ;;
        train-encoder)
            words=(encoder.train --config "configs/encoder/$CONFIG.yaml" --out "$RUN/encoder" --set "data=$RUN/data") ;;
        encode)
            words=(encoder.encode --config "configs/encode/$CONFIG.yaml" --out "$RUN/latents"
                --set "data=$RUN/data" "encoder=$RUN/encoder" "clip=$RUN/clip") ;;
        train-prior)
            words=(prior.train --config "configs/prior/$CONFIG.yaml" --out "$RUN/prior" --set "latents=$RUN/latents") ;;
        sample)
            words=(sampling --config "configs/sampling/$CONFIG.yaml" --out "$RUN/samples"
                --set "prior=$RUN/prior" "encoder=$RUN/encoder" "clip=$RUN/clip" --num "$NUM" --seed 0)
            if [ -n "$PROMPTS" ]; then words+=(--prompts "$PROMPTS"); fi ;;
        eval)
            words=(eval --config "configs/eval/$CONFIG.yaml" --out "$RUN/eval"
                --set "run=$RUN" "setup_seconds_file=$VENV/.setup_seconds") ;;
    esac
}

# Prints a command as a shell would take it, and runs it unless DRY_RUN is set.
do_it() {
    printf '%q ' "$@" | sed 's/ $/\n/' >&2
    if [ -z "$DRY_RUN" ]; then "$@"; fi
}
