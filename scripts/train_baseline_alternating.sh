#!/usr/bin/env bash
# Train the alternating baseline: updates are static or dynamic, in turn.
#   scripts/train_baseline_alternating.sh [--out DIR] [--set KEY=VALUE ...] [--resume CHECKPOINT]
# example: scripts/train_baseline_alternating.sh --out runs/alternating
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
answer_help "" "${1:-}"
prepare_env ""
exec python -m model.train "$root/model/recipes/baseline_alternating.yaml" "$@"
