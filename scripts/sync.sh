#!/usr/bin/env bash
# Upload the offline W&B runs of results folders; those that were uploaded before are left out.
#   scripts/sync.sh RESULTS...
#   scripts/sync.sh results/alpha_beta
# Needs `wandb login` once, or WANDB_API_KEY. Exit code: 0 all is uploaded, 1 a run failed (do it again), 2 bad input.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
answer_help sweep.sync "${1:-}"
prepare_env ""
exec python -m sweep.sync "$@"
