#!/usr/bin/env bash
# Trains a tiny bundle of today's configurations further on two CPU cores, from where WORK was left; at first from nothing.
#
#   launch/continue_training.sh WORK MINUTES [PART...]
#
# WORK/pack holds scores and sound fonts (made at first, which takes minutes; see docs/gpu.md), WORK/bundle the bundle. PARTs are
# those of `musiclm bootstrap --parts`; by default all at first, and then the stages, which have most to gain. Each part is
# saved when its time is over, so that a run that is stopped keeps those that were done. When a tokenizer is trained, name
# the stages, too.
set -euo pipefail

if [[ $# -lt 2 || $1 == -* ]]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
work=$1
minutes=$2
parts=("${@:3}")
if [[ ${#parts[@]} -eq 0 ]]; then
  parts=(coarse semantic fine semantic_melody)
  if [[ ! -e $work/bundle/config.json ]]; then
    parts=(soundstream w2v_bert mulan "${parts[@]}" decoder)
  fi
fi
mkdir -p "$work"
if [[ ! -e $work/pack/learners.json ]]; then
  musiclm bootstrap --pack "$work/pack"
fi
musiclm bootstrap --from "$work/pack" --output "$work" --cpu --minutes "$minutes" --parts "${parts[@]}"
echo "The bundle is in $work/bundle: musiclm generate \"a slow piano\" --bundle $work/bundle --output piano.wav"
