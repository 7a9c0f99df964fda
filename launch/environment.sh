# shellcheck shell=bash
# Sourced by the other scripts in launch/: puts the environment of launch/setup on the PATH, and sets what ranks need to
# share one machine.

export PATH="$PWD/.venv${JAXDP_MPI:+-$JAXDP_MPI}${JAXDP_JAX:+-$JAXDP_JAX}/bin:$PATH"
# Open MPI: allow more ranks than cores on a machine, do not bind ranks to cores, and allow root to start ranks.
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none
if [[ $(id -u) == 0 ]]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
