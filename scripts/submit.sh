#!/usr/bin/env bash
# Install what is needed, then send a sweep to a Ray cluster as a job, and follow it:
#   scripts/submit.sh SPEC --address http://HEAD:8265 --results /shared/results/NAME [options of python -m sweep.run]
#   RAY_ADDRESS=http://HEAD:8265 scripts/submit.sh sweeps/alpha_beta.yaml --results s3://bucket/first
# The nodes need no checkout. Ctrl-C ends the following, not the sweep. Exit code: that of the sweep.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
answer_help sweep.submit "${1:-}"
prepare_env "[cluster]"
exec python -m sweep.submit "$@"
