#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU VM, from one host to a pod.
#
#   launch/tpu_vm.sh create --name=TPU --zone=ZONE --accelerator_type=TYPE --runtime_version=VERSION
#   launch/tpu_vm.sh train --name=TPU --zone=ZONE \
#     --gin_file=semantic.gin --model_dir=/shared/semantic --gin.DATA_DIR="'/shared/tokens'"
#   launch/tpu_vm.sh stop --name=TPU --zone=ZONE
#
# `create` queues for a TPU VM; go on when `gcloud compute tpus queued-resources list` shows it as ACTIVE. `train`
# installs the last commit of this checkout on all workers and starts the training there. It does not need this machine
# any more, and writes to ~/musiclm/train.log of each worker. `stop` makes it save a checkpoint and waits until it has
# ended. After that, or after a crash, the same `train` goes on from the checkpoint.
#
# Options, written --NAME=VALUE:
#   --name               name of the TPU VM
#   --zone               its zone
#   --accelerator_type   create: type and size of the TPU, as gcloud calls them
#   --runtime_version    create: its software, as gcloud calls it
#   --gin_file           train: gin file, one of gin_configs/ or a path on the workers; may be repeated
#   --model_dir          train: folder of the run, one that all workers see
#   --gin.NAME           train: value of a gin binding; any number of them
# and, if wanted:
#   --project            project of the TPU VM (default: that of gcloud)
#   --spot               create: capacity that may be taken away
#   --dry_run            print the commands, run nothing
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=options.sh
source "$(dirname "$0")/options.sh"

mode=${1:-}
case $mode in
  create) required='name zone accelerator_type runtime_version' ;;
  train) required='name zone gin_file model_dir' ;;
  stop) required='name zone' ;;
  -h | --help) help && exit ;;
  *) fail "the first argument is '$mode', expected create, train or stop" ;;
esac
shift

given='' name='' dry_run=''
train=(venv/bin/musiclm train)
create=()
where=()
while (($#)); do
  [[ $1 != --*=?* ]] || given+=" ${1%%=*} "
  case $mode:$1 in
    *:-h | *:--help) help && exit ;;
    *:--dry_run) dry_run=yes ;;
    *:--name=*) name=${1#*=} ;;
    *:--zone=*) where+=("$1") ;;
    *:--project=?*) where+=("$1") ;;
    create:--accelerator_type=*) create+=("--accelerator-type=${1#*=}") ;;
    create:--runtime_version=*) create+=("--runtime-version=${1#*=}") ;;
    create:--spot) create+=(--spot) ;;
    train:--gin_file=*) train+=("$1") ;;
    train:--model_dir=*) train+=("$1") ;;
    train:--gin.?*=*) train+=("$1") ;;
    *) fail "$mode: unknown option '$1': options are written --NAME=VALUE" ;;
  esac
  shift
done
# shellcheck disable=SC2086
require "$given" "$mode: " $required

run() {
  if [[ -n $dry_run ]]; then
    quote "$@"
    echo
  else
    "$@"
  fi
}

on_all_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "--command=$1"
}

# A number in the file may belong to another process by now, hence the look at its command line.
running='-F musiclm/train.pid -f musiclm'

case $mode in
  create)
    run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" "${create[@]}"
    ;;
  train)
    repository=$(cd "$(dirname "$0")/.." && pwd)
    archive=$repository/dist/musiclm_jax.tar.gz
    refusal='a training runs here already: launch/tpu_vm.sh stop ends it'
    install="if pgrep $running >/dev/null 2>&1; then echo '$refusal' >&2; exit 2; fi"
    install+=' && rm -rf musiclm/source && mkdir -p musiclm/source'
    install+=' && tar -xzf musiclm_jax.tar.gz -C musiclm/source && cd musiclm/source'
    # The Python of the TPU's images is too old. uv brings its own, and is told to look at the sources again.
    install+=' && { [ -x ~/.local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh; }'
    install+=' && ~/.local/bin/uv venv --quiet --allow-existing --python 3.11 ../venv'
    install+=' && ~/.local/bin/uv pip install --quiet --python ../venv/bin/python'
    install+=" --constraint requirements.lock --reinstall-package musiclm_jax '.[tpu]'"
    start="cd musiclm && { MUSICLM_DISTRIBUTED=1 setsid nohup $(quote "${train[@]}") >>train.log 2>&1 </dev/null &"
    start+=' echo $! >train.pid; }'

    run mkdir -p "$repository/dist"
    # Without the tiny bundle's weights, which no training reads and each worker would be sent.
    run git -C "$repository" archive --format=tar.gz "--output=$archive" HEAD . ':!musiclm_jax/bundles/*.safetensors'
    run gcloud compute tpus tpu-vm scp "$archive" "$name:musiclm_jax.tar.gz" "${where[@]}" --worker=all
    on_all_workers "$install"
    on_all_workers "$start"
    ;;
  stop)
    nothing="echo 'no training runs here' >&2"
    on_all_workers "if pkill $running; then while pgrep $running >/dev/null; do sleep 1; done; else $nothing; fi"
    ;;
esac
