# Sourced by the scripts beside it: a virtual environment with this package in it. `bash scripts/_env.sh` makes it and
# does no more.
#   prepare_env EXTRAS          EXTRAS is "" or "[dev]"
#   answer_help MODULE WORD     where WORD is -h or --help: prints the help, installs nothing, ends the script; of the
#                               module, or where that is "" or not installed, the script's head
# Where no virtual environment is active, .venv beside this folder is made and used. The install is skipped while
# pyproject.toml is as it was at the last one.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

find_python() {
  local name
  for name in "${PYTHON:-}" python3 python3.11 python3.12 python3.13 python; do
    if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: no Python 3.11 or newer was found; install one, or name it: PYTHON=/path/to/python3.11 $0" >&2
  return 2
}

answer_help() {
  local module="$1" python=python
  case "${2:-}" in
    -h | --help) ;;
    *) return 0 ;;
  esac
  if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    python="$root/.venv/bin/python"
  fi
  { [ -n "$module" ] && "$python" -m "$module" --help 2>/dev/null; } || sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit 0
}

prepare_env() {
  local extras="$1" python stamp wanted prefix other known
  if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    if [ ! -x "$root/.venv/bin/python" ]; then
      python="$(find_python)" || return 2
      echo "making the virtual environment $root/.venv"
      "$python" -m venv "$root/.venv"
    fi
    # shellcheck disable=SC1091
    . "$root/.venv/bin/activate"
  fi
  # one stamp per kind of install; it names the checkout too, since the install points to it
  prefix="$(python -c 'import sys; print(sys.prefix)')"
  stamp="$prefix/.tactile-sweep"
  wanted="$root $(cksum < "$root/pyproject.toml")"
  # an install with more in it serves as well
  if [ "$(cat "$stamp$extras" 2>/dev/null)" != "$wanted" ] && [ "$(cat "$stamp[dev]" 2>/dev/null)" != "$wanted" ]; then
    echo "installing $root and what it needs into $prefix (the first time about 6 GB and 3 minutes)"
    python -m pip install --quiet --disable-pip-version-check -e "$root$extras"
    for known in "$stamp" "$stamp[dev]"; do
      other="$(cat "$known" 2>/dev/null || true)"
      other="${other% * *}" # without the checksum and size
      if [ -n "$other" ] && [ "$other" != "$root" ]; then
        echo "note: $prefix had $other; it has $root now"
        rm -f "$known" # what it says is so no more
      fi
    done
    printf '%s\n' "$wanted" > "$stamp$extras"
  fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  prepare_env ""
fi
