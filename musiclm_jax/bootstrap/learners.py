"""Reads the learners of a bootstrap from the pack, and chooses how each draws batches from the resident data."""

import dataclasses
import functools
import pathlib
from typing import Any

from musiclm_jax.bootstrap import resident
from musiclm_jax.bootstrap.sizes import TRAININGS, Sizes
from musiclm_jax.bundles import config_from_json
from musiclm_jax.data import files
from musiclm_jax.data.tokens import ACOUSTIC, MULAN
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.tokenizers.mulan import MulanLearner
from musiclm_jax.tokenizers.soundstream.learner import SoundStreamLearner
from musiclm_jax.tokenizers.w2v_bert.learner import W2vBertLearner

CLASSES: dict[str, Any] = dict.fromkeys(TRAININGS, StageLearner) | {
    "soundstream": SoundStreamLearner,
    "decoder": SoundStreamLearner,
    "w2v_bert": W2vBertLearner,
    "mulan": MulanLearner,
}


def is_stage(name: str) -> bool:
    """Returns whether a part, one of TRAININGS, is a stage."""
    return issubclass(CLASSES[name], StageLearner)


def read(path: pathlib.Path, sizes: Sizes, vocab: pathlib.Path) -> dict[str, Any]:
    """Reads the learners of all parts.

    Args:
      path: JSON with the configuration of each part, exported from gin files.
      sizes: its batch sizes, dtype and discriminators override the configurations.
      vocab: vocabulary file of the text encoder.

    Returns:
      Part to learner. Learning rates are constant after the warm-up, since parts train for a given time instead of a
      number of steps.
    """
    described = files.read_json(path, "make the pack again (musiclm bootstrap --pack)")
    return {name: _learner(name, described[name], sizes, vocab) for name in TRAININGS}


def _learner(name: str, described: dict[str, Any], sizes: Sizes, vocab: pathlib.Path) -> Any:
    learner = config_from_json(CLASSES[name], {"config": described["config"]} | described["learner"], name)
    learner = dataclasses.replace(learner, optimizer=constant(learner.optimizer))
    if isinstance(learner, StageLearner):
        execution = {name: getattr(sizes, name) for name in ("dtype", "scan_layers", "round_products")}
        return dataclasses.replace(learner, config=dataclasses.replace(learner.config, **execution))
    if isinstance(learner, SoundStreamLearner):
        vectors = sizes.batch[name] * sizes.seconds[name] * ACOUSTIC.frame_rate
        codec = dataclasses.replace(
            learner.config,
            dtype=sizes.dtype,
            dead_code_threshold=0.2 * vectors / learner.config.codebook_size,
            **sizes.discriminators,
        )
        second = constant(learner.discriminator_optimizer)
        return dataclasses.replace(learner, config=codec, discriminator_optimizer=second)
    if isinstance(learner, MulanLearner):
        return dataclasses.replace(learner, text_weights=None, vocab=str(vocab))
    return learner


def constant(optimizer: Any) -> Any:
    """Makes the learning rate constant after the warm-up; `resident.train_for` lowers it over time."""
    return dataclasses.replace(optimizer, schedule="constant")


def draw(name: str, learner: Any, sizes: Sizes) -> resident.Draw:
    """Returns the function that draws a part's batches."""
    batch = sizes.batch[name]
    if isinstance(learner, StageLearner):
        share = caption_share(learner, sizes)
        return functools.partial(resident.draw_tokens, batch=batch, stage=learner.stage, caption_share=share)
    drawn = resident.draw_pairs if name == "mulan" else resident.draw_audio
    return functools.partial(drawn, batch=batch, samples=resident.crop_samples(sizes.seconds[name]))


def caption_share(learner: StageLearner, sizes: Sizes) -> float:
    """Returns the share of a stage's crops conditioned on a text's codes; 0 for stages without MuLan conditioning."""
    return sizes.caption_share if any(part.stream == MULAN.name for part in learner.stage.conditioning) else 0.0
