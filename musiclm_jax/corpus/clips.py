"""Draws, renders and captions one clip; needs neither TensorFlow nor the libraries that read scores."""

import dataclasses

import numpy as np

from musiclm_jax.corpus import arrangement, captions, compositions, instruments, rendering
from musiclm_jax.corpus.scores import Score

MAX_DRAWS = 40


@dataclasses.dataclass
class Clip:
    """One clip: `fields` are keyword arguments of records.audio_example, `extra` is further metadata."""

    fields: dict
    extra: dict


def make_clip(renderer: rendering.Renderer, pool: list[Score], seed: int, split: str, index: int) -> Clip:
    """Draws, renders and captions clip `index` of a split; depends only on its arguments.

    Args:
      renderer: the synthesizer.
      pool: the split's scores.
      seed: the corpus's seed.
      split: name of the split.
      index: number of the clip; the lead instruments take turns.

    Raises:
      RuntimeError: if none of MAX_DRAWS draws is suitable.
    """
    rng = np.random.default_rng((seed, compositions.SPLIT_NUMBERS[split], index))
    due = instruments.LEADS[index % len(instruments.LEADS)]
    reasons = []
    for _ in range(MAX_DRAWS):
        score, texture, lead = arrangement.choose(rng, pool, split == "test", due)
        try:
            plan = arrangement.arrange(rng, score, texture, lead)
            seconds = arrangement.CLIP_SECONDS + plan.preroll
            groups = (plan.lead_tracks, plan.other_tracks, plan.drum_tracks)
            stems = [
                (renderer.stem(tracks, seconds), level)
                for tracks, level in zip(groups, plan.levels_db, strict=True)
                if tracks
            ]
            audio = rendering.mix([stem for stem, _ in stems], [level for _, level in stems])
            audio = rendering.add_room(audio, plan.room, rng)[round(plan.preroll * rendering.RATE) :]
            audio, gain_db = rendering.set_loudness(audio, plan.gain_db)
            break
        except (arrangement.UnsuitableError, rendering.SilentError) as error:
            reasons.append(f"{score.id} on {lead.name}: {error}")
    else:
        raise RuntimeError(f"clip {split}-{index}: none of {MAX_DRAWS} draws is suitable; the last: {reasons[-3:]}")
    fields = {
        "id": f"{split}-{index:05d}",
        "audio": audio,
        "caption": captions.captions(plan, gain_db, rng),
        "aspects": captions.aspects(plan, gain_db, rng),
        "composition": score.composition,
        "kind": score.kind,
        "instrument": lead.name,
        "texture": texture,
        "key": plan.key,
        "bpm": plan.bpm,
        "held_out_pair": int(arrangement.held_out(lead.name, score.kind)),
        "pitch_class": plan.pitch_class,
        "gain_db": gain_db,
    }
    extra = {
        "split": split,
        "score": score.id,
        "title": score.title,
        "voices": plan.voices,
        "companions": plan.companions,
        "mode": plan.mode,
        "tempo": plan.tempo,
        "room": plan.room,
        "piece": plan.piece,
        "font": plan.lead_tracks[0][0],
        "drums": bool(plan.drum_tracks),
        "redrawn": len(reasons),
    }
    return Clip(fields, extra)
