# shellcheck shell=bash
# Sourced by the scripts beside it: the environment of launch/setup on the PATH, and the settings that let ranks share
# one machine.

export PATH="$PWD/.venv${JAXDP_MPI:+-$JAXDP_MPI}/bin:$PATH"
# Open MPI: ranks of one machine may outnumber its cores and are not bound to one each, and root may start them.
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none
if [[ $(id -u) == 0 ]]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
