"""Exit codes of jaxdp's commands and jobs: the one place that defines and describes them."""

SUCCESS = 0

INTERNAL_ERROR = 1
"""Something failed that the command line does not explain: a rank, a host, a disk, or jaxdp itself."""

USER_ERROR = 2
"""A usage error: a wrong command line, config, data set or machine, reported with a remedy."""

REQUEUE = 75
"""A signal stopped the job, and the next start resumes the run. EX_TEMPFAIL of sysexits.h: try again later."""

SUMMARY = (
    f"exit codes: {SUCCESS} success, {INTERNAL_ERROR} internal failure, {USER_ERROR} usage error, "
    f"{REQUEUE} stopped by a signal and resumable"
)
"""All exit codes in one line, for --help."""
