#!/bin/bash
# Ray on Slurm: a head on the first node, a worker on each of the others, the job of a YAML on them.
#   sbatch cluster/slurm.sh cluster/pretrain.yaml shards=/shared/shards out=/shared/runs/mine train.num_steps=50000
# Submit it from the project root, which all nodes must see under the same path, with its .venv made by `make install`.
# The job goes back into the queue when it is preempted, runs out of time, or stops with exit code 3, and continues there.
#
# Change the lines below, or give them to sbatch:   sbatch --nodes=8 --gpus-per-node=8 --time=2-00:00 cluster/slurm.sh ...
# HEAD_IP       address of the head, where the nodes have several networks
# MAX_REQUEUES  times that exit code 3 sends the job back into the queue; preemptions are not counted
#SBATCH --job-name=polymer-foundation
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

readonly LIMIT_SEC=300 # for the head to start, and for the workers to join
say() { printf '%s slurm.sh: %s\n' "$(date +%T)" "$*" >&2; }

if [ $# -lt 1 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    say "error: submit it: sbatch cluster/slurm.sh cluster/pretrain.yaml [key=value ...]"
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:?}"
if [ ! -r .venv/bin/activate ] && ! command -v ray >/dev/null; then
    say "error: no .venv in $PWD; run \`make install\` there, and sbatch from there"
    exit 2
fi
# shellcheck source=/dev/null
if [ -r .venv/bin/activate ]; then . .venv/bin/activate; fi

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_ip=${HEAD_IP:-$(getent ahostsv4 "$head" | awk '$1 !~ /^127\./ {print $1; exit}')}
if [ -z "$head_ip" ]; then
    say "error: $head has no address that other nodes can reach; set HEAD_IP"
    exit 2
fi
port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])') # this is the first node
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
export RAY_ADDRESS="$head_ip:$port"

# One step per node, so that a node that is lost takes nothing else with it. Each gets all of its node: --overlap shares it with the job.
steps=() driver="" asked_to_stop=""
node() { # node NAME OPTION...
    local name=$1
    shift
    srun --nodes=1 --ntasks=1 --nodelist="$name" --overlap \
        ray start --block --disable-usage-stats --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --dashboard-agent-listen-port=0 "$@" &
    steps+=($!)
}
# shellcheck disable=SC2317,SC2329 # called by a trap
leave() {
    trap - EXIT
    [ ${#steps[@]} -eq 0 ] || kill "${steps[@]}" 2>/dev/null || true
    wait
}
# shellcheck disable=SC2317,SC2329
stop() {
    say "asked to stop ($1)"
    asked_to_stop=yes
    if [ -n "$driver" ]; then kill -TERM "$driver" 2>/dev/null || true; fi
}
trap leave EXIT
trap 'stop USR1' USR1
trap 'stop TERM' TERM

alive() { python -c 'import ray; ray.init(logging_level="error"); print(sum(node["Alive"] for node in ray.nodes()))' 2>/dev/null || echo 0; }
wait_for() { # wait_for COUNT: until so many nodes are alive, or no longer than the limit
    local end=$((SECONDS + LIMIT_SEC))
    until [ -n "$asked_to_stop" ] || [ "$(alive)" -ge "$1" ]; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 1
    done
}

say "head $head at $RAY_ADDRESS, ${#nodes[@]} nodes"
node "$head" --head --node-ip-address="$head_ip" --port="$port" --include-dashboard=false
wait_for 1 || { say "error: the head did not start on $head"; exit 1; }
for name in "${nodes[@]:1}"; do node "$name" --address="$RAY_ADDRESS"; done
wait_for ${#nodes[@]} || say "$(alive) of ${#nodes[@]} nodes joined within $LIMIT_SEC s; going on with these"

code=3
if [ -z "$asked_to_stop" ]; then
    python -m cluster.launch "$@" &
    driver=$!
    code=0
    wait "$driver" || code=$?
    while kill -0 "$driver" 2>/dev/null; do # a signal ends `wait` before the job has ended
        code=0
        wait "$driver" || code=$?
    done
fi
say "the job ended with exit code $code"

again=""
if [ -n "$asked_to_stop" ]; then # killed by the signal, or stopped by it after a checkpoint
    if [ "$code" -eq 3 ] || [ "$code" -ge 128 ]; then again=yes; fi
elif [ "$code" -eq 3 ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_REQUEUES:-10}" ]; then again=yes; fi
fi
if [ -n "$again" ]; then
    say "back into the queue; it continues from its last checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
    exit 3
fi
exit "$code"
