#!/usr/bin/env bash
# Train the joint recipe with equal weights (alpha 0.5, beta 0.5).
#   scripts/train_joint_equal_weights.sh [--out DIR] [--set KEY=VALUE ...] [--resume CHECKPOINT]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
prepare_env ""
exec python -m model.train "$root/model/recipes/joint_equal_weights.yaml" "$@"
