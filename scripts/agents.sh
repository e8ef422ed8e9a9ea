#!/usr/bin/env bash
# Install what is needed, then run several W&B agents of a sweep on this machine:
#   scripts/agents.sh ENTITY/PROJECT/SWEEP -n 4
#   scripts/agents.sh ENTITY/PROJECT/SWEEP --count 10 --spec sweeps/alpha_beta.yaml
# -n absent: as many as fit the spec's resources. Ctrl-C or SIGTERM: trials leave checkpoints, W&B hands them out again.
# Nothing is started again here: scripts/cluster/tactile-agents@.service (systemd) and agents.sbatch (Slurm) do that.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
answer_help sweep.agents "${1:-}"
prepare_env ""
exec python -m sweep.agents "$@"
