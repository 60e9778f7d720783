import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax.stages.losses import token_losses, weighted_mean


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[[[0.2, 0.3, 0.5]], [[0.7, 0.2, 0.1]]]])) + 4.0  # b 1, t 2, q 1, k 3
    losses = token_losses(logits, jnp.array([[[2], [1]]]))
    np.testing.assert_allclose(losses.cross_entropy[0, :, 0], [-np.log(0.5), -np.log(0.2)], rtol=1e-5)
    np.testing.assert_allclose(losses.log_normalizer[0, :, 0], [4.0, 4.0], rtol=1e-5)
    np.testing.assert_array_equal(losses.correct[0, :, 0], [1, 0])


def test_label_smoothing_by_hand():
    probabilities = np.array([0.2, 0.3, 0.5])
    smoothed = token_losses(jnp.log(probabilities)[None, None, None], jnp.array([[[0]]]), label_smoothing=0.3)
    expected = -(0.7 * np.log(0.2) + 0.1 * np.log(probabilities).sum())
    np.testing.assert_allclose(smoothed.cross_entropy[0, 0, 0], expected, rtol=1e-5)


def test_gradient_is_softmax_minus_target():
    logits = jnp.array([[[[0.5, -1.0, 2.0]]]])
    gradient = jax.grad(lambda x: token_losses(x, jnp.array([[[1]]])).cross_entropy.sum())(logits)
    np.testing.assert_allclose(gradient[0, 0, 0], jax.nn.softmax(logits[0, 0, 0]) - np.array([0, 1, 0]), rtol=1e-5)


def test_weighted_mean():
    values, weights = jnp.array([[1.0, 5.0], [3.0, 100.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]])
    assert weighted_mean(values, weights) == 3.0
    np.testing.assert_array_equal(weighted_mean(values, weights, axis=0), [2.0, 5.0])
    assert weighted_mean(values, jnp.zeros((2, 2))) == 0.0
