#!/usr/bin/env bash
# Starts a training on TPU slices of a GKE cluster, as a JobSet (launch/gke_jobset.yaml).
#
#   launch/gke.sh --name=semantic --context=CONTEXT --image=IMAGE --claim=CLAIM --accelerator=ACCELERATOR \
#     --topology=TOPOLOGY --chips_per_host=CHIPS --slices=SLICES \
#     --gin_file=semantic.gin --model_dir=/data/semantic --gin.DATA_DIR="'/data/tokens'"
#
# The cluster needs the JobSet controller (0.6 or newer). `kubectl delete jobset NAME` stops the training after saving a
# checkpoint. The same command resumes, also after all restarts are used up; delete the JobSet first.
#
# Options, written --NAME=VALUE:
#   --name              name of the JobSet
#   --context           cluster, as named by `kubectl config get-contexts`
#   --image             container image with the package and its TPU extra installed: '.[tpu]'
#   --claim             PersistentVolumeClaim (ReadWriteMany), mounted as /data in every pod
#   --accelerator       label cloud.google.com/gke-tpu-accelerator of the nodes
#   --topology          label cloud.google.com/gke-tpu-topology of the nodes: chips of a slice, such as AxB or AxBxC
#   --chips_per_host    chips per node
#   --slices            number of slices
#   --gin_file          gin file: one of the package's, or a path in the pod; may be repeated
#   --model_dir         folder of the run, below /data
#   --gin.NAME          value of a gin binding; may be repeated
# Optional:
#   --namespace         namespace of the JobSet (default default)
#   --service_account   Kubernetes service account of the pods (default default)
#   --command           the `musiclm` program in the image, split at spaces (default musiclm)
#   --restarts          number of restarts after a crash (default 3)
#   --dry_run           print the command and the manifest, run nothing
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=options.sh
source "$(dirname "$0")/options.sh"

given='' name='' context='' image='' claim='' accelerator='' topology='' chips_per_host='' slices='' model_dir=''
namespace=default service_account=default command=musiclm restarts=3 dry_run=''
arguments=(train)
while (($#)); do
  [[ $1 != --*=?* ]] || given+=" ${1%%=*} "
  [[ $1 != *$'\n'* ]] || fail "an argument has a line break: write '${1%%$'\n'*}...' on one line"
  case $1 in
    -h | --help) help && exit ;;
    --dry_run) dry_run=yes ;;
    --name=*) name=${1#*=} ;;
    --context=*) context=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --claim=*) claim=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --chips_per_host=*) chips_per_host=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --gin_file=*) arguments+=("$1") ;;
    --model_dir=*) model_dir=${1#*=} arguments+=("$1") ;;
    --gin.?*=*) arguments+=("$1") ;;
    --namespace=?*) namespace=${1#*=} ;;
    --service_account=?*) service_account=${1#*=} ;;
    --command=?*) command=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    *) fail "unknown option '$1': options are written --NAME=VALUE" ;;
  esac
  shift
done
require "$given" '' name context image claim accelerator topology chips_per_host slices gin_file model_dir
for option in chips_per_host slices; do
  [[ ${!option} =~ ^[1-9][0-9]*$ ]] || fail "--$option is '${!option}', expected a whole number of 1 or more"
done
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts is '$restarts', expected a whole number"
[[ $model_dir == /data/* ]] ||
  fail "--model_dir is '$model_dir', expected a folder below /data: everything else is lost with the pods"
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] || fail "--topology is '$topology', expected chips as AxB or AxBxC"
chips=$((${topology//x/*}))
((chips % chips_per_host == 0)) ||
  fail "the $chips chips of --topology=$topology do not divide into hosts of --chips_per_host=$chips_per_host"

# Escapes a value for single quotes in YAML. Kubernetes reads $(NAME) as a variable and $$ as $.
escape() {
  printf '%s' "$1" | sed "s/'/''/g; s/[\$]/&&/g"
}

manifest=$(<"$(dirname "$0")/gke_jobset.yaml")
fill() {
  manifest=${manifest//"__$1__"/"$2"}
}
fill NAME "$(escape "$name")"
fill RESTARTS "$restarts"
fill SLICES "$slices"
fill HOSTS "$((chips / chips_per_host))"
fill SERVICE_ACCOUNT "$(escape "$service_account")"
fill ACCELERATOR "$(escape "$accelerator")"
fill TOPOLOGY "$topology"
fill IMAGE "$(escape "$image")"
fill CHIPS_PER_HOST "$chips_per_host"
fill CLAIM "$(escape "$claim")"
read -ra program <<<"$command"
lines=''
for argument in "${program[@]}" "${arguments[@]}"; do
  lines+="${lines:+$'\n'}              - '$(escape "$argument")'"
done
fill ARGUMENTS "$lines" # last, because its values may look like names

apply=(kubectl "--context=$context" "--namespace=$namespace" apply -f -)
if [[ -n $dry_run ]]; then
  quote "${apply[@]}"
  printf " <<'END'\n%s\nEND\n" "$manifest"
else
  "${apply[@]}" <<<"$manifest"
fi
