"""Checkpoints: exact, tolerant of interrupted writes, with retention, and clear about what does not fit."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax import checkpoints
from musiclm_jax.checkpoints import Position


class State(flax.struct.PyTreeNode):
    step: jax.Array
    params: dict
    opt_state: optax.OptState


def make_state(step=0, width=3):
    params = {"w": jnp.arange(width, dtype=jnp.float32) + step, "nothing": {}}
    return State(jnp.int32(step), params, optax.adamw(0.1).init(params))


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def save_steps(folder, losses, keep=2):
    with checkpoints.open_manager(folder, keep) as manager:
        for step, loss in losses.items():
            checkpoints.save(manager, step, make_state(step), Position(1, step), loss)
        manager.wait_until_finished()
        return sorted(manager.all_steps())


def test_restores_state_position_and_structure(tmp_path):
    save_steps(tmp_path, {5: None})
    with checkpoints.open_manager(tmp_path) as manager:
        step, state, position = checkpoints.restore_latest(manager, abstract(make_state()))
    assert (step, position) == (5, Position(1, 5))
    assert jax.tree.structure(state) == jax.tree.structure(make_state())
    jax.tree.map(np.testing.assert_array_equal, state, make_state(5))


def test_nothing_to_restore(tmp_path):
    with checkpoints.open_manager(tmp_path) as manager:
        assert checkpoints.restore_latest(manager, abstract(make_state())) is None


def test_the_latest_and_the_best_are_kept(tmp_path):
    assert save_steps(tmp_path, {1: 3.0, 2: 0.5, 3: 2.0, 4: None, 5: 1.0, 6: 4.0}) == [2, 5, 6]
    assert checkpoints.load(tmp_path)[0] == 6
    step, state = checkpoints.load(tmp_path, best=True)
    assert step == 2
    np.testing.assert_array_equal(state["params"]["w"], [2, 3, 4])
    assert checkpoints.load(tmp_path, step=5)[1]["step"] == 5


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    """The write goes on in the background while the next step overwrites the state's memory."""
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0)
    state = make_state(7, width=3_000_000)
    expected = np.array(state.params["w"])
    with checkpoints.open_manager(tmp_path) as manager:
        checkpoints.save(manager, 7, state, Position())
        state = overwrite(state)
        jax.block_until_ready(state)
        manager.wait_until_finished()
    np.testing.assert_array_equal(checkpoints.load(tmp_path)[1]["params"]["w"], expected)


def test_a_half_written_checkpoint_is_never_restored(tmp_path):
    save_steps(tmp_path, {1: None})
    half = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-7"
    (half / "state").mkdir(parents=True)
    (half / "state" / "d").write_bytes(b"half")
    assert checkpoints.load(tmp_path)[0] == 1
    with checkpoints.open_manager(tmp_path) as manager:
        assert checkpoints.restore_latest(manager, abstract(make_state()))[0] == 1
    assert not half.exists(), "opening for writing removes it"


def test_another_shape_is_named(tmp_path):
    save_steps(tmp_path, {1: None})
    with checkpoints.open_manager(tmp_path) as manager:
        with pytest.raises(ValueError, match=r"opt_state/0/mu/w is \(3,\) there and \(4,\) here"):
            checkpoints.restore_latest(manager, abstract(make_state(width=4)))


def test_bad_requests_have_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="keep is 0"), checkpoints.open_manager(tmp_path, keep=0):
        pass
    with pytest.raises(ValueError, match="does not exist: give the model_dir"):
        checkpoints.load(tmp_path / "none")
    save_steps(tmp_path, {1: None})
    with pytest.raises(ValueError, match=r"holds the steps \[1\], not 9"):
        checkpoints.load(tmp_path, step=9)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write checkpoints to"), checkpoints.open_manager(tmp_path / "file"):
        pass
