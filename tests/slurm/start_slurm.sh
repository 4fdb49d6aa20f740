#!/usr/bin/env bash
# A Slurm of one node on the loopback interface, in a folder of its own, for tests.
#
#   start_slurm.sh start FOLDER     writes FOLDER/slurm.conf, starts munged, slurmctld and slurmd, waits until the node is idle
#   start_slurm.sh stop FOLDER      stops these three (by their recorded process ids)
#
# Needs Debian's slurm-wlm and munge, and root (slurmd and munged refuse other set-ups). Afterwards, for any client:
#   export SLURM_CONF=FOLDER/slurm.conf
# Nothing outside FOLDER is written. Without cgroups: proctrack/linuxproc, task/none.
set -euo pipefail

action=${1:?start or stop}
folder=$(realpath -m "${2:?a folder}")
PATH=$PATH:/usr/sbin:/sbin

die() {
    echo "start_slurm.sh: $*" >&2
    exit 1
}

stop() {
    for daemon in slurmd slurmctld munged; do
        local file=$folder/$daemon.pid
        [[ -s $file ]] || continue
        kill "$(cat "$file")" 2>/dev/null || true
        for _ in $(seq 100); do
            kill -0 "$(cat "$file" 2>/dev/null)" 2>/dev/null || break
            sleep 0.1
        done
        rm -f "$file"
    done
}

start() {
    for program in munged slurmctld slurmd srun sbatch scontrol; do
        command -v "$program" >/dev/null || die "$program is not installed: apt-get install slurm-wlm munge"
    done
    [[ $(id -u) == 0 ]] || die "needs root"
    mkdir -p "$folder"/{state,spool,munge}
    # munged insists on a path that nobody else can write to
    chmod 700 "$folder/munge"
    dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
    chmod 600 "$folder/munge/key"
    local node cpus base
    node=$(hostname -s)
    cpus=$(nproc)
    base=$((20000 + RANDOM % 20000))
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a requeued job waits until its credentials have expired
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=$base
SlurmdPort=$((base + 1))
SrunPortRange=$((base + 10))-$((base + 200))
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2
SchedulerTimeSlice=5
MinJobAge=3600
SlurmdParameters=config_overrides
KillWait=5
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=30
NodeName=$node NodeAddr=127.0.0.1 CPUs=$((cpus > 2 ? cpus : 2)) State=UNKNOWN
PartitionName=test Nodes=$node Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
CONF
    export SLURM_CONF=$folder/slurm.conf
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" --num-threads=1
    slurmctld -c
    slurmd -N "$node"
    for _ in $(seq 100); do
        if [[ $(sinfo --noheader --format=%T 2>/dev/null) == idle ]]; then
            echo "ready: export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.2
    done
    tail -n 20 "$folder"/*.log >&2
    die "the node is not idle after 20 s"
}

case $action in
start) start ;;
stop) stop ;;
*) die "unknown action $action" ;;
esac
