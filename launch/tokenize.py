"""`musiclm tokenize`: converts audio records or a folder of audio files to token records for training the stages.

Works shard by shard: after an interruption, the same command resumes at the first unfinished shard.
"""

import argparse
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from musiclm_jax.data import clip_arrays, files
from musiclm_jax.data.settings import check_settings
from musiclm_jax.launch import command

if TYPE_CHECKING:
    from musiclm_jax.data.recordings import Rejected

TOKENIZERS_FILE = "tokenizers.json"  # in a folder of token records: hashes of the weights that made them
RECORD_FIELDS = ("id", "caption", "instrument", "composition", "held_out_pair")


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    p = command.Parser("tokenize", "convert audio records or a folder of audio files to token records for the stages")
    p.add_argument(
        "--bundle",
        type=command.bundle,
        required=True,
        help="bundle with soundstream, w2v_bert, mulan and optionally melody",
    )
    p.add_argument(
        "--corpus",
        type=command.local_path,
        required=True,
        help="folder of audio records (`musiclm corpus`) or of audio files",
    )
    p.add_argument("--output", type=command.local_path, required=True, help="folder for the token records")
    p.add_argument(
        "--reuse",
        type=command.local_path,
        help="folder of token records of the same corpus: keeps the streams of unchanged tokenizers",
    )
    p.add_argument(
        "--sung",
        action="store_true",
        help="make most clips' melody tokens from the lead alone, sung or whistled",
    )
    p.add_argument(
        "--captions",
        type=int,
        default=0,
        metavar="N",
        help="also store the MuLan codes of N captions per clip, for stages trained with a caption_share",
    )
    p.add_argument(
        "--npz",
        type=command.local_path,
        metavar="FILE",
        help="also write all tokens into one .npz file, which `musiclm train --resident` reads like the folder",
    )
    p.add_argument("--batch_size", type=int, default=8, help="clips encoded at once")
    p.add_argument("--clip_seconds", type=float, default=10.0, help="length of the clips cut from audio files")
    p.add_argument("--shards", type=int, default=16, help="shards of the training split, for audio files (default: 16)")
    return p


def main(arguments: list[str]) -> int:
    """Runs the command.

    Raises:
      ValueError: if the corpus has neither records nor audio files, the bundle lacks a tokenizer, the output holds
        tokens of another bundle, of other files or options, the tokens to reuse belong to other clips, or --sung finds
        no lead.
    """
    args = parser().parse_args(arguments)
    if args.npz and not clip_arrays.is_npz(args.npz):
        raise ValueError(f"--npz {args.npz}: the name of the file must end with .npz")
    command.enable_compilation_cache()
    from musiclm_jax import bundles
    from musiclm_jax.bundles.encode import Tokenizers

    bundle = bundles.load(args.bundle)
    tokenizers = Tokenizers.from_bundle(bundle)
    if args.sung and tokenizers.melody is None:
        raise ValueError(f"--sung: the bundle {bundle.path} has no melody model: give another bundle, or remove --sung")
    from musiclm_jax.data.recordings import Rejected
    from musiclm_jax.launch import quiet_tensorflow  # noqa: F401  before anything imports TensorFlow

    corpus, output = pathlib.Path(args.corpus).expanduser(), pathlib.Path(args.output).expanduser()
    check_corpus(corpus)
    output.mkdir(parents=True, exist_ok=True)
    with files.locked(output, "musiclm tokenize"):
        rejected = Rejected(output)
        tokenize_shards(args, bundle, tokenizers, output, rejected)
        if args.npz:
            clips = clip_arrays.write_npz(output, args.npz)
            told = ", ".join(f"{count:,} clips of {split}" for split, count in clips.items())
            print(f"{args.npz}: {told}", file=sys.stderr)
    return report(output, rejected)


def tokenize_shards(
    args: argparse.Namespace, bundle: Any, tokenizers: Any, output: pathlib.Path, rejected: "Rejected"
) -> None:
    """Writes the shards that are missing.

    Args:
      args: arguments of the command.
      bundle: the bundle.
      tokenizers: its tokenizers.
      output: folder of the shards; exists.
      rejected: gets the recordings that are left out; saved with each shard.

    Raises:
      ValueError: as `main`.
    """
    from musiclm_jax.data import records

    check_same_tokenizers(bundle, output, args.sung)
    check_settings(output, settings_of(args), "give another --output, or remove that folder")
    jobs = list(shard_jobs(pathlib.Path(args.corpus).expanduser(), output, args, rejected))
    kept = reusable(bundle, pathlib.Path(args.reuse).expanduser(), args.sung) if args.reuse else []
    if args.reuse:
        print(f"kept from {args.reuse}: {', '.join(kept) or 'nothing'}", file=sys.stderr)

    todo = [job for job in jobs if not job[0].exists()]
    print(f"{len(jobs)} shards, {len(jobs) - len(todo)} of them done already", file=sys.stderr)
    progress = command.ProgressPrinter(sys.stderr)
    clips = 0
    start = time.monotonic()
    for index, (target, clip_source) in enumerate(todo):
        examples = []
        known = known_codes(pathlib.Path(args.reuse).expanduser() / target.name, kept) if kept else {}
        for batch in batched(clip_source(), args.batch_size):
            streams = tokenize_batch(tokenizers, batch, args.batch_size, kept, args.sung)
            of_texts = caption_codes(tokenizers, batch, args.captions) if args.captions else [None] * len(batch)
            for row, clip in enumerate(batch):
                if kept and clip["id"] not in known:
                    raise ValueError(f"--reuse {args.reuse} has no clip {clip['id']}: give tokens of the same corpus")
                codes = {name: stream[row] for name, stream in streams.items()} | known.get(clip["id"], {})
                fields = {name: clip[name] for name in RECORD_FIELDS}
                examples.append(records.token_example(**fields, **codes, caption_mulan=of_texts[row]))
            clips += len(batch)
            rate = clips / (time.monotonic() - start)
            progress(f"tokenize {target.name} ({clips} clips, {rate:.1f}/s)", index, len(todo))
        rejected.save()  # first: a shard with its name is done, and with it what was left out
        write_shard(target, examples)
    progress(f"tokenize ({clips} clips)", len(todo), len(todo))


def report(output: pathlib.Path, rejected: "Rejected") -> int:
    """Says what the folder holds, what was left out, and which splits are empty; returns the exit code."""
    from musiclm_jax.data import records

    counts = {split: sum(map(records.check_whole, output.glob(f"{split}-*.tfrecord"))) for split in records.SPLITS}
    held = ", ".join(f"{count:,} in {split}" for split, count in counts.items())
    print(f"{output}: {sum(counts.values()):,} clips ({held})", file=sys.stderr)
    if left_out := rejected.counts():
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        print(f"left out, of so many files: {kinds}; {rejected.path} says which and why", file=sys.stderr)
    if not any(counts.values()):
        print(f"musiclm tokenize: no file of the corpus gave a clip: {rejected.path} says why", file=sys.stderr)
        return 1
    empty = [split for split, count in counts.items() if count == 0]
    if "train" in empty:
        print(f"{output}: no clip in the train split: give more songs, or longer ones", file=sys.stderr)
    elif empty:
        print(
            f"{output}: no clip in {' and '.join(empty)}: give three songs or more for splits that are held out, or "
            "train without evaluation (--gin.train.eval_split=None)",
            file=sys.stderr,
        )
    return 0


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what the tokens of a folder depend on besides the weights: options, and names and sizes of the input."""
    from musiclm_jax.data import recordings

    corpus = pathlib.Path(args.corpus).expanduser()
    if shards := sorted(corpus.glob("*.tfrecord")):
        return {"captions": args.captions, "files": {path.name: path.stat().st_size for path in shards}}
    songs = recordings.sound_files(corpus)
    texts = [path.with_suffix(".txt") for path in songs]
    found = {files.shown(path.relative_to(corpus)): path.stat().st_size for path in [*songs, *texts] if path.exists()}
    own = {"captions": args.captions, "clip_seconds": args.clip_seconds, "shards": args.shards}
    return own | {"files": dict(sorted(found.items()))}


def batched(items: Iterator[dict], size: int) -> Iterator[tuple[dict, ...]]:
    """Yields tuples of `size` items; the last may be shorter (itertools.batched needs Python 3.12)."""
    while batch := tuple(itertools.islice(items, size)):
        yield batch


def tokenize_batch(
    tokenizers: Any, clips: Sequence[dict], batch_size: int, known: Collection[str] = (), sung: bool = False
) -> dict[str, np.ndarray]:
    """Tokenizes clips whose "audio" has equal length; pads a short batch, so that only one shape is compiled.

    Args:
      tokenizers: tokenizers of the bundle.
      clips: records.
      batch_size: clips encoded at once.
      known: streams to skip.
      sung: take melody tokens from the clip's lead alone.

    Returns:
      Codes by stream, each `[clips, ...]`.

    Raises:
      ValueError: if `sung` is set and a clip does not record its lead.
    """
    from musiclm_jax.bundles.encode import encode_melody
    from musiclm_jax.corpus import leads
    from musiclm_jax.data.tokens import MELODY

    filled = [*clips, *[clips[-1]] * (batch_size - len(clips))]
    streams = tokenizers.tokenize(np.stack([clip["audio"] for clip in filled]), known)
    if sung and MELODY.name in streams:
        if missing := [clip["id"] for clip in clips if "pitch_class" not in clip]:
            raise ValueError(
                f"--sung: clip {missing[0]} has no pitch classes of a lead; give a corpus of `musiclm corpus`"
            )
        heard = [leads.performed(clip["id"], clip["audio"], clip["pitch_class"]) for clip in filled]
        streams[MELODY.name] = np.asarray(encode_melody(tokenizers.melody, np.stack(heard)))
    return {name: codes[: len(clips)] for name, codes in streams.items()}


def caption_codes(tokenizers: Any, clips: Sequence[dict], count: int) -> list[np.ndarray]:
    """Returns MuLan codes of each clip's captions, int `[count, 12]`: repeated if too few, `[0, 12]` if none."""
    texts = [list(itertools.islice(itertools.cycle(clip["caption"]), count)) for clip in clips]
    known = [[text for text in own if text.strip()] for own in texts]
    if not any(known):
        return [np.zeros((0, 12), np.int32) for _ in clips]
    codes = iter(tokenizers.caption_codes([text for own in known for text in own]))
    return [np.stack(list(itertools.islice(codes, len(own)))) if own else np.zeros((0, 12), np.int32) for own in known]


def made_by(bundle: Any, sung: bool) -> dict[str, str]:
    """Identifies what makes the tokens: a hash of the weights of each tokenizer in the bundle."""
    from musiclm_jax.bundles.encode import MADE_BY

    used = [part for part in MADE_BY.values() if bundle.has(part)]
    parts = {part: bundle.config["parts"][part]["sha256"] for part in used}
    return parts | ({"melody": f"{parts['melody']}, of the lead by itself"} if sung else {})


def reusable(bundle: Any, tokens: pathlib.Path, sung: bool) -> list[str]:
    """Returns the streams in a folder of token records that were made with the bundle's weights from the same audio.

    Raises:
      ValueError: if the folder does not record what made its tokens.
    """
    from musiclm_jax.bundles.encode import MADE_BY

    made = files.read_json(tokens / TOKENIZERS_FILE, "give a folder of tokens to --reuse")
    own = made_by(bundle, sung)
    return [stream for stream, part in MADE_BY.items() if part in made and own.get(part) == made[part]]


def known_codes(shard: pathlib.Path, streams: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Reads the codes of some streams from a shard of token records, by clip id; empty if the shard is missing."""
    from musiclm_jax.data import records

    if not shard.exists():
        return {}
    return {clip["id"]: {name: clip[name] for name in streams} for clip in records.read_token_records([str(shard)])}


def write_shard(target: pathlib.Path, examples: list[bytes]) -> None:
    """Writes a TFRecord file whole or not at all."""
    import tensorflow as tf

    with files.replaced(target) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
        for example in examples:
            writer.write(example)


def check_same_tokenizers(bundle: Any, output: pathlib.Path, sung: bool) -> None:
    """Checks that one folder does not mix tokens of different tokenizers.

    Raises:
      ValueError: if `output` was started with other weights.
    """
    parts, path = made_by(bundle, sung), output / TOKENIZERS_FILE
    if not path.exists():
        files.write(path, json.dumps(parts, indent=1) + "\n")
        return
    begun = files.read_json(path, "it says which weights made the tokens; give another --output, or remove that folder")
    if changed := sorted(part for part in begun.keys() | parts.keys() if begun.get(part) != parts.get(part)):
        raise ValueError(
            f"{output} holds tokens made with another {', '.join(changed)} than that of {bundle.path}: give another "
            "--output, or remove that folder"
        )


def check_corpus(corpus: pathlib.Path) -> None:
    """Checks that a folder holds audio records or sound files.

    Raises:
      ValueError: if it does not.
    """
    from musiclm_jax.data import audio, recordings

    if not corpus.is_dir():
        raise ValueError(f"--corpus {corpus}: no such folder")
    if not any(corpus.glob("*.tfrecord")) and not recordings.sound_files(corpus):
        raise ValueError(
            f"--corpus {corpus}: contains neither .tfrecord files nor audio files ({', '.join(audio.READABLE)})"
        )


def shard_jobs(
    corpus: pathlib.Path, output: pathlib.Path, args: argparse.Namespace, rejected: "Rejected"
) -> Iterator[tuple]:
    """Yields (path of the token shard, function that yields its clips)."""
    from musiclm_jax.data import recordings, records

    if any(corpus.glob("*.tfrecord")):
        for split in records.SPLITS:
            if any(corpus.glob(f"{split}-*.tfrecord")):
                for path in records.shard_paths(corpus, split):
                    yield output / pathlib.Path(path).name, lambda path=path: records.read_audio_records([path])
        return
    songs = recordings.sound_files(corpus)
    copies = recordings.copies(songs)
    for copy, original in copies.items():
        rejected.add(files.shown(copy.relative_to(corpus)), "copy", f"{copy} has the same bytes as {original}")
    for split, own in recordings.splits([song for song in songs if song not in copies], corpus).items():
        shards = args.shards if split == "train" else 1
        for index in range(shards):
            yield (
                records.shard_path(output, split, index, shards),
                lambda mine=own[index::shards]: recordings.clips(mine, corpus, args.clip_seconds, rejected),
            )
