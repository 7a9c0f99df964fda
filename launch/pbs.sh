#!/usr/bin/env bash
# Trains on a cluster with PBS (OpenPBS, PBS Pro). NOT RUN BY THIS PROJECT, which has no PBS: adapt it to your cluster.
#
#   qsub -v ARGUMENTS="--config=configs/resnet50_imagenet.py --workdir=runs/resnet50" launch/pbs.sh
#
# PBS sends SIGTERM when a job is deleted or preempted, and SIGKILL kill_delay seconds later. Choose a
# kill_delay that is long enough for a save.

#PBS -N jaxdp
#PBS -l select=2:ncpus=32:mpiprocs=4:ngpus=4
#PBS -l walltime=24:00:00
#PBS -r y
#PBS -j oe
set -euo pipefail
cd "$PBS_O_WORKDIR"
. launch/environment.sh

# The file has one line per rank, with its host. An mpirun built with PBS finds it by itself; others need -f.
ranks=$(wc -l <"$PBS_NODEFILE")
read -ra arguments <<<"${ARGUMENTS:-}"
code=0
mpirun -n "$ranks" -f "$PBS_NODEFILE" python -m jaxdp.train "${arguments[@]}" || code=$?
# Preempted and saved: requeue the job.
if [[ $code == 75 ]]; then qrerun "$PBS_JOBID"; fi
exit "$code"
