#!/usr/bin/env bash
# Train the joint recipe with balanced weights (alpha 0.75, beta 0.25).
#   scripts/train_joint_balanced_weights.sh [--out DIR] [--set KEY=VALUE ...] [--resume CHECKPOINT]
# example: scripts/train_joint_balanced_weights.sh --out runs/balanced
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
answer_help "" "${1:-}"
prepare_env ""
exec python -m model.train "$root/model/recipes/joint_balanced_weights.yaml" "$@"
