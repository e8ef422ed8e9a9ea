#!/usr/bin/env bash
# Install what is needed, then run a sweep: scripts/sweep.sh [SPEC] [options of python -m sweep.run]
#   scripts/sweep.sh
#   scripts/sweep.sh sweeps/real_frames.yaml --set trainer.data.root=/path/to/frames
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
answer_help sweep.run "${1:-}"
prepare_env ""
case "${1:-}" in
  "" | -*) set -- "$root/sweeps/alpha_beta.yaml" "$@" ;;
esac
exec python -m sweep.run "$@"
