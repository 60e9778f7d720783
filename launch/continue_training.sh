#!/usr/bin/env bash
# Trains a bundle of the current tiny configurations on two CPU cores: from scratch at first, then further from WORK.
#
#   launch/continue_training.sh WORK MINUTES [PART...]
#
# WORK/pack holds scores and sound fonts (the first run makes it, which takes minutes; see docs/gpu.md), WORK/bundle the
# bundle. PARTs are those of `musiclm bootstrap --parts`. By default the first run trains all parts, later runs only the
# stages, which gain most. Each part is saved when its time is up, and an unfinished stage every five minutes: the next run
# continues there. If you retrain a tokenizer, name the stages, too.
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
