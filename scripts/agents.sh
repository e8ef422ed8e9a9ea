#!/usr/bin/env bash
# Install what is needed, then run W&B agents of a sweep on this machine and keep an eye on them:
#   scripts/agents.sh ENTITY/PROJECT/SWEEP -n 4
#   scripts/agents.sh ENTITY/PROJECT/SWEEP --count 10 --spec sweeps/alpha_beta.yaml
# -n absent: as many as fit the spec's resources. Ctrl-C or SIGTERM: trials leave checkpoints, W&B hands them out again.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
answer_help sweep.agents "${1:-}"
prepare_env ""
exec python -m sweep.agents "$@"
