#!/usr/bin/env bash
# Raises the kernel's socket buffer limits so that two batches fit into each direction of a tcp
# connection: the rule of `embar-shm doctor`, explained in embar_shm/doctor/limits.py.
#
#   tools/tune_kernel_buffers.sh [--print] [--persist] [BATCH_BYTES]
#
# BATCH_BYTES (default 2097152, 2 MiB) is the batch size in bytes. Limits that are high enough stay
# as they are; none is ever lowered. Must be root, except with --print.
#   --print    prints the commands (with --persist: also the file) and changes nothing
#   --persist  also writes /etc/sysctl.d/90-embar-shm.conf, which sets the limits at every boot
set -euo pipefail

proc_sys=${PROC_SYS:-/proc/sys} # tests read the settings of another machine
conf=/etc/sysctl.d/90-embar-shm.conf
print=false persist=false batch=''

fail() { # $1: exit code, $2: message
    echo "tune_kernel_buffers.sh: $2" >&2
    exit "$1"
}

for argument in "$@"; do
    case $argument in
        --print) print=true ;;
        --persist) persist=true ;;
        -h | --help)
            sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
            exit 0
            ;;
        -*) fail 2 "unknown option '$argument'; there are --print, --persist and --help" ;;
        *)
            [[ -z $batch ]] || fail 2 "one batch size is enough: '$batch' or '$argument'?"
            batch=$argument
            ;;
    esac
done
batch=${batch:-2097152}
if [[ ! $batch =~ ^[1-9][0-9]{0,9}$ ]] || ((batch < 64 || batch > 2147483648)); then
    fail 2 "'$batch' is no batch size: write the bytes as a number from 64 to 2147483648"
fi
$print || ((EUID == 0)) || fail 1 "only root may change kernel settings: use sudo, or --print"

at_most() { # the smaller of two numbers
    echo $(($1 < $2 ? $1 : $2))
}

# The kernel doubles what a program asks for, up to these: 2 batches asked, 2 batches of payload.
core=$(at_most $((2 * batch)) 1073741823) # setsockopt() cuts at INT_MAX / 2
# Buffers that grow by themselves are not doubled: 4 batches for the same payload.
tcp=$(at_most $((4 * batch)) 2147483647)

commands=() lines=()

setting() { # $1: name, $2: the value its last number must have
    local file=$proc_sys/${1//.//} numbers most
    [[ -r $file ]] || fail 1 "$1 does not exist here: in a container, run this on the host"
    read -r -a numbers < <(cat "$file" && echo)
    most=${numbers[-1]:-}
    [[ $most =~ ^[0-9]{1,18}$ ]] || fail 1 "$file holds '${numbers[*]}', which is no limit"
    if ((most < $2)); then
        numbers[-1]=$2
        commands+=("$1=${numbers[*]}")
    fi
    lines+=("$1 = ${numbers[*]}")
}
setting net.core.rmem_max "$core"
setting net.core.wmem_max "$core"
setting net.ipv4.tcp_rmem "$tcp"
setting net.ipv4.tcp_wmem "$tcp"

((${#commands[@]})) || echo "the limits are high enough for batches of $batch bytes" >&2
for command in "${commands[@]}"; do
    if $print; then
        value=${command#*=}
        [[ $value != *' '* ]] || value="'$value'"
        echo "sysctl -w ${command%%=*}=$value"
    else
        sysctl -w "$command"
    fi
done

if $persist; then
    content=$(
        echo "# Socket buffers for embar-shm batches of $batch bytes."
        printf '%s\n' "${lines[@]}"
    )
    if $print; then
        printf '\n# %s\n%s\n' "$conf" "$content"
    else
        printf '%s\n' "$content" >"$conf"
        echo "wrote $conf"
    fi
fi
