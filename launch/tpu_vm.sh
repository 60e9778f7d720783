#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU VM, from one host to a pod.
#
#   launch/tpu_vm.sh create --name=TPU --zone=ZONE --accelerator_type=TYPE --runtime_version=VERSION
#   launch/tpu_vm.sh train --name=TPU --zone=ZONE \
#     --gin_file=semantic.gin --model_dir=/shared/semantic --gin.DATA_DIR="'/shared/tokens'"
#   launch/tpu_vm.sh stop --name=TPU --zone=ZONE
#
# `create` queues for a TPU VM; wait until `gcloud compute tpus queued-resources list` shows it as ACTIVE. `train`
# installs the last commit of this checkout on all workers and starts the training there. The training no longer needs
# this machine and logs to ~/musiclm/train.log on each worker. `stop` makes it save a checkpoint and waits until it has
# exited. After that, or after a crash, the same `train` resumes from the checkpoint.
#
# Options, written --NAME=VALUE:
#   --name               name of the TPU VM
#   --zone               its zone
#   --accelerator_type   create: type and size of the TPU, as gcloud names them
#   --runtime_version    create: its software, as gcloud names it
#   --gin_file           train: gin file, one of gin_configs/ or a path on the workers; may be repeated
#   --model_dir          train: folder of the run, visible to all workers
#   --gin.NAME           train: value of a gin binding; may be repeated
# Optional:
#   --project            project of the TPU VM (default: gcloud's)
#   --spot               create: preemptible capacity
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

# The pid in the file may belong to another process by now, so check its command line, too.
running='-F musiclm/train.pid -f musiclm'

case $mode in
  create)
    run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" "${create[@]}"
    ;;
  train)
    repository=$(cd "$(dirname "$0")/.." && pwd)
    archive=$repository/dist/musiclm_jax.tar.gz
    refusal='a training is already running here: launch/tpu_vm.sh stop ends it'
    install="if pgrep $running >/dev/null 2>&1; then echo '$refusal' >&2; exit 2; fi"
    install+=' && rm -rf musiclm/source && mkdir -p musiclm/source'
    install+=' && tar -xzf musiclm_jax.tar.gz -C musiclm/source && cd musiclm/source'
    # The Python of TPU images is too old. uv brings its own; --reinstall-package makes it rebuild from the new sources.
    install+=' && { [ -x ~/.local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh; }'
    install+=' && ~/.local/bin/uv venv --quiet --allow-existing --python 3.11 ../venv'
    install+=' && ~/.local/bin/uv pip install --quiet --python ../venv/bin/python'
    install+=" --constraint requirements.lock --reinstall-package musiclm_jax '.[tpu]'"
    start="cd musiclm && { MUSICLM_DISTRIBUTED=1 setsid nohup $(quote "${train[@]}") >>train.log 2>&1 </dev/null &"
    start+=' echo $! >train.pid; }'

    run mkdir -p "$repository/dist"
    # Leaves out the tiny bundle's weights: no training reads them, and they would go to each worker.
    run git -C "$repository" archive --format=tar.gz "--output=$archive" HEAD . ':!musiclm_jax/bundles/*.safetensors'
    run gcloud compute tpus tpu-vm scp "$archive" "$name:musiclm_jax.tar.gz" "${where[@]}" --worker=all
    on_all_workers "$install"
    on_all_workers "$start"
    ;;
  stop)
    nothing="echo 'no training is running here' >&2"
    on_all_workers "if pkill $running; then while pgrep $running >/dev/null; do sleep 1; done; else $nothing; fi"
    ;;
esac
