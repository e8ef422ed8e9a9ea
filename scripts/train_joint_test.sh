#!/usr/bin/env bash
# Train the joint recipe for 5 epochs and judge it (section 7 of the metric text): does all fall, is it in balance?
#   scripts/train_joint_test.sh [--out DIR] [--set KEY=VALUE ...] [--resume CHECKPOINT]
# example: scripts/train_joint_test.sh --out runs/first --set data.source=frames --set data.root=/path/to/frames
# Exit code: 0 passed, 1 not passed (why, and what next, is printed), 2 bad input or diverged.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
answer_help "" "${1:-}"
prepare_env ""
out="runs/joint_test" given="" checkpoint=""
for ((i = 1; i <= $#; i++)); do
  next=$((i + 1))
  case "${!i}" in
    --out) given="${!next:-}" ;;
    --out=*) given="${!i#--out=}" ;;
    --resume) checkpoint="${!next:-}" ;;
    --resume=*) checkpoint="${!i#--resume=}" ;;
  esac
done
if [ -n "$checkpoint" ]; then out="$(dirname "$(dirname "$checkpoint")")"; fi # as model.train chooses it
out="${given:-$out}"
before="$(stat -c %Y.%s "$out/batch.csv" 2>/dev/null || true)"
code=0
python -m model.train "$root/model/recipes/joint_test.yaml" "$@" || code=$?
after="$(stat -c %Y.%s "$out/batch.csv" 2>/dev/null || true)"
# a run that diverged has rows to judge; after bad input the folder holds nothing, or an older run
if [ "$code" -ne 0 ] && { [ "$code" -ne 2 ] || [ "$before" = "$after" ]; }; then exit "$code"; fi
verdict=0
python -m sweep.diagnose "$out" --verdict || verdict=$?
if [ "$code" -ne 0 ]; then exit "$code"; fi
exit "$verdict"
