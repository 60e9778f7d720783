"""Tokenizes texts to WordPiece ids with BERT's `vocab.txt`."""

import functools
import importlib.util
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers

from musiclm_jax.data import files


def resolve(path: str) -> pathlib.Path:
    """Finds a file by its path, or by `package:path` inside an installed package, which is not imported.

    Raises:
      ValueError: if the package or the file is missing.
    """
    package, colon, inside = path.partition(":")
    if not colon:
        file = pathlib.Path(path).expanduser()
    else:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"{path!r}: the package {package!r} is not installed")
        file = pathlib.Path(spec.submodule_search_locations[0]) / inside
    if not file.is_file():
        raise ValueError(f"{path!r}: no file {file}")
    return file


def read_vocab(path: str) -> bytes:
    """Reads a `vocab.txt` (one piece per line; `package:path` for a file inside a package)."""
    return files.read(resolve(path))


@functools.lru_cache(maxsize=4)
def _tokenizer(vocab: bytes) -> tokenizers.Tokenizer:
    pieces = {piece: index for index, piece in enumerate(vocab.decode("utf-8").split("\n")) if piece}
    missing = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - set(pieces)
    if missing:
        raise ValueError(f"the vocabulary of {len(pieces)} pieces lacks {sorted(missing)}: expected BERT's vocab.txt")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    ends = (("[SEP]", pieces["[SEP]"]), ("[CLS]", pieces["[CLS]"]))
    tokenizer.post_processor = tokenizers.processors.BertProcessing(*ends)
    return tokenizer


def check(vocab: bytes, size: int) -> None:
    """Checks the content of a `vocab.txt`.

    Args:
      vocab: the content.
      size: rows of the text encoder's embedding.

    Raises:
      ValueError: if it is not UTF-8, lacks BERT's special pieces, or has more pieces than the encoder.
    """
    last = max(_tokenizer(vocab).get_vocab().values())
    if last >= size:
        raise ValueError(f"line {last + 1} is beyond the {size} pieces of the text encoder")


def tokenize_texts(vocab: bytes, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Converts texts to lower-case WordPiece ids with [CLS] and [SEP]; longer texts are truncated.

    Args:
      vocab: content of `vocab.txt`; see `read_vocab`.
      texts: sequence of strings.
      max_length: length of the rows, [CLS] and [SEP] included.

    Returns:
      ids and mask, int32 `[texts, max_length]`; padding is 0 in both.

    Raises:
      ValueError: if a text is empty, or none of its pieces is in the vocabulary.
    """
    ids = np.zeros((len(texts), max_length), np.int32)
    mask = np.zeros_like(ids)
    tokenizer = _tokenizer(vocab)
    unknown = tokenizer.token_to_id("[UNK]")
    for row, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"text {row} is empty: describe the music in a few words")
        pieces = tokenizer.encode(text).ids
        if all(piece == unknown for piece in pieces[1:-1]):
            raise ValueError(f"text {row} {text[:60]!r} has no word or letter that the text encoder knows")
        if len(pieces) > max_length:
            pieces = [*pieces[: max_length - 1], pieces[-1]]
        ids[row, : len(pieces)] = pieces
        mask[row, : len(pieces)] = 1
    return ids, mask
