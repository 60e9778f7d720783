# shellcheck shell=bash
# Functions shared by the launch scripts, which `source` this file from their own folder.

# fail MESSAGE: reports unusable input in one line and exits with code 2.
fail() {
  printf 'launch/%s: %s (--help lists the options)\n' "${0##*/}" "$1" >&2
  exit 2
}

# help: prints the comment at the top of the script.
help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# quote WORD...: prints the words so that any POSIX shell reads them back unchanged; $'...' from printf %q needs bash.
quote() {
  local word separator=''
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

# require GIVEN PREFIX NAME...: fails if a NAME is missing from GIVEN, the given options as " --NAME  --NAME ".
require() {
  local given=$1 prefix=$2 name missing=''
  shift 2
  for name in "$@"; do
    [[ $given == *" --$name "* ]] || missing+=" --$name"
  done
  [[ -z $missing ]] || fail "${prefix}missing:$missing"
}
