"""Resuming a training with other settings: nothing is read twice or skipped, and what differs is said."""

import numpy as np
import pytest
import toy_run
from toy_run import ToyData

from musiclm_jax.training import checkpoints, resume, trainer
from musiclm_jax.training.checkpoints import Position

CONFIG = """# Macros
BATCH_SIZE = 8
DATA_DIR = 'tokens'
train.task = \\
    @coarse_task()
train.batch_size = %BATCH_SIZE
"""
MODEL = '{"family": "stage"}'


class Recorder(ToyData):
    """Remembers the examples that it served."""

    def epoch(self, epoch, skip):
        for batch in super().epoch(epoch, skip):
            self.served.extend(batch["x"][:, 0].tolist())
            yield batch


def folder(tmp_path, config=CONFIG, model=MODEL):
    (tmp_path / "config.gin").write_text(config)
    (tmp_path / "config.json").write_text(model)
    return tmp_path


def check(where, config=CONFIG, model=MODEL, epoch=1, examples=40):
    return resume.check(where, {"config.gin": config, "config.json": model}, 5, 9, Position(epoch, examples))


def run(where, total_steps, data):
    return trainer.train(toy_run.ToyLearner(), data, None, where, trainer.RunConfig(total_steps=total_steps))


@pytest.mark.parametrize("second", [2, 7])
def test_another_batch_size_reads_every_example_of_the_epoch_once(tmp_path, second):
    data = Recorder()
    run(tmp_path, 3, data)
    served = [x for x in data.served if isinstance(x, float)][:12]
    data = Recorder(batch_size=second)
    run(tmp_path, 3 + 16 // second, data)
    served += [x for x in data.served if isinstance(x, float)][: 16 // second * second]
    values = np.random.default_rng(0).normal(1.0, 0.3, size=(28, 8)).astype(np.float32)[:, 0]
    assert served == values[: len(served)].tolist() and len(served) == 12 + 16 // second * second


def test_fewer_steps_than_were_taken_are_refused(tmp_path):
    run(tmp_path, 3, ToyData())
    with pytest.raises(
        ValueError, match=r"is at step 3 already, total_steps is 2: give more steps .*another model_dir$"
    ):
        run(tmp_path, 2, ToyData())
    assert checkpoints.load(tmp_path)[0] == 3


def test_the_same_settings_are_not_mentioned(tmp_path):
    assert check(folder(tmp_path)) == []
    assert check(folder(tmp_path, config=CONFIG.replace("\\\n    ", ""))) == []


def test_settings_that_differ_are_named(tmp_path):
    changed = CONFIG.replace("8", "16").replace("'tokens'", "'more'") + "OptimizerConfig.learning_rate = 0.1\n"
    assert check(folder(tmp_path), changed) == [
        "BATCH_SIZE 8 -> 16",
        "DATA_DIR 'tokens' -> 'more'",
        "OptimizerConfig.learning_rate not set -> 0.1",
    ]


def test_other_data_in_the_same_folder_is_named(tmp_path):
    (folder(tmp_path) / "data.json").write_text('{"shards": 16, "bytes": 1234567}')
    contents = {"config.gin": CONFIG, "config.json": MODEL, "data.json": '{"shards": 16, "bytes": 2345}'}
    assert resume.check(tmp_path, contents, 5, 9, Position()) == ["training data in bytes 1,234,567 -> 2,345"]


def test_another_order_within_an_epoch_is_refused(tmp_path):
    changed = CONFIG + "SEED = 3\ntrain.data_seed = %SEED\n"
    with pytest.raises(ValueError, match=r"read 40 examples of epoch 1 in the order of data_seed 0: with data_seed 3 "):
        check(folder(tmp_path), changed)
    assert check(folder(tmp_path), changed, epoch=2, examples=0), "at the beginning of an epoch it is only said"


def test_another_family_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trained mulan, not stage: give another model_dir"):
        check(folder(tmp_path, model='{"family": "mulan"}'))


def test_a_folder_without_settings_is_resumed(tmp_path):
    assert check(tmp_path) == []
