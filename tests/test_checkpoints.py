"""Checkpoints: exact restoring, interrupted writes, retention, and clear errors for incompatible states."""

import os
import re
import resource
import shutil
import subprocess

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from musiclm_jax.training import checkpoints
from musiclm_jax.training.checkpoints import Position


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


def test_a_process_resumes_at_its_own_position(monkeypatch):
    """test_processes.py tests runs of several processes."""
    saved = {"examples": [[2, 1], [1, 4], [1, 5]]}
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    for index, expected in enumerate([Position(2, 1), Position(1, 4), Position(1, 5)]):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        assert checkpoints._of_this_process(saved, 8) == expected
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    assert checkpoints._of_this_process(saved, 8) == Position(1, 4), "other processes: the earliest position"
    earlier = {"processes": saved["examples"]}
    assert checkpoints._of_this_process(earlier, 8) == Position(1, 32), "earlier releases counted batches"


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
    """The write continues in the background while the next step overwrites the state's memory."""
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


def damage(file, how):
    content = file.read_bytes()
    if how == "removed":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2])


PARTS = ["state/_METADATA", "position/metadata", "state/manifest.ocdbt", "state/ocdbt.process_0/d"]


@pytest.mark.parametrize("item", PARTS)
@pytest.mark.parametrize("how", ["removed", "truncated"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(saved_steps, tmp_path, item, how):
    shutil.copytree(saved_steps, tmp_path, dirs_exist_ok=True)
    place = tmp_path / "checkpoints" / "2" / item
    damage(max(place.iterdir(), key=lambda file: file.stat().st_size) if place.is_dir() else place, how)
    message = (
        r"checkpoint \S+/checkpoints/2 is damaged or cannot be read \(.+\): move that folder away, .* from step 1$"
    )
    with checkpoints.open_manager(tmp_path) as manager, pytest.raises(ValueError, match=message):
        checkpoints.restore_latest(manager, abstract(make_state(width=3_000)))
    if not item.startswith("position"):
        with pytest.raises(ValueError, match=message):
            checkpoints.load(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    assert checkpoints.load(tmp_path)[0] == 1


@pytest.fixture(scope="module")
def saved_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with checkpoints.open_manager(folder) as manager:
        for step in (1, 2):
            checkpoints.save(manager, step, noise(step, 3_000), Position(1, step))
    return folder


def noise(step, width):
    """Returns an incompressible state."""
    values = jax.random.normal(jax.random.key(step), (width,))
    return make_state(step, width).replace(params={"w": values, "nothing": {}})


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk that fills up soon: a 3 MB file system in memory, or else a limit on file sizes."""
    if (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", tmp_path], capture_output=True).returncode
        == 0
    ):
        yield tmp_path
        subprocess.run(["umount", "--lazy", tmp_path], check=True)
    else:
        yield tmp_path
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_full_disk_is_reported_and_loses_no_checkpoint(small_disk):
    message = r"cannot write a checkpoint to \S+ \(.*(No space left on device|File too large)\): .* from step (\d+)$"
    with pytest.raises(ValueError, match=message) as raised:
        with checkpoints.open_manager(small_disk, keep=9) as manager:
            for step in range(1, 9):  # 0.9 MB each; the error comes after the call that starts the write
                checkpoints.save(manager, step, noise(step, 250_000), Position(0, step))
                if step == 1 and not os.path.ismount(small_disk):
                    checkpoints.wait(manager)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
            checkpoints.wait(manager)
    last = int(re.search(message, str(raised.value)).group(2))
    step, state = checkpoints.load(small_disk)
    assert step == last >= 1
    np.testing.assert_array_equal(state["params"]["w"], noise(step, 250_000).params["w"])


def test_a_folder_that_is_no_longer_writable_is_reported_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write a checkpoint to \S+ \(.*(exists|Not a dir).*\): "):
        with checkpoints.open_manager(tmp_path) as manager:
            checkpoints.save(manager, 1, make_state(1), Position())
            checkpoints.wait(manager)
            (tmp_path / "checkpoints").rename(tmp_path / "away")
            (tmp_path / "checkpoints").touch()  # root may write into any folder, but not into a file
            checkpoints.save(manager, 2, make_state(2), Position())
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "away").rename(tmp_path / "checkpoints")
    assert checkpoints.load(tmp_path)[0] == 1


def test_a_bucket_stays_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the path is empty"):
        checkpoints.run_folder("")
    assert str(checkpoints.run_folder("gs://bucket/run") / "checkpoints") == "gs://bucket/run/checkpoints"
    assert str(checkpoints.run_folder("run")) == str(tmp_path / "run")
    assert str(checkpoints.run_folder("~/run")) == os.path.expanduser("~/run")


@pytest.mark.parametrize("name", ["a[x]", "a*", "a?", "a\\b"])
def test_a_folder_named_like_a_pattern_is_refused_before_the_start(tmp_path, name):
    with pytest.raises(ValueError, match=r"in its path, which checkpoints cannot have: rename that folder$"):
        with checkpoints.open_manager(tmp_path / name / "run"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    with checkpoints.open_manager(tmp_path):
        with pytest.raises(ValueError, match=rf"is in use by musiclm train on \S+, process {os.getpid()}: "):
            with checkpoints.open_manager(tmp_path):
                pass
    assert save_steps(tmp_path, {1: None}) == [1], "the lock ends with the run"
