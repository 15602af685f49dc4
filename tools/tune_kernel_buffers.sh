#!/usr/bin/env bash
# Raises the kernel's socket buffer limits to what the tcp transport can use: the rule of
# `embar-shm doctor`, explained in embar_shm/doctor/limits.py.
#
#   tools/tune_kernel_buffers.sh [--print] [--persist] [BATCH_BYTES]
#
#   net.core.rmem_max, net.core.wmem_max   512 KiB, which it requests over loopback
#   net.ipv4.tcp_rmem, net.ipv4.tcp_wmem   the third number, up to which buffers grow between
#                                          machines: twice a batch, or twice 10 Gbit/s x 1 ms
#                                          (1.25 MB) if that is more; half of it is payload
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

core=$((512 * 1024)) # LOOPBACK_BYTES; the kernel doubles a request, so this is payload
payload=$((batch > 1250000 ? batch : 1250000))
tcp=$((2 * payload < 2147483647 ? 2 * payload : 2147483647)) # the kernel takes no more

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
        echo "# Socket buffers for the tcp transport of embar-shm, batches of $batch bytes."
        printf '%s\n' "${lines[@]}"
    )
    if $print; then
        printf '\n# %s\n%s\n' "$conf" "$content"
    else
        printf '%s\n' "$content" >"$conf"
        echo "wrote $conf"
    fi
fi
