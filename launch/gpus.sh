#!/usr/bin/env bash
# Trains on all GPUs of this machine, in one process, and restarts after a crash. It checks the GPUs and the driver
# first, sets XLA's flags (launch/xla_flags.sh) and hands over to launch/local.sh.
#
#   launch/gpus.sh --gpus=8 --gin_file=coarse.gin --model_dir=/data/coarse --gin.DATA_DIR="'/data/tokens'"
#
# Options, written --NAME=VALUE:
#   --gpus          number of GPUs to expect
#   --gin_file      gin file, as `musiclm train` takes it; may be repeated
#   --model_dir     folder of the run
#   --gin.NAME      value of a gin binding; may be repeated: --gin.make_mesh.fsdp=8 splits parameters and optimiser
# Optional:
#   --restarts, --pause, --dry_run   see launch/local.sh
#
# XLA takes 92 % of each GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=options.sh
source "$(dirname "$0")/options.sh"
# shellcheck source-path=SCRIPTDIR source=xla_flags.sh
source "$(dirname "$0")/xla_flags.sh"

oldest_driver=525 # that runs CUDA 12, as JAX's installation guide says; CUDA 13 needs 580
gpus='' dry_run='' rest=()
for option in "$@"; do
  case $option in
    -h | --help) help && exit ;;
    --gpus=*) gpus=${option#*=} ;;
    --dry_run) dry_run=yes rest+=("$option") ;;
    *) rest+=("$option") ;;
  esac
done
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "--gpus is '$gpus', expected a whole number of 1 or more"

export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
XLA_FLAGS=$(with_xla_gpu_flags)
export XLA_FLAGS
if [[ -n $dry_run ]]; then
  quote export "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION" "XLA_FLAGS=$XLA_FLAGS"
  echo
  exec "$(dirname "$0")/local.sh" "${rest[@]}"
fi

command -v nvidia-smi >/dev/null || fail "there is no nvidia-smi: this machine has no NVIDIA driver"
drivers=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1) ||
  fail "nvidia-smi cannot talk to the driver: $(head -n 1 <<<"$drivers")"
found=$(grep -c . <<<"$drivers" || true)
driver=$(head -n 1 <<<"$drivers")
((found == gpus)) || fail "--gpus is $gpus, but nvidia-smi finds $found: set --gpus=$found or choose another machine"
if [[ ! ${driver%%.*} =~ ^[0-9]+$ ]] || ((${driver%%.*} < oldest_driver)); then
  fail "the driver is $driver, but CUDA 12 needs $oldest_driver or newer: update it"
fi
exec "$(dirname "$0")/local.sh" "${rest[@]}"
