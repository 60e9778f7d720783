import dataclasses

import jax
import jax.numpy as jnp
import miniature
import numpy as np
import pytest

from musiclm_jax.stages import transformer
from musiclm_jax.stages.layout import coarse_stage, fine_stage, semantic_stage
from musiclm_jax.stages.stage import ConditionSpan
from musiclm_jax.stages.transformer import TransformerConfig
from musiclm_jax.training.partitioning import unbox

ROWS, LENGTH = 128, 21
SMALL = TransformerConfig(
    num_layers=2,
    num_heads=2,
    d_model=16,
    d_ff=24,
    dropout=0.0,
    relative_buckets=8,
    relative_max_distance=12,
    attention_block_size=8,
    time_embedding=True,
    aligned_condition=True,
)
SPANS = (ConditionSpan(frames=1, levels=2, positions=18), ConditionSpan(frames=3, levels=1, positions=6))
TIMES = np.concatenate([[-1, -1], np.arange(LENGTH - 2)])


def random_params(config: TransformerConfig) -> transformer.Params:
    """Returns parameters unlike their initialization: scales and gains vary, too."""
    params = unbox(jax.jit(lambda key: transformer.init_params(config, ROWS, key))(jax.random.key(0)))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(2).integers(0, ROWS, (2, LENGTH)).astype(np.int32)


def run(config, params, tokens, valid=None):
    valid = np.ones(tokens.shape, bool) if valid is None else valid
    return jax.jit(lambda p, t, v: transformer.hidden_states(config, p, t, TIMES, SPANS, v))(params, tokens, valid)


@pytest.mark.parametrize("make", [semantic_stage, coarse_stage, fine_stage])
def test_paper_size_is_430_million_parameters(make):
    rows = make().vocabulary.rows
    params = jax.eval_shape(lambda key: transformer.init_params(TransformerConfig(), rows, key), jax.random.key(0))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    assert sizes["layers"] == 24 * (4 * 1024**2 + 3 * 1024 * 4096 + 2 * 1024)
    assert sizes["embedding"] == 25_728 * 1024
    assert sum(sizes.values()) == pytest.approx(430e6, rel=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_block_size": 0},
        {"scan_layers": False},
        {"remat": "full"},
        {"remat": "full", "remat_attention": True},
        {"scan_layers": False, "remat": "dots_with_no_batch_dims_saveable"},
    ],
)
def test_ways_to_run_give_the_same_values_and_gradients(params, tokens, change):
    valid = np.ones(tokens.shape, bool)
    valid[1, 5:9] = False
    weight = np.random.default_rng(3).normal(size=(2, LENGTH, 16)).astype(np.float32)

    def objective(params, config):
        return jnp.sum(weight * transformer.hidden_states(config, params, tokens, TIMES, SPANS, valid))

    grad = jax.jit(jax.value_and_grad(objective), static_argnums=1)
    value, gradient = grad(params, dataclasses.replace(SMALL, **change))
    expected, expected_gradient = grad(params, SMALL)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, expected_gradient)


def test_a_frequent_id_changes_neither_values_nor_gradients(params, tokens):
    frequent = 5
    tokens = np.where(np.random.default_rng(3).random(tokens.shape) < 0.6, frequent, tokens)

    def gradients(frequent_id):
        def loss(p):
            valid = np.ones(tokens.shape, bool)
            hidden = transformer.hidden_states(SMALL, p, tokens, TIMES, SPANS, valid, frequent_id=frequent_id)
            return jnp.sum(hidden * np.arange(hidden.size).reshape(hidden.shape) / hidden.size)

        return jax.jit(jax.value_and_grad(loss))(params)

    (value, expected), (same, got) = gradients(None), gradients(frequent)
    np.testing.assert_allclose(same, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), got, expected)
    assert np.abs(expected["embedding"][frequent]).max() > 0.01


def test_causal_by_gradient(params, tokens):
    embedding = params["embedding"]
    tokens = np.arange(LENGTH, dtype=np.int32)[None]  # each token once: row i of the table is the input of position i

    def future(table, position):
        return jnp.sum(
            transformer.hidden_states(SMALL, params | {"embedding": table}, tokens, TIMES, SPANS, tokens >= 0)[
                0, position
            ]
        )

    gradient = jax.jit(jax.grad(future))
    for position in (0, 7, 8, 15):
        size = np.abs(gradient(embedding, position)).sum(axis=-1)
        assert (size[position + 1 :] == 0).all() and (size[: position + 1] > 0).all()


def test_padding_is_masked(params, tokens):
    valid = np.ones(tokens.shape, bool)
    valid[:, 6:9] = False  # after the conditioning, whose padding is bos and so does not vary
    other = np.where(valid, tokens, 0)
    assert (other != tokens).any()
    ours, changed = run(SMALL, params, tokens, valid), run(SMALL, params, other, valid)
    np.testing.assert_array_equal(np.asarray(ours)[valid], np.asarray(changed)[valid])
    # Without the mask, it matters.
    assert not np.allclose(run(SMALL, params, tokens)[:, 9:], run(SMALL, params, other)[:, 9:])


def test_bfloat16_is_close_to_float32(params, tokens):
    ours = run(dataclasses.replace(SMALL, dtype="bfloat16"), params, tokens)
    assert ours.dtype == jnp.bfloat16
    error = np.asarray(ours, np.float32) - run(SMALL, params, tokens)
    assert 0 < np.sqrt(np.mean(error**2)) < 0.1


def test_time_embedding_adds_the_scaled_features(params, tokens):
    features = transformer.time_features(TIMES, 16)
    assert (features[:2] == 0).all()
    np.testing.assert_allclose(features[5, [0, 8]], [np.sin(3), np.cos(3)], rtol=1e-5)
    plain = dataclasses.replace(SMALL, time_embedding=False)
    without = {name: value for name, value in params.items() if name != "time_gain"}
    silent = params | {"time_gain": np.zeros(1, np.float32)}
    np.testing.assert_allclose(run(SMALL, silent, tokens), run(plain, without, tokens), rtol=1e-5, atol=1e-6)
    assert not np.allclose(run(SMALL, params, tokens), run(plain, without, tokens), atol=0.01)


def test_aligned_condition_adds_the_current_tokens(params, tokens):
    config = dataclasses.replace(SMALL, time_embedding=False)
    model = transformer.Transformer(config, ROWS)
    without = {name: value for name, value in params.items() if name != "time_gain"}

    def features(length):
        times = np.zeros((length, 16), np.float32)
        return model.apply(
            {"params": without}, tokens, times, SPANS, length, method=transformer.Transformer.input_features
        )

    table, whole, gain = np.asarray(params["embedding"]), features(30), float(params["condition_gain"][0])
    expected = np.zeros((2, 30, 16), np.float32)
    for row in range(2):
        for i in range(
            5, 5 + 18
        ):  # inputs 1 and 2 are codes per clip, 3 to 5 are frames; input 5 predicts the first target
            frame = tokens[row, 3 + (i - 5) // 6]
            expected[row, i] = gain * (table[tokens[row, 1]] + table[tokens[row, 2]] + table[frame])
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features(LENGTH), expected[:, :LENGTH], rtol=1e-5, atol=1e-6)
    plain = dataclasses.replace(SMALL, aligned_condition=False)
    change = np.abs(np.asarray(run(SMALL, params, tokens) - run(plain, params, tokens))).max(axis=(0, 2))
    assert (change[:5] < 1e-5).all() and (change[5:] > 0.01).all()


def test_slots_apply_one_after_another(params, tokens):
    config = dataclasses.replace(SMALL, time_embedding=False)
    without = {name: value for name, value in params.items() if name != "time_gain"}
    model = transformer.Transformer(config, ROWS)
    slots = ((0, 3), (1,), (), (2, 4, 5))
    span = ConditionSpan(frames=1, levels=6, positions=3, slots=slots)
    table, gain = np.asarray(params["embedding"]), float(params["condition_gain"][0])
    for length in (14, 18, 22):  # the sequence ends before, at or after the last target
        times = np.zeros((length, 16), np.float32)
        features = model.apply(
            {"params": without}, tokens, times, (span,), length, method=transformer.Transformer.input_features
        )
        expected = np.zeros((2, 22, 16), np.float32)
        for i in range(6, 18):  # inputs 1 to 6 are the conditioning; input 6 predicts the first target
            slot = slots[(i - 6) // 3]
            expected[:, i] = gain * table[tokens[:, [1 + token for token in slot]]].sum(axis=1)
        np.testing.assert_allclose(features, expected[:, :length], rtol=1e-5, atol=1e-6)


def test_unstack_and_stack_are_inverse(params):
    apart = transformer.unstack_layers(params)
    gains = {"time_gain", "condition_gain"}
    assert set(apart) == {"embedding", "relative_bias", "final_norm", "layers_0", "layers_1"} | gains
    np.testing.assert_array_equal(apart["layers_1"]["mlp"]["up"], params["layers"]["mlp"]["up"][1])
    jax.tree.map(np.testing.assert_array_equal, miniature.stack_layers(apart), params)


def test_level_logits_by_hand():
    table = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    hidden = np.random.default_rng(1).normal(size=(1, 2, 3, 4)).astype(np.float32)
    logits = transformer.level_logits({"embedding": table}, hidden, 10, 3, 5)
    assert logits.shape == (1, 2, 3, 5)
    np.testing.assert_allclose(logits[0, 1, 2, 4], hidden[0, 1, 2] @ table[10 + 2 * 5 + 4] / 2, rtol=1e-5)


def test_parameters_name_their_logical_axes():
    boxed = jax.eval_shape(lambda key: transformer.init_params(SMALL, ROWS, key), jax.random.key(0))
    assert boxed["embedding"].names == ("vocab", "embed")
    assert boxed["layers"]["mlp"]["down"].names == ("layers", "mlp", "embed")
    assert boxed["layers"]["attention"]["qkv"].names == ("layers", "embed", "heads", None, "kv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "d_model is 16, expected an even multiple of num_heads"),
        ({"dtype": "float16"}, "dtype is 'float16', expected one of"),
        ({"remat": "some"}, "remat is 'some', expected one of"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_wrong_configs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
