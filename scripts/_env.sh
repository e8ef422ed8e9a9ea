# Sourced by sweep.sh and test.sh: a virtual environment with this package in it.
#   prepare_env EXTRAS     EXTRAS is "" or "[dev]"
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

prepare_env() {
  local extras="$1" python stamp wanted
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
  stamp="$(python -c 'import sys; print(sys.prefix)')/.tactile-sweep"
  wanted="$root $(cksum < "$root/pyproject.toml")"
  # an install with more in it serves as well
  if [ "$(cat "$stamp$extras" 2>/dev/null)" != "$wanted" ] && [ "$(cat "$stamp[dev]" 2>/dev/null)" != "$wanted" ]; then
    echo "installing $root and what it needs into $(python -c 'import sys; print(sys.prefix)') (the first time about 6 GB and 3 minutes)"
    python -m pip install --quiet --disable-pip-version-check -e "$root$extras"
    printf '%s\n' "$wanted" > "$stamp$extras"
  fi
}
