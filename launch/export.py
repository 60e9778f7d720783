"""`musiclm export`: adds a trained model to a bundle.

Keeps what inference needs from a checkpoint of a training run. For w2v-BERT, MuLan and the melody model it first fits
to the corpus what training does not: normalisation and k-means of the semantic tokens, centring and quantizer of the
MuLan tokens, and the quantizer of the melody tokens (to renditions, from `musiclm corpus --passages`).
"""

import argparse
import collections
import dataclasses
import functools
import importlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from musiclm_jax.data import files
from musiclm_jax.data.tokens import MELODY, STAGES
from musiclm_jax.launch import command

NEED_CORPUS = ("w2v_bert", "mulan", "melody")
LEARNERS = {
    "soundstream": "musiclm_jax.tokenizers.soundstream.learner:SoundStreamLearner",
    "w2v_bert": "musiclm_jax.tokenizers.w2v_bert.learner:W2vBertLearner",
    "mulan": "musiclm_jax.tokenizers.mulan:MulanLearner",
    "melody": "musiclm_jax.tokenizers.melody:MelodyLearner",
    "stage": "musiclm_jax.stages.learner:StageLearner",
}
STAGE_PARTS = (*STAGES, "semantic_melody")  # the last is the semantic stage with a melody
RUN = {"family": str, "config": dict, "learner": dict}  # in config.json of a run
BATCH_SIZE = 16  # clips per batch in fits to the corpus
MAX_TAGS, MAX_CAPTIONS = 120, 96  # candidates for `musiclm describe`


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    p = command.Parser("export", "add a trained model to a bundle")
    p.add_argument("--family", required=True, choices=(*list(LEARNERS)[:-1], *STAGE_PARTS), help="model to export")
    p.add_argument("--model_dir", type=command.path_or_bucket, required=True, help="folder of the training run")
    p.add_argument("--bundle", type=command.local_path, required=True, help="folder of the bundle; created if missing")
    p.add_argument(
        "--corpus",
        type=command.path_or_bucket,
        help="folder of records; needed for w2v_bert, mulan and melody (renditions)",
    )
    p.add_argument("--best", action="store_true", help="use the checkpoint with the lowest held-out loss, not the last")
    p.add_argument("--storage", default="float16", choices=("float16", "int8"), help="data type of large matrices")
    p.add_argument(
        "--clips", type=int, help="clips of the corpus to fit to (default: 2000 for w2v_bert, all for the others)"
    )
    p.add_argument("--seed", type=int, default=0, help="seed of the fits")
    p.add_argument("--max_seconds", type=float, help="intended maximum length of music from the bundle")
    p.add_argument("--top_p", type=float, help="default for `musiclm generate` with this bundle")
    p.add_argument(
        "--guidance", type=float, nargs=2, metavar=("SEMANTIC", "COARSE"), help="default for `musiclm generate`"
    )
    p.add_argument(
        "--temperature",
        type=float,
        nargs=3,
        metavar=("SEMANTIC", "COARSE", "FINE"),
        help="default for `musiclm generate` (the paper's 1.0 0.95 0.4 if not set)",
    )
    return p


def main(arguments: list[str]) -> int:
    """Runs the command.

    Raises:
      ValueError: if the run, the corpus or the bundle cannot be used.
    """
    args = parser().parse_args(arguments)
    if args.family in NEED_CORPUS and not args.corpus:
        raise ValueError(f"--family {args.family} is fitted to the corpus: give --corpus")
    command.enable_compilation_cache()
    from musiclm_jax import bundles

    if args.bundle in bundles.shipped():
        raise ValueError(f"--bundle {args.bundle} is a bundle of the package: a folder of that name is ./{args.bundle}")
    if args.corpus:
        from musiclm_jax.launch import quiet_tensorflow  # noqa: F401  before anything imports TensorFlow
    learner, state = read_run(args.model_dir, "stage" if args.family in STAGE_PARTS else args.family, args.best)
    folder = pathlib.Path(args.bundle)
    folder.mkdir(parents=True, exist_ok=True)
    config, variables = learner.config, learner.variables(state)
    if args.family == "mulan":
        sizes = export_mulan(config, variables, folder, args.corpus, args.clips or 0, args.seed)
    else:
        if args.family == "w2v_bert":
            variables = fit_w2v_bert(config, variables, args.corpus, args.clips or 2000, args.seed)
        elif args.family == "melody":
            variables = fit_melody(config, variables, args.corpus, args.clips or 0, args.seed)
        elif args.family in STAGE_PARTS:
            config = stage_config(learner, args.family)
        sizes = {args.family: bundles.save_part(folder, args.family, config, variables, args.storage)}
    given = {name: getattr(args, name) for name in ("max_seconds", "top_p", "guidance", "temperature")}
    if changed := {name: value for name, value in given.items() if value is not None}:
        bundles.save_generation(folder, dataclasses.replace(bundles.load(folder).generation, **changed))
    for name, size in sizes.items():
        print(f"{folder}: {name} {size / 1e6:.2f} MB")
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.2f} MB in all")
    return 0


def read_run(model_dir: str, family: str, best: bool = False) -> tuple[Any, Any]:
    """Returns the learner and the state of a training run.

    Raises:
      ValueError: if there is no run or checkpoint, or the run trained another family.
    """
    import jax
    from flax import serialization

    from musiclm_jax.bundles import config_from_json
    from musiclm_jax.training import checkpoints, partitioning

    files.check_bucket(model_dir)
    path = checkpoints.run_folder(model_dir) / "config.json"
    try:
        described = files.from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): give the model_dir of a `musiclm train` run") from error
    if not isinstance(described, dict) or not all(isinstance(described.get(name), kind) for name, kind in RUN.items()):
        raise ValueError(f"{path} is not that of a `musiclm train` run, or damaged: give the model_dir of a run")
    if described["family"] != family:
        raise ValueError(f"{model_dir} holds a training run of {described['family']}, not of {family}")
    module, name = LEARNERS[family].split(":")
    learner_class = getattr(importlib.import_module(module), name)
    learner = config_from_json(learner_class, {"config": described["config"]} | described["learner"], str(path))
    step, restored = checkpoints.load(model_dir, best=best)
    print(f"{model_dir}: checkpoint of step {step:,}", file=sys.stderr)
    shapes = partitioning.unbox(jax.eval_shape(learner.init, jax.random.key(0)))
    return learner, serialization.from_state_dict(shapes, restored)


def stage_config(learner: Any, name: str) -> Any:
    """Returns the config of a stage's part, for any machine.

    Args:
      learner: learner of the run.
      name: one of STAGE_PARTS.

    Raises:
      ValueError: if the run trained another stage.
    """
    from musiclm_jax.stages.config import StageModelConfig

    follows_melody = any(part.stream == MELODY.name for part in learner.stage.conditioning)
    trained = f"{learner.stage.name}_melody" if follows_melody else learner.stage.name
    if trained != name:
        raise ValueError(f"the run trained the {trained} stage, not the {name} one: give --family {trained}")
    return StageModelConfig(learner.stage, dataclasses.replace(learner.config, attention="blocks"))


def fit_w2v_bert(config: Any, variables: dict, corpus: str, clips: int, seed: int) -> dict:
    """Fits normalisation and clusters of the semantic tokens to the training split."""
    import jax

    from musiclm_jax.tokenizers import w2v_bert

    features = jax.jit(functools.partial(w2v_bert.features, config))
    progress = command.ProgressPrinter()

    def batches() -> Iterator[jax.Array]:
        for done, total, batch in corpus_batches(corpus, clips, seed):
            audio = np.stack([clip["audio"] for clip in filled(batch)])
            yield features(variables, audio)[: len(batch)]
            progress("features of the corpus", done, total)

    return w2v_bert.fit_kmeans(config, variables, batches(), jax.random.key(seed))


def fit_melody(config: Any, variables: dict, corpus: str, passages: int, seed: int) -> dict:
    """Fits the quantizer of the melody tokens to all renditions in the training split.

    Raises:
      ValueError: if there are too few renditions, or their length differs from the model's window.
    """
    import jax

    from musiclm_jax.data import records
    from musiclm_jax.tokenizers import melody

    progress = command.ProgressPrinter()
    embedded, heard = [], []
    for done, total, batch in corpus_batches(corpus, passages, seed, records.read_rendition_records):
        audio = np.stack([passage["renditions"] for passage in filled(batch)])
        if audio.shape[-1] != config.window_samples:
            raise ValueError(
                f"{corpus} holds renditions of {audio.shape[-1]} samples, the model's window is {config.window_samples}"
            )
        windows, count = audio.reshape(-1, config.window_samples), len(batch) * audio.shape[1]
        embedded.append(np.asarray(melody.embed(config, variables, windows))[:count, 0])
        if config.chroma_parts:
            heard.append(np.asarray(melody.chroma(config, windows))[:count, 0].reshape(-1, 12))
        progress("windows of the renditions", done, total)
    classes = np.concatenate(heard) if heard else None
    return melody.fit_quantizer(config, variables, np.concatenate(embedded), classes, jax.random.key(seed))


def export_mulan(
    config: Any, variables: dict, folder: pathlib.Path, corpus: str, clips: int, seed: int
) -> dict[str, int]:
    """Fits MuLan's centring and quantizer to the training split; writes MuLan and the candidates of `describe`.

    Each clip is paired with one of its captions, drawn by the seed.

    Returns:
      Bytes of each file.
    """
    import jax

    from musiclm_jax import bundles
    from musiclm_jax.generation.describe import CANDIDATES_FILE
    from musiclm_jax.tokenizers import mulan

    draw = np.random.default_rng(seed)
    progress = command.ProgressPrinter()
    heard_batches, read_batches, seen = [], [], []
    for done, total, batch in corpus_batches(corpus, clips, seed):
        audio = np.stack([clip["audio"] for clip in filled(batch)])
        heard_batches.append(np.asarray(mulan.embed_audio(config, variables, audio))[: len(batch)])
        captions = [clip["caption"][draw.integers(len(clip["caption"]))] for clip in batch]
        read_batches.append(np.asarray(mulan.embed_text(config, variables, captions)))
        seen += [{"caption": text, "aspects": clip["aspects"]} for text, clip in zip(captions, batch, strict=True)]
        progress("embeddings of the corpus", done, total)
    heard, read = np.concatenate(heard_batches), np.concatenate(read_batches)
    variables = mulan.fit_quantizer(config, variables, heard, read, jax.random.key(seed))
    agreement = mulan.token_agreement(
        mulan.tokens(config, variables, heard, "audio"), mulan.tokens(config, variables, read, "text")
    )
    print(f"tokens of text equal to those of audio, by level: {np.round(np.asarray(agreement), 3).tolist()}")
    sizes = bundles.save_mulan(folder, config, variables)
    text = json.dumps(candidates(seen), indent=1, ensure_ascii=False) + "\n"
    files.write(folder / CANDIDATES_FILE, text)
    return sizes | {CANDIDATES_FILE: len(text.encode())}


def candidates(clips: list[dict]) -> dict[str, list[str]]:
    """Returns the candidates of `musiclm describe`: the most common aspects as tags, and captions across the clips."""
    counts = collections.Counter(aspect for clip in clips for aspect in clip["aspects"])
    captions = list(dict.fromkeys(clip["caption"] for clip in clips))
    stride = max(1, len(captions) // MAX_CAPTIONS)
    return {
        "tags": sorted(aspect for aspect, _ in counts.most_common(MAX_TAGS)),
        "captions": captions[::stride][:MAX_CAPTIONS],
    }


def corpus_batches(
    corpus: str, clips: int, seed: int, read: Callable[[list[str]], Iterator[dict]] | None = None
) -> Iterator[tuple[int, int, list[dict]]]:
    """Yields batches of random clips of the training split.

    The draw is random because the corpus cycles through its instruments: taking every n-th clip would skip some.

    Args:
      corpus: folder of records.
      clips: number of clips; 0, or more than there are, takes all.
      seed: seed of the draw.
      read: reader of the records; `records.read_audio_records` by default.

    Yields:
      (clips so far, total clips, batch).
    """
    from musiclm_jax.data import records

    paths = records.shard_paths(corpus, "train")
    count = sum(1 for path in paths for _ in records.serialized_records(path))
    total = min(clips, count) if clips else count
    drawn = np.zeros(count, bool)
    drawn[np.random.default_rng(seed).choice(count, total, replace=False)] = True
    batch: list[dict] = []
    done = 0
    for index, clip in enumerate((read or records.read_audio_records)(paths)):
        if not drawn[index]:
            continue
        batch.append(clip)
        done += 1
        if len(batch) == BATCH_SIZE or done == total:
            yield done, total, batch
            batch = []


def filled(batch: list[dict]) -> list[dict]:
    """Pads a batch to `BATCH_SIZE` by repeating its last clip, so that only one shape is compiled."""
    return batch + batch[-1:] * (BATCH_SIZE - len(batch))
