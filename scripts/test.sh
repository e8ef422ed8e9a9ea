#!/usr/bin/env bash
# Install what is needed, then check the code and run the tests.
#   scripts/test.sh                 ruff, mypy and the quick tests (a few minutes)
#   scripts/test.sh --slow          the tests that start Ray or train for longer
#   scripts/test.sh --chaos         a sweep whose processes are killed at every turn: on a machine that does nothing else
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
case "${1:-}" in
  "")
    ruff check .
    ruff format --check .
    mypy
    exec python -m pytest -n 2 -m "not slow and not chaos"
    ;;
  --slow)
    shift
    # a file a worker: its tests share sweeps. Agents mostly wait, so two files at a time take little longer than one
    exec python -m pytest -n 2 --dist loadfile -m slow "$@"
    ;;
  --chaos)
    shift
    exec python -m pytest -m chaos "$@"
    ;;
  *)
    exec python -m pytest "$@"
    ;;
esac
