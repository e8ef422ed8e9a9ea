#!/usr/bin/env bash
# Train the joint recipe with equal weights (alpha 0.5, beta 0.5).
#   scripts/train_joint_equal_weights.sh [--out DIR] [--set KEY=VALUE ...] [--resume CHECKPOINT]
# example: scripts/train_joint_equal_weights.sh --out runs/long --set epochs=100
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
answer_help "" "${1:-}"
prepare_env ""
exec python -m model.train "$root/model/recipes/joint_equal_weights.yaml" "$@"
