#!/usr/bin/env bash
# Trains on a cluster with PBS (OpenPBS, PBS Pro). NOT RUN BY THIS PROJECT, which has no PBS: a start to adapt.
#
#   qsub -v ARGUMENTS="--config=configs/resnet50_imagenet.py --workdir=runs/resnet50" launch/pbs.sh
#
# PBS sends SIGTERM when a job is deleted or preempted, and kill_delay seconds later SIGKILL: ask for as many as a save takes.

#PBS -N jaxdp
#PBS -l select=2:ncpus=32:mpiprocs=4:ngpus=4
#PBS -l walltime=24:00:00
#PBS -r y
#PBS -j oe
set -euo pipefail
cd "$PBS_O_WORKDIR"
. launch/environment.sh

# A host a line, as many lines as ranks: mpirun finds it by itself where it was built with PBS, and needs it where not.
ranks=$(wc -l <"$PBS_NODEFILE")
read -ra arguments <<<"${ARGUMENTS:-}"
code=0
mpirun -n "$ranks" -f "$PBS_NODEFILE" python -m jaxdp.train "${arguments[@]}" || code=$?
# Asked to make room, and saved: back into the queue.
if [[ $code == 75 ]]; then qrerun "$PBS_JOBID"; fi
exit "$code"
