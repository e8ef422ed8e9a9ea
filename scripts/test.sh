#!/usr/bin/env bash
# Install what is needed, then check the code and run the tests.
#   scripts/test.sh                 ruff, mypy and all tests, two at a time: what CI runs
#   scripts/test.sh --fast          without the tests that start other processes (Ray, agents, browsers, commands)
#   scripts/test.sh --random [SEED] the property tests, with examples that nobody has seen before
#   scripts/test.sh tests/test_spec.py -k grid      these tests only, with pytest's options
# example: scripts/test.sh tests/test_spec.py
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
answer_help "" "${1:-}"
prepare_env "[dev]"
cd "$root"
# W&B's own schema of sweep files, for a test. Without what it asks for: numpy < 2, unlike everything else here.
python -c 'import importlib.metadata as m; m.version("sweeps")' 2>/dev/null ||
  python -m pip install --quiet --disable-pip-version-check --no-deps "sweeps>=0.3"
# tests that share a costly fixture stay together; the order is that of tests/conftest.py, the longest first
two_at_a_time=(-n 2 --dist loadgroup --no-loadscope-reorder)
case "${1:-}" in
  "" | --fast)
    ruff check .
    ruff format --check .
    mypy
    if [ -n "${1:-}" ]; then
      exec python -m pytest "${two_at_a_time[@]}" -m "not process"
    fi
    exec python -m pytest "${two_at_a_time[@]}"
    ;;
  --random)
    seed="${2:-$((RANDOM * 32768 + RANDOM))}"
    echo "seed $seed; the same examples again: scripts/test.sh --random $seed"
    exec python -m pytest "${two_at_a_time[@]}" -m hypothesis --hypothesis-profile=random --hypothesis-seed="$seed"
    ;;
  *)
    exec python -m pytest "$@"
    ;;
esac
