#!/usr/bin/env bash
# Train the joint recipe for 5 epochs and say whether it is sound (section 7 of the metric text).
#   scripts/train_joint_test.sh [--out DIR] [--set KEY=VALUE ...] [--resume CHECKPOINT]
# Exit code: 0 sound, 1 a warning or critical finding (printed with its remedy), 2 bad input or diverged.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
prepare_env ""
out="runs/joint_test"
for ((i = 1; i <= $#; i++)); do
  case "${!i}" in
    --out) next=$((i + 1)); out="${!next:-$out}" ;;
    --out=*) out="${!i#--out=}" ;;
  esac
done
python -m model.train "$root/model/recipes/joint_test.yaml" "$@"
exec python -m sweep.diagnose "$out"
