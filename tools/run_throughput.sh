#!/usr/bin/env bash
# Runs a workload from the environment variables of the original system's script.
#
#   ORDER=0 ACK=1 TEST_TYPE=5 TOTAL_MESSAGE_SIZE=10737418240 MESSAGE_SIZE=1024 NUM_BROKERS=4 \
#       tools/run_throughput.sh [options of embar-shm run]
#
# Each variable is optional. TEST_TYPE is 0 publish, then subscribe; 1 end to end; 2 latency; 3 many
# publishers and subscribers; 4 a broker fails; 5 publish only; 6 subscribe only; 7 publish, then
# hand over one by one. The transport is shm; --transport tcp chooses the other.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

scenarios=(publish-then-subscribe end-to-end latency parallel broker-failure publish subscribe
    publish-then-consume)
test_type=${TEST_TYPE:-5}
if [[ ! $test_type =~ ^[0-7]$ ]]; then
    echo "run_throughput.sh: TEST_TYPE=$test_type does not exist: 0 to 7 do" >&2
    exit 2
fi

command=${EMBAR_SHM:-}
if [[ -z $command ]]; then
    command=$here/.venv/bin/embar-shm
    [[ -x $command ]] || command=embar-shm
fi
unset EMBAR_SHM

flags=(--scenario "${scenarios[$test_type]}")
[[ -z ${ORDER:-} ]] || flags+=(--order "$ORDER")
[[ -z ${ACK:-} ]] || flags+=(--ack "$ACK")
[[ -z ${NUM_BROKERS:-} ]] || flags+=(--brokers "$NUM_BROKERS")
[[ -z ${MESSAGE_SIZE:-} ]] || flags+=(--message-size "$MESSAGE_SIZE")
[[ -z ${TOTAL_MESSAGE_SIZE:-} ]] || flags+=(--total-message-size "$TOTAL_MESSAGE_SIZE")

exec "$command" run --transport shm "${flags[@]}" "$@"
