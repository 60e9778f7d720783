"""A bundle of miniature models with random weights; it has every part of a real bundle."""

import atexit
import functools
import json
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import bundles
from musiclm_jax.stages import layout, transformer
from musiclm_jax.stages.config import StageModelConfig
from musiclm_jax.tokenizers import mulan, soundstream, w2v_bert
from musiclm_jax.tokenizers.melody import MelodyConfig, MelodyLearner
from musiclm_jax.tokenizers.mulan import MulanLearner
from musiclm_jax.tokenizers.soundstream import model as soundstream_model
from musiclm_jax.tokenizers.w2v_bert.learner import W2vBertLearner
from musiclm_jax.training import partitioning

CODES = 16  # size of every codebook
STAGE_SIZES = {
    "mulan_codebook_size": CODES,
    "semantic_codebook_size": CODES,
    "acoustic_codebook_size": CODES,
    "full_vocabulary": False,
}
STAGES = {
    "semantic": layout.semantic_stage(seconds=1.6, **STAGE_SIZES),
    "coarse": layout.coarse_stage(seconds=0.8, **STAGE_SIZES),
    "fine": layout.fine_stage(seconds=0.4, **STAGE_SIZES),
}
TRANSFORMER = transformer.TransformerConfig(
    num_layers=1, num_heads=2, d_model=16, d_ff=16, attention_block_size=0, dropout=0.0
)
SOUNDSTREAM = soundstream.SoundStreamConfig(
    patch_size=8, channels=2, strides=(3, 4, 5), dilations=(1,), embedding_dim=8, codebook_size=CODES
)
W2V_BERT = w2v_bert.W2vBertConfig(
    d_model=8,
    contrastive_layers=1,
    mlm_layers=1,
    num_heads=2,
    feature_layer=1,
    codebook_size=8,
    codebook_dim=8,
    num_clusters=CODES,
)
MULAN = mulan.MulanConfig(
    window_seconds=1.0,
    num_mels=32,
    stem_width=4,
    stage_widths=(4, 8),
    stage_blocks=(1, 1),
    bottleneck=False,
    norm_groups=2,
    vocab_size=64,
    text_width=8,
    text_layers=1,
    text_heads=2,
    text_mlp=8,
    text_positions=64,
    max_text_tokens=32,
    projection_hidden=0,
    embedding_dim=8,
    codebook_size=CODES,
)
MELODY = MelodyConfig(
    num_mels=32,
    patch_frames=8,
    patch_hop=8,
    patch_mels=32,
    num_layers=1,
    num_heads=2,
    head_dim=4,
    width=8,
    mlp_width=8,
    embedding_dim=8,
    codebook_size=CODES,
)
MELODIC = layout.semantic_stage(seconds=1.6, melody_quantizers=6, melody_codebook_size=CODES, **STAGE_SIZES)
WORDS = ["fiddle", "piano", "jig", "slow", "organ", "a", "the", "on"]


def write_vocab(path: pathlib.Path) -> pathlib.Path:
    letters = [chr(ord("a") + i) for i in range(26)]
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters[1:], *("##" + c for c in letters)]))
    return path


def copy(folder: pathlib.Path) -> pathlib.Path:
    """Copies the bundle, for tests that modify it."""
    shutil.copytree(path(), folder)
    return folder


@functools.cache
def path() -> pathlib.Path:
    """Returns the bundle's path; it is created once per process and must not be modified."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="miniature_bundle_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = np.random.default_rng(0)

    variables = {
        "params": random_like(soundstream_model.init_params, SOUNDSTREAM, jax.random.key(0)),
        "codebooks": rng.normal(size=(SOUNDSTREAM.num_quantizers, CODES, SOUNDSTREAM.embedding_dim)),
    }
    bundles.save_part(folder, "soundstream", SOUNDSTREAM, variables)

    params = random_like(W2vBertLearner(W2V_BERT).init, jax.random.key(0)).params
    variables = {
        "params": w2v_bert.inference_params(W2V_BERT, params),
        "feature_mean": np.zeros(W2V_BERT.d_model),
        "feature_std": np.ones(W2V_BERT.d_model),
        "centroids": rng.normal(size=(CODES, W2V_BERT.d_model)),
    }
    bundles.save_part(folder, "w2v_bert", W2V_BERT, variables)

    learner = MulanLearner(MULAN, vocab=str(write_vocab(folder / "vocab.txt")))
    dim = MULAN.embedding_dim
    variables = learner.variables(random_like(learner.init, jax.random.key(0))) | {
        "audio_mean": np.zeros(dim),
        "text_mean": np.zeros(dim),
        "audio_map": np.eye(dim),
        "text_map": np.eye(dim),
        "codebooks": 0.3 * rng.normal(size=(MULAN.num_quantizers, CODES, dim)),
    }
    bundles.save_mulan(folder, MULAN, variables)
    tags = {"tags": ["fiddle", "piano", "slow"], "captions": ["a jig on the fiddle", "a slow piano"]}
    (folder / "tags.json").write_text(json.dumps(tags))

    for name, stage in STAGES.items():
        params = random_like(transformer.init_params, TRANSFORMER, stage.vocabulary.rows, jax.random.key(0))
        bundles.save_part(folder, name, StageModelConfig(stage, TRANSFORMER), {"params": params})
    bundles.save_generation(folder, bundles.GenerationConfig(max_seconds=3.0))
    return folder


def melodic(folder: pathlib.Path) -> pathlib.Path:
    """Copies the bundle, and adds a melody model and a semantic stage conditioned on it."""
    copy(folder)
    rng = np.random.default_rng(1)
    params = random_like(MelodyLearner(MELODY).init, jax.random.key(0)).params
    codebooks = rng.normal(size=(MELODY.num_quantizers, CODES, MELODY.embedding_dim))
    bundles.save_part(folder, "melody", MELODY, {"params": params, "codebooks": codebooks})
    params = random_like(transformer.init_params, TRANSFORMER, MELODIC.vocabulary.rows, jax.random.key(0))
    bundles.save_part(folder, "semantic_melody", StageModelConfig(MELODIC, TRANSFORMER), {"params": params})
    return folder


def random_like(init, *arguments):
    """Returns random numbers in the shapes that `init` returns, without compiling it."""
    static = [argument for argument in arguments if not isinstance(argument, jax.Array)]
    shapes = partitioning.unbox(jax.eval_shape(functools.partial(init, *static), arguments[-1]))
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        if not np.issubdtype(shape.dtype, np.floating):
            return np.zeros(shape.shape, shape.dtype)
        if len(shape.shape) < 2:
            return np.full(shape.shape, float("scale" in jax.tree_util.keystr(path)), np.float32)
        return rng.normal(0, np.prod(shape.shape[:-1]) ** -0.5, shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def tone(seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * 440 * np.arange(int(24_000 * seconds)) / 24_000).astype(np.float32) / 2


def stack_layers(params: dict) -> dict:
    """Inverts `transformer.unstack_layers`."""
    count = sum(name.startswith("layers_") for name in params)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[f"layers_{i}"] for i in range(count)))
    return {name: value for name, value in params.items() if not name.startswith("layers_")} | {"layers": stacked}
