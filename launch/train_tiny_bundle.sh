#!/usr/bin/env bash
# Makes the tiny bundle from nothing: corpus, three tokenizer families, tokens, three stages, and the copy in the package.
#
#   launch/train_tiny_bundle.sh WORK_DIR
#
# Everything is kept in WORK_DIR (about 10 GB). Run the same command again after an interruption: finished steps are
# skipped, training goes on at its last checkpoint, tokenizing at its last shard. A step is repeated when its file in
# WORK_DIR/done is removed; remove those of the steps after it, too, and WORK_DIR/tokens when a tokenizer changed.
set -euo pipefail

if [[ $# -ne 1 || $1 == -* ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1/done"
work=$(cd "$1" && pwd)
corpus=$work/corpus
tokens=$work/tokens
bundle=$work/bundle
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

# train NAME BINDING...: trains the model of gin_configs/NAME_tiny.gin, with these gin bindings.
train() {
  local name=$1
  shift
  step "train_$name" musiclm train "--gin_file=gin_configs/${name}_tiny.gin" "--model_dir=$work/$name" "$@"
}

step corpus musiclm corpus --output "$corpus"

for family in soundstream w2v_bert mulan; do
  train "$family" "--gin.CORPUS='$corpus'"
  step "export_$family" musiclm export --family "$family" --model_dir "$work/$family" --bundle "$bundle" --corpus "$corpus"
done

step tokenize musiclm tokenize --bundle "$bundle" --corpus "$corpus" --output "$tokens"

for stage in semantic coarse fine; do
  train "$stage" "--gin.TOKENS='$tokens'"
  step "export_$stage" musiclm export --family "$stage" --model_dir "$work/$stage" --bundle "$bundle" --best
done

shipped=$repository/musiclm_jax/bundles/tiny
mkdir -p "$shipped"
cp "$bundle"/*.json "$bundle"/*.safetensors "$bundle"/vocab.txt "$shipped"/
du -sh "$shipped"
