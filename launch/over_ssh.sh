# Read by deepspeed.sh: the same command on every host by plain ssh. Ends with the first host that fails, and
# ends the others.

# What the host of rank $1 is to do, for its shell's input; that closes when this script ends, or its ssh.
remote() {
    local rank=$1
    shift
    echo 'main() {'
    forwarded | sed 's/^/export /'
    printf 'export HOSTFILE=%q VENV=%q MASTER_PORT=%q MASTER_ADDR=%q NODE_RANK=%q\n' "$(realpath "$HOSTFILE")" \
        "$(dirname "$bin")" "$MASTER_PORT" "${MASTER_ADDR:-${hosts[0]}}" "$rank"
    printf 'exec 3<&0\ncd %q || exit 2\nbash %q' "$PWD" "$(realpath launch/deepspeed.sh)"
    printf ' %q' "$@"
    printf ' </dev/null 3<&- & child=$!\n'
    # Trainers save and end at SIGTERM.
    echo '{ cat <&3 >/dev/null; kill -TERM $child 2>/dev/null; } & watch=$!'
    echo 'code=0; wait $child || code=$?; kill $watch 2>/dev/null; exit $code; }; main'
}

over_ssh() {
    local children=() rank code=0 one
    for rank in "${!hosts[@]}"; do
        ssh -o BatchMode=yes "${hosts[$rank]}" bash -s < <(remote "$rank" "$@"; exec tail --pid=$$ -f /dev/null) &
        children+=($!)
    done
    trap 'kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT
    for rank in "${!hosts[@]}"; do
        one=0
        wait -n "${children[@]}" || one=$?
        if [ $one != 0 ] && [ $code = 0 ]; then
            code=$one
            kill -TERM "${children[@]}" 2>/dev/null || true
        fi
    done
    exit $code
}
