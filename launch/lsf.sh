#!/usr/bin/env bash
# Trains on a cluster with LSF. NOT RUN BY THIS PROJECT, which has no LSF: adapt it to your cluster.
#
#   bsub < launch/lsf.sh     (pass the arguments of jaxdp.train in the environment: export ARGUMENTS="--config=...")
#
# With -wa and -wt LSF sends SIGUSR1 two minutes before the time limit; LSF requeues a job that exits with a code in -Q.

#BSUB -J jaxdp
#BSUB -n 8
#BSUB -R "span[ptile=4]"
#BSUB -gpu "num=4:mode=shared"
#BSUB -W 24:00
#BSUB -wa USR1 -wt 2
#BSUB -r
#BSUB -Q "75"
#BSUB -o jaxdp-%J.log
set -euo pipefail
cd "$LS_SUBCWD"
. launch/environment.sh

# Each host followed by its number of ranks, e.g. "node07 4 node08 4".
read -ra pairs <<<"$LSB_MCPU_HOSTS"
hosts=
ranks=0
for ((i = 0; i < ${#pairs[@]}; i += 2)); do
  hosts+="${pairs[i]}:${pairs[i + 1]},"
  ranks=$((ranks + pairs[i + 1]))
done
read -ra arguments <<<"${ARGUMENTS:-}"
exec mpirun -n "$ranks" -hosts "${hosts%,}" python -m jaxdp.train "${arguments[@]}"
