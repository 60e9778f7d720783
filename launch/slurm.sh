#!/usr/bin/env bash
# Submits a training to a Slurm cluster with GPUs, one process per GPU. Before the time limit the training saves a
# checkpoint, and the job requeues and resumes.
#
#   launch/slurm.sh --nodes=NODES --gpus_per_node=GPUS --cpus_per_task=CPUS --time=TIME \
#     --gin_file=semantic.gin --model_dir=/shared/semantic --gin.DATA_DIR="'/shared/tokens'"
#
# The job inherits the calling environment: activate one with `musiclm` and jax[cuda12] first. XLA's flags for GPUs are
# those of launch/xla_flags.sh, followed by those in XLA_FLAGS.
#
# Options, written --NAME=VALUE:
#   --nodes           number of nodes
#   --gpus_per_node   GPUs, and processes, per node
#   --cpus_per_task   CPUs per process
#   --time            time limit of one job, as sbatch takes it
#   --gin_file        gin file, as `musiclm train` takes it; may be repeated
#   --model_dir       folder of the run, visible to all nodes
#   --gin.NAME        value of a gin binding; may be repeated
# Optional:
#   --save_seconds    how long before the time limit to save and stop (default 120)
#   --sbatch          an additional option of sbatch, such as --sbatch=--partition=NAME; may be repeated
#   --dry_run         print the commands and the job's script, run nothing
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=options.sh
source "$(dirname "$0")/options.sh"
# shellcheck source-path=SCRIPTDIR source=xla_flags.sh
source "$(dirname "$0")/xla_flags.sh"

given='' nodes='' gpus_per_node='' cpus_per_task='' time='' model_dir='' save_seconds=120 dry_run=''
train=(musiclm train)
submit=(sbatch --job-name=musiclm)
while (($#)); do
  [[ $1 != --*=?* ]] || given+=" ${1%%=*} "
  case $1 in
    -h | --help) help && exit ;;
    --dry_run) dry_run=yes ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus_per_node=*) gpus_per_node=${1#*=} ;;
    --cpus_per_task=*) cpus_per_task=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --gin_file=*) train+=("$1") ;;
    --model_dir=*) model_dir=${1#*=} train+=("$1") ;;
    --gin.?*=*) train+=("$1") ;;
    --save_seconds=*) save_seconds=${1#*=} ;;
    --sbatch=-*) submit+=("${1#*=}") ;;
    *) fail "unknown option '$1': options are written --NAME=VALUE" ;;
  esac
  shift
done
require "$given" '' nodes gpus_per_node cpus_per_task time gin_file model_dir
for name in nodes gpus_per_node cpus_per_task save_seconds; do
  [[ ${!name} =~ ^[1-9][0-9]*$ ]] || fail "--$name is '${!name}', expected a whole number of 1 or more"
done

# --signal without "B:" reaches only the training, so the job's script survives to requeue it.
submit+=(
  "--nodes=$nodes" "--ntasks-per-node=$gpus_per_node" "--gpus-per-node=$gpus_per_node"
  "--cpus-per-task=$cpus_per_task" "--time=$time" "--signal=TERM@$save_seconds" --requeue
  "--output=${model_dir//%/%%}/slurm-%j.log" --open-mode=append
)
# jax.distributed picks the GPU by the process's local rank, so every process has to see all GPUs of its node.
# srun no longer inherits --cpus-per-task from sbatch.
srun=(srun --kill-on-bad-exit=1 "--cpus-per-task=$cpus_per_task" --gpu-bind=none "${train[@]}")
script="#!/usr/bin/env bash
export MUSICLM_DISTRIBUTED=1
export $(quote "XLA_FLAGS=$(with_xla_gpu_flags)")
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
output=\$(mktemp)
trap 'rm -f \"\$output\"' EXIT
$(quote "${srun[@]}") 2>&1 | tee \"\$output\"
code=\${PIPESTATUS[0]}
# A training stopped by a signal has saved and exits without an error.
if ((code == 0)) && grep -q '^stopped by a signal' \"\$output\"; then
  scontrol requeue \"\$SLURM_JOB_ID\"
fi
exit \"\$code\""

if [[ -n $dry_run ]]; then
  quote mkdir -p "$model_dir"
  echo
  quote "${submit[@]}"
  printf " <<'END'\n%s\nEND\n" "$script"
else
  mkdir -p "$model_dir" # Slurm drops the output of a job whose log has no folder
  "${submit[@]}" <<<"$script"
fi
