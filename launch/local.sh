#!/usr/bin/env bash
# Trains on this machine and restarts after a crash.
#
#   launch/local.sh --gin_file=semantic_tiny.gin --model_dir=/data/semantic --gin.DATA_DIR="'/data/tokens'"
#
# Options, written --NAME=VALUE:
#   --gin_file      gin file, as `musiclm train` takes it; may be repeated
#   --model_dir     folder of the run
#   --gin.NAME      value of a gin binding; may be repeated
# Optional:
#   --restarts      number of restarts after a crash (default 3)
#   --pause         seconds before a restart (default 10)
#   --dry_run       print the command, run nothing
#
# SIGTERM and Ctrl-C are forwarded: the training saves a checkpoint and exits; the same command resumes.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=options.sh
source "$(dirname "$0")/options.sh"

given='' restarts=3 pause=10 dry_run=''
train=(musiclm train)
while (($#)); do
  [[ $1 != --*=?* ]] || given+=" ${1%%=*} "
  case $1 in
    -h | --help) help && exit ;;
    --dry_run) dry_run=yes ;;
    --gin_file=*) train+=("$1") ;;
    --model_dir=*) train+=("$1") ;;
    --gin.?*=*) train+=("$1") ;;
    --restarts=*) restarts=${1#*=} ;;
    --pause=*) pause=${1#*=} ;;
    *) fail "unknown option '$1': options are written --NAME=VALUE" ;;
  esac
  shift
done
require "$given" '' gin_file model_dir
for name in restarts pause; do
  [[ ${!name} =~ ^[0-9]+$ ]] || fail "--$name is '${!name}', expected a whole number"
done

if [[ -n $dry_run ]]; then
  quote "${train[@]}"
  echo
  exit
fi
command -v musiclm >/dev/null || fail "musiclm is not installed here: pip install '$(dirname "$0")/..[train]'"

child='' signals=0
pass_on() {
  signals=$((signals + 1))
  kill -s "$1" "$child" 2>/dev/null || true
}
trap 'pass_on TERM' TERM HUP
trap 'pass_on INT' INT
# Gives the training its own process group. Otherwise Ctrl-C would reach it twice, from the terminal and from the trap,
# and the second signal would end it before it has saved.
set -m

# run COMMAND...: runs the command to its end and leaves its exit code in $code. A signal interrupts only `wait`.
run() {
  local seen=-1
  "$@" </dev/null &
  child=$!
  while ((signals != seen)); do
    seen=$signals code=0
    wait "$child" || code=$?
  done
}

for ((restart = 1; ; restart++)); do
  run "${train[@]}"
  # Code 2 means unusable input or a NaN loss: another try would end the same way.
  if ((code == 0 || code == 2 || signals > 0)); then
    exit "$code"
  fi
  if ((restart > restarts)); then
    echo "launch/local.sh: the training ended with code $code, its $restarts restarts are used up" >&2
    exit "$code"
  fi
  echo "launch/local.sh: the training ended with code $code, restart $restart of $restarts in $pause s" >&2
  run sleep "$pause"
  ((signals == 0)) || exit "$code"
done
