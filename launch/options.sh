# shellcheck shell=bash
# What the launch scripts share; read by them with `source`, from the folder that they lie in.

# fail MESSAGE: one line for input that cannot be used, and exit code 2.
fail() {
  printf 'launch/%s: %s (--help lists the options)\n' "${0##*/}" "$1" >&2
  exit 2
}

# help: the comment at the head of the script.
help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# quote WORD...: the words as text that any POSIX shell reads back unchanged; the $'...' of printf %q is for bash alone.
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

# require GIVEN PREFIX NAME...: fails if a name is not among GIVEN, the options that were given as " --NAME  --NAME ".
require() {
  local given=$1 prefix=$2 name missing=''
  shift 2
  for name in "$@"; do
    [[ $given == *" --$name "* ]] || missing+=" --$name"
  done
  [[ -z $missing ]] || fail "${prefix}missing:$missing"
}
