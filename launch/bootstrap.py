"""`musiclm bootstrap`: builds a bundle from scores on one accelerator, on a machine without a network.

    musiclm bootstrap --pack PACK                                       here: collects the training machine's input
    python -m launch.bootstrap --from PACK --output OUT --minutes 10    there, in a copy of the repository

The training machine needs Python 3.11 or newer, JAX with accelerator support, flax, optax, numpy, scipy, tokenizers,
safetensors, numba and tinysoundfont (a wheel; `pip install --no-deps`), but not TensorFlow, seqio, gin, librosa or
soundfile. OUT/bundle holds each model as soon as it is trained; OUT/bootstrap.log shows where the time went.
`--rehearsal` runs the whole chain at toy sizes.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence

from musiclm_jax.data import files
from musiclm_jax.launch import command

GIN_FILES = {
    "soundstream": "soundstream_tiny.gin",
    "decoder": "soundstream_tiny_adversarial.gin",
    "w2v_bert": "w2v_bert_tiny.gin",
    "mulan": "mulan_tiny.gin",
    "semantic": "semantic_tiny.gin",
    "coarse": "coarse_tiny.gin",
    "fine": "fine_tiny.gin",
    "semantic_melody": "semantic_tiny_melody.gin",
}
SEED_PARTS = ("text_encoder", "melody")
MUSIC_CLIPS = 240  # excerpts of recordings
SHORTEST = 20  # seconds of a recording
QUIET = 0.003  # excerpts with a lower root mean square are left out


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    p = argparse.ArgumentParser(
        prog="musiclm bootstrap", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--pack", type=command.local_path, help="folder to create: scores, sound fonts, text encoder, configurations"
    )
    what.add_argument("--from", dest="source", type=command.local_path, help="train from this folder, made by --pack")
    p.add_argument(
        "--bundle",
        type=command.bundle,
        default="tiny",
        help="--pack: source of the text encoder and the melody model (default: tiny)",
    )
    p.add_argument(
        "--human_captions", type=command.local_path, help="--pack: MusicCaps' CSV, for human captions (default: none)"
    )
    p.add_argument(
        "--music",
        type=command.local_path,
        help="--pack: folder of recordings that also train the codec (default: none)",
    )
    p.add_argument("--output", type=command.local_path, help="--from: folder for the bundle and the log")
    p.add_argument("--minutes", type=float, default=10.0, help="--from: total time budget (default: 10)")
    p.add_argument("--seed", type=int, default=0, help="--from: seed of the corpus and of training (default: 0)")
    p.add_argument("--blocks", type=int, help="--from: blocks of 2048 clips (5.7 h) to render (default: 16)")
    p.add_argument("--workers", type=int, help="--from: number of rendering processes (default: 12)")
    p.add_argument(
        "--work",
        type=command.local_path,
        help="--from: folder for rendered audio, such as /dev/shm/work (default: in OUT)",
    )
    p.add_argument("--parts", nargs="+", help="--from: parts to train, further if OUT/bundle has them (default: all)")
    p.add_argument("--cpu", action="store_true", help="--from: sizes for two CPU cores")
    p.add_argument("--rehearsal", action="store_true", help="--from: toy sizes, to test the whole chain")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Raises:
      ValueError: if the arguments are inconsistent.
    """
    args = parser().parse_args(arguments)
    if args.pack:
        pack(pathlib.Path(args.pack).expanduser(), args.bundle, args.human_captions, args.music)
        return 0
    if not args.output:
        raise ValueError("--from needs --output, the folder for the bundle")
    from musiclm_jax import bootstrap

    sizes = bootstrap.rehearsal() if args.rehearsal else bootstrap.cpu() if args.cpu else bootstrap.Sizes()
    given = {"blocks": args.blocks, "workers": args.workers}
    sizes = dataclasses.replace(sizes, **{name: value for name, value in given.items() if value is not None})
    source, output = pathlib.Path(args.source).expanduser(), pathlib.Path(args.output).expanduser()
    parts = args.parts or bootstrap.TRAININGS
    work = pathlib.Path(args.work).expanduser() if args.work else None
    output.mkdir(parents=True, exist_ok=True)
    with files.locked(output, "musiclm bootstrap"):
        bootstrap.Bootstrap(source, output, args.minutes, sizes, args.seed, work, parts).run()
    return 0


def pack(folder: pathlib.Path, bundle: str, human: str | None, music: str | None) -> None:
    """Collects everything that the training machine needs besides this repository."""
    import gin

    from musiclm_jax import bootstrap, bundles
    from musiclm_jax.corpus import human_captions
    from musiclm_jax.corpus import pack as corpus_pack
    from musiclm_jax.launch import train as launch_train

    folder.mkdir(parents=True, exist_ok=True)
    described = {}
    for name, file in GIN_FILES.items():
        launch_train.parse_gin([file], ["DATA_DIR = None"])
        learner = gin.get_bindings("train")["learner"]
        described[name] = json.loads(launch_train.config_files(learner)["config.json"])
    files.write(folder / bootstrap.LEARNERS_FILE, json.dumps(described, indent=1) + "\n")
    # The evaluation half of MusicCaps is left out.
    captions = [caption for caption in human_captions.read(human) if caption.split == "train"] if human else []
    human_captions.save(captions, folder / bootstrap.HUMAN_FILE)
    source, target = bundles.load(bundle), folder / bootstrap.SEED_BUNDLE
    target.mkdir(exist_ok=True)
    for name in SEED_PARTS:
        shutil.copy(source.file(f"{name}.safetensors"), target)
    shutil.copy(source.file("vocab.txt"), target)
    parts = {name: source.config["parts"][name] for name in SEED_PARTS}
    files.write(target / "config.json", json.dumps(source.config | {"parts": parts}, indent=1) + "\n")
    corpus = folder / bootstrap.CORPUS_FOLDER
    if not corpus_pack.is_whole(corpus):
        corpus_pack.pack(corpus)
    if music:
        pack_music(pathlib.Path(music).expanduser(), folder / bootstrap.MUSIC_FILE)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


def pack_music(source: pathlib.Path, target: pathlib.Path, clips: int = MUSIC_CLIPS, seed: int = 0) -> None:
    """Writes random 10 s excerpts of random recordings to one Ogg Opus file.

    Args:
      source: folder of recordings, searched recursively.
      target: output file.
      clips: number of excerpts.
      seed: seed of the draws.

    Raises:
      ValueError: if no recording lasts at least `SHORTEST` seconds.
    """
    import numpy as np

    from musiclm_jax import bootstrap
    from musiclm_jax.data import audio

    rng, recordings = np.random.default_rng(seed), []
    for path in [path for path in files.below(source) if path.suffix.lower() in audio.READABLE]:
        seconds = audio.seconds_of(path)
        if seconds is None:
            print(f"left out: {path} cannot be read")
        elif seconds >= SHORTEST:
            recordings.append(path)
    if not recordings:
        raise ValueError(f"--music {source} holds no recording of {SHORTEST} s or more")
    excerpts: list[np.ndarray] = []
    counts = np.bincount(rng.integers(len(recordings), size=2 * clips), minlength=len(recordings))
    for index in rng.permutation(len(recordings)):
        sound = audio.load(recordings[index]) if counts[index] else np.zeros(0, np.float32)
        if len(sound) <= bootstrap.CLIP_SAMPLES:  # not asked for, or cut short of what its header promises
            continue
        for _ in range(-(-counts[index] // 2)):
            start = int(rng.integers(len(sound) - bootstrap.CLIP_SAMPLES))
            excerpt = sound[start : start + bootstrap.CLIP_SAMPLES]
            if excerpt.std() > QUIET:  # without a constant offset, which is no sound
                excerpts.append(excerpt)
    if not excerpts:
        raise ValueError(f"--music {source} holds only silence: give recordings of music")
    excerpts = [excerpts[i] for i in rng.permutation(len(excerpts))[:clips]]
    audio.write_opus(target, excerpts)
    print(f"{target}: {len(excerpts)} excerpts of {len(recordings)} recordings, {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
