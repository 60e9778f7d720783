# shellcheck shell=bash
# What the scripts in .ci/ share; read by them with `source`, from the root of the clone.

# fresh FOLDER: makes an empty virtual environment there, and activates it.
fresh() {
  local python
  python=$(command -v python3.11 || command -v python3.12 || command -v python3)
  "$python" -m venv --clear "$1"
  # shellcheck disable=SC1091
  source "$1/bin/activate"
  export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
}

# readme_commands: the commands in the code blocks of the README's sections "Hear it" and "Test it", one on a line.
readme_commands() {
  awk '/^## /{shown = $0 ~ /^## (Hear|Test) it$/} shown && /^```/{code = !code; next} shown && code' README.md
}

# run_readme PATTERN: runs the README's test commands that match, as they stand.
run_readme() {
  local found
  found=$(readme_commands | grep -e "$1") || { echo "README.md: no command under 'Hear it' or 'Test it' matches '$1'" >&2; exit 1; }
  echo "+ $found"
  bash -euo pipefail -c "$found"
}
