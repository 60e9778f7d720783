import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerFF, T5LayerNorm

from musiclm_jax.kernels import block_attention
from musiclm_jax.stages import layers
from musiclm_jax.training.partitioning import unbox

T5 = T5Config(d_model=24, d_kv=8, d_ff=40, num_heads=3, feed_forward_proj="gated-gelu", dropout_rate=0.0)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_buckets_by_hand():
    # 4 buckets, 2 of them exact; the other two split 2..8 at 2 * (8 / 2)^(1/2) = 4.
    distances = np.array([-3, 0, 1, 2, 3, 4, 7, 8, 100])
    np.testing.assert_array_equal(layers.relative_buckets(distances, 4, 8), [0, 0, 1, 2, 2, 3, 3, 3, 3])


def test_buckets_as_t5():
    distances = np.arange(3000)
    expected = T5Attention._relative_position_bucket(torch.from_numpy(-distances), False, 32, 128)
    np.testing.assert_array_equal(layers.relative_buckets(distances, 32, 128), expected.numpy())


def test_saturation_distance_is_the_first_of_the_last_bucket():
    near = layers.saturation_distance(32, 128)
    assert layers.relative_buckets(np.array([near - 1, near, 5000]), 32, 128).tolist() == [30, 31, 31]


def test_causal_bias_by_hand():
    bias = block_attention.causal_bias(jnp.array([[0.0, 1.0, 2.0, 3.0]]), rows=2, offset=2)
    np.testing.assert_array_equal(bias[0], [[2, 1, 0, layers.MASKED], [3, 2, 1, 0]])


def test_rms_norm_as_t5():
    x, scale = random(0, 2, 5, 24), random(1, 24)
    norm = T5LayerNorm(24)
    norm.weight.data = torch.from_numpy(scale)
    ours = layers.RMSNorm().apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(ours, norm(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_gated_mlp_as_t5():
    theirs = T5LayerFF(T5).eval()
    dense = theirs.DenseReluDense
    x = random(0, 2, 5, 24)
    params = {"gate": dense.wi_0.weight, "up": dense.wi_1.weight, "down": dense.wo.weight}
    params = {name: weight.detach().numpy().T for name, weight in params.items()}
    ours = layers.GatedMlp(40, 0.0).apply(
        {"params": params}, layers.RMSNorm().apply({"params": {"scale": np.ones(24)}}, x), True
    )
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy() - x  # theirs adds the input
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_product_has_the_gradients_of_a_product():
    x, kernel, weights = random(0, 2, 5, 3), random(1, 3, 4), random(2, 2, 5, 4)
    ours = jax.grad(lambda x, w: jnp.sum(layers.product(x, w) * weights), argnums=(0, 1))(x, kernel)
    np.testing.assert_allclose(layers.product(x, kernel), x @ kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours[0], np.einsum("blf,df->bld", weights, kernel), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours[1], np.einsum("bld,blf->df", x, weights), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block_size", [0, 64])
def test_attention_as_t5(block_size):
    length = 200  # beyond the last bucket's distance
    theirs = T5Attention(
        T5.__class__(**{**T5.to_dict(), "is_decoder": True}), has_relative_attention_bias=True, layer_idx=0
    )
    theirs.eval()
    x = 3 * random(0, 2, length, 24)
    shape = {"q": (24, 3, 8), "k": (24, 3, 8), "v": (24, 3, 8)}
    q, k, v = (getattr(theirs, name).weight.detach().numpy().T.reshape(shape[name]) for name in "qkv")
    # T5 does not divide by sqrt(head_dim), so our q is T5's times sqrt(head_dim).
    params = {"qkv": np.stack([q * 8**0.5, k, v], 2), "out": theirs.o.weight.detach().numpy().T.reshape(3, 8, 24)}
    table = 5 * theirs.relative_attention_bias.weight.detach().numpy() + random(1, 32, 3)
    theirs.relative_attention_bias.weight.data = torch.from_numpy(table)
    seen = torch.tril(torch.ones(length, length))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x), mask=((1 - seen) * -1e9)[None, None])[0].numpy()
    by_distance = layers.distance_bias(table, layers.saturation_distance(32, 128) + 1, 128)
    ours, _ = layers.Attention(3, block_size).apply({"params": params}, x, by_distance, jnp.ones((2, length), bool))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def dense_attention(q, k, v, table, valid):
    """Computes attention by definition: all scores at once, bias gathered."""
    length = q.shape[2]
    distance = np.arange(length)[:, None] - np.arange(length)
    bias = jnp.moveaxis(table[layers.relative_buckets(distance, 8, 20)], -1, 0)
    seen = (distance >= 0) & valid[:, None, None, :]
    scores = jnp.where(seen, jnp.einsum("bhqc,bhkc->bhqk", q, k) + bias[None], -jnp.inf)
    return jax.nn.softmax(scores) @ v


@pytest.mark.parametrize("block_size", [0, 16, 24])
def test_blockwise_attention_and_its_gradients_match_dense_attention(block_size):
    q, k, v, table, weight = (random(i, 2, 2, 50, 4) if i != 3 else random(i, 8, 2) for i in range(5))
    valid = np.ones((2, 50), bool)
    valid[1, 30:40] = False
    near = layers.saturation_distance(8, 20)

    def ours(q, k, v, table):
        by_distance = layers.distance_bias(table, near + 1, 20)
        return jnp.sum(weight * block_attention.block_attention(q, k, v, by_distance, valid, block_size))

    def definition(q, k, v, table):
        return jnp.sum(weight * dense_attention(q, k, v, table, valid))

    value, grads = jax.jit(jax.value_and_grad(ours, argnums=(0, 1, 2, 3)))(q, k, v, table)
    expected, expected_grads = jax.jit(jax.value_and_grad(definition, argnums=(0, 1, 2, 3)))(q, k, v, table)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    for ours_leaf, expected_leaf in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(ours_leaf, expected_leaf, rtol=1e-3, atol=2e-5)


def test_sequences_shorter_than_the_bias_reaches():
    q, table = random(0, 1, 2, 5, 4), random(1, 8, 2)
    valid = np.ones((1, 5), bool)
    by_distance = layers.distance_bias(table, layers.saturation_distance(8, 20) + 1, 20)
    np.testing.assert_allclose(
        block_attention.block_attention(q, q, q, by_distance, valid, 2),
        dense_attention(q, q, q, table, valid),
        rtol=1e-5,
        atol=1e-6,
    )


def test_parameters_name_their_logical_axes():
    module = layers.Attention(2, 0)
    boxed = module.init(jax.random.key(0), jnp.zeros((1, 3, 8)), jnp.zeros((2, 4)), jnp.ones((1, 3), bool))["params"]
    assert boxed["qkv"].names == ("embed", "heads", None, "kv") and boxed["out"].names == ("heads", "kv", "embed")
    assert unbox(boxed)["qkv"].shape == (8, 2, 3, 4)


def test_dropout_drops_channels_of_whole_sequences():
    x = jnp.ones((4, 7, 50))
    dropped = layers.dropout(0.2).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(dropped, jnp.broadcast_to(dropped[:, :1], x.shape))
    assert set(np.unique(dropped)) == {0.0, 1.25} and 0.1 < float(jnp.mean(dropped == 0)) < 0.3
