"""Registers what gin files can name: learners, configs and tasks. `train` itself is in launch/train.py.

Registration is external, so the library never imports gin.
"""

import gin

from musiclm_jax.stages import layout, transformer
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.tasks import coarse, corpus, fine, melody, mulan, musiccaps, semantic, soundstream
from musiclm_jax.tasks import w2v_bert as w2v_bert_task
from musiclm_jax.tokenizers import w2v_bert
from musiclm_jax.tokenizers.melody import MelodyConfig, MelodyLearner
from musiclm_jax.tokenizers.mulan import config as mulan_config
from musiclm_jax.tokenizers.mulan import learner as mulan_learner
from musiclm_jax.tokenizers.quantization import RVQConfig
from musiclm_jax.tokenizers.soundstream import learner as soundstream_learner
from musiclm_jax.tokenizers.soundstream import model as soundstream_model
from musiclm_jax.tokenizers.w2v_bert import learner as w2v_bert_learner
from musiclm_jax.training import partitioning
from musiclm_jax.training.optimizers import OptimizerConfig

CONFIGURABLES = (
    # learners
    soundstream_learner.SoundStreamLearner,
    w2v_bert_learner.W2vBertLearner,
    mulan_learner.MulanLearner,
    MelodyLearner,
    StageLearner,
    # their configs
    soundstream_model.SoundStreamConfig,
    RVQConfig,
    w2v_bert.W2vBertConfig,
    mulan_config.MulanConfig,
    MelodyConfig,
    transformer.TransformerConfig,
    layout.semantic_stage,
    layout.coarse_stage,
    layout.fine_stage,
    OptimizerConfig,
    # their data
    soundstream.soundstream_task,
    w2v_bert_task.w2v_bert_task,
    mulan.mulan_task,
    melody.melody_task,
    semantic.semantic_task,
    coarse.coarse_task,
    fine.fine_task,
    corpus.corpus_task,
    musiccaps.musiccaps_task,
    # where they run
    partitioning.make_mesh,
)

# External registration wraps only the call, so dataclasses keep their name and type.
for _configurable in CONFIGURABLES:
    gin.external_configurable(_configurable, name=_configurable.__name__)
