"""Keeps the tokens of a bootstrap in a file, so that its stages train further without rendering and encoding again."""

import hashlib
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.bundles import Bundle
from musiclm_jax.data import files

FILE = "tokens.npz"
SETTINGS, TRAIN, HELD_OUT = "settings", "train/", "held_out/"  # entries of the file, prefixes of entries
TOKENIZERS = ("w2v_bert", "mulan", "melody")
Tokens = dict[str, jax.Array]


def settings(sizes: Any, seed: int, *bundles: Bundle) -> dict[str, Any]:
    """Returns what the tokens depend on: the clips, their texts, and the tokenizers' weights in the bundles."""
    own = {name: getattr(sizes, name) for name in ("blocks", "block", "leads_every", "validation", "texts")}
    own |= {"text_length": sizes.text_length, "human_texts": sizes.human_texts, "seed": seed}
    parts = [(name, part["sha256"]) for bundle in bundles for name, part in bundle.config["parts"].items()]
    own |= {name: digest for name, digest in parts if name in TOKENIZERS}
    codecs = [_codec_digest(bundle) for bundle in bundles if bundle.has("soundstream")]
    return own | {"soundstream": codecs}


def _codec_digest(bundle: Bundle) -> str:
    """Identifies what makes acoustic tokens: encoder and codebooks, since the decoder may be trained further."""
    variables = bundle.part("soundstream").variables
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((variables["params"]["encoder"], variables["codebooks"])):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def save(path: pathlib.Path, made_with: Mapping[str, Any], tokens: Tokens, held_out: Tokens) -> None:
    """Writes the tokens of the training and the validation split.

    Args:
      path: the file.
      made_with: from `settings`.
      tokens: streams by name, each int `[clips, ...]`.
      held_out: likewise.
    """
    arrays: dict[str, Any] = {TRAIN + name: np.asarray(codes) for name, codes in tokens.items()}
    arrays |= {HELD_OUT + name: np.asarray(codes) for name, codes in held_out.items()}
    arrays[SETTINGS] = np.array(json.dumps(made_with, sort_keys=True))
    with files.replaced(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def load(path: pathlib.Path, made_with: Mapping[str, Any]) -> tuple[Tokens, Tokens] | None:
    """Reads the tokens of the training and the validation split; None if there are none made with these settings.

    Raises:
      ValueError: if the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file[SETTINGS]) != json.dumps(made_with, sort_keys=True):
                return None
            tokens, held_out = (
                {name.removeprefix(prefix): jnp.asarray(file[name]) for name in file.files if name.startswith(prefix)}
                for prefix in (TRAIN, HELD_OUT)
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the tokens are computed again") from error
    return tokens, held_out
