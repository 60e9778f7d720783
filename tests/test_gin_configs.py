"""gin files and the train command: every file builds, every binding is used, errors are clear."""

import json
import pathlib
import re

import gin
import jax
import numpy as np
import pytest
import record_folders

from musiclm_jax import bundles, gin_configs
from musiclm_jax.data.tokens import STAGES, STREAMS
from musiclm_jax.launch import main, train
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.training import checkpoints

FOLDER = pathlib.Path(gin_configs.__path__[0])
# T5X's own programs read t5x_*.gin (test_t5x_adapter.py), `musiclm evaluate` evaluate*.gin (test_evaluate_command.py).
FILES = sorted(path.name for path in FOLDER.glob("*.gin") if not path.name.startswith(("t5x_", "evaluate")))
SIZES = {"size_small.gin": 63.5e6, "size_large.gin": 1.474e9}
RUNS = [name for name in FILES if name != "train.gin" and name not in SIZES]
# Bindings that only the user can provide.
REQUIRED = {"TEXT_WEIGHTS": "'bert/model.safetensors'", "VOCAB": "'bert/vocab.txt'"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("records")
    return {
        "audio": record_folders.audio_folder(base / "audio"),
        "tokens": record_folders.token_folder(base / "tokens"),
        "renditions": record_folders.rendition_folder(base / "renditions"),
    }


@pytest.fixture(autouse=True)
def forget_gin():
    yield
    gin.clear_config()


def parse(name, folders):
    text = (FOLDER / name).read_text()
    stage = any(part in name for part in STAGES)
    kind = "tokens" if stage else "renditions" if name.startswith("melody") else "audio"
    bindings = [f"DATA_DIR = '{folders[kind]}'"]
    bindings += [f"{macro} = {value}" for macro, value in REQUIRED.items() if f"{macro} = %gin.REQUIRED" in text]
    train.parse_gin([name], bindings)
    return gin.get_bindings("train")


@pytest.mark.parametrize("name", RUNS)
def test_every_run_builds_and_uses_all_its_bindings(name, folders):
    arguments = parse(name, folders)
    family = name.removesuffix(".gin").split("_tiny")[0].removesuffix("_melody")
    learner, task = arguments["learner"], arguments["task"]
    assert learner.family == ("stage" if family in STAGES else family) and task.name == family
    assert learner.optimizer.total_steps == arguments["total_steps"]
    bound = {key for key in gin.config._CONFIG if key[1] != "musiclm_jax.launch.train.train"}
    unused = {f"{scope}/{what}" for scope, what in bound - set(gin.config._OPERATIVE_CONFIG)}
    assert not unused, "bound, but never read"


@pytest.mark.parametrize("name", RUNS)
def test_task_and_learner_agree_on_the_crop(name, folders):
    arguments = parse(name, folders)
    learner, lengths = arguments["learner"], arguments["task"].lengths
    if isinstance(learner, StageLearner):
        for part in (*learner.stage.conditioning, learner.stage.target):
            rate = learner.stage.stream(part.stream).frame_rate
            if rate:
                assert lengths[part.stream] == learner.stage.frames(part)
            else:  # records hold all levels of a clip; a stage may read only the first ones
                assert lengths[part.stream] == STREAMS[part.stream].quantizers >= part.levels
    elif learner.family == "mulan":
        assert 12_000 <= lengths["audio"] <= learner.config.window_samples, "a window, or a part of one"
        assert arguments["task"].text.max_length == learner.config.max_text_tokens
    elif learner.family == "melody":
        assert lengths["audio"] == 2 * learner.config.window_samples
    else:
        assert lengths["audio"] >= 12_000


@pytest.mark.parametrize("name", FILES)
def test_every_file_documents_what_it_trains_how_and_at_what_cost(name):
    header = re.match(r"(#.*\n)+", (FOLDER / name).read_text()).group(0)
    assert len(header.splitlines()[0]) > 20
    own = {"train.gin": "RUN.gin"} | {size: f"coarse.gin --gin_file={size}" for size in SIZES}
    assert f"musiclm train --gin_file={own.get(name, name)}" in header
    assert re.search(r"[Cc]ost", header) and "TO MEASURE" not in header and "TODO" not in header


@pytest.mark.parametrize("name", [name for name in RUNS if name.endswith("_tiny.gin")])
def test_a_tiny_file_overrides_its_family(name):
    assert f"include 'musiclm_jax/gin_configs/{name.replace('_tiny', '')}'" in (FOLDER / name).read_text()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_sizes_to_grow_on(size, stage, folders):
    train.parse_gin([f"{stage}.gin", size], [f"DATA_DIR = '{folders['tokens']}'"])
    learner = gin.get_bindings("train")["learner"]
    shapes = jax.eval_shape(learner.init, jax.random.key(0)).params
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(SIZES[size], rel=0.01)


SMALL = """
include 'musiclm_jax/gin_configs/train.gin'
TRAIN_STEPS = 3
BATCH_SIZE = 2
train.log_period = 1
train.eval_steps = 1
train.learner = @StageLearner()
train.task = @fine_task()
fine_task.data_dir = %DATA_DIR
fine_task.crop_seconds = 0.08
StageLearner.stage = @fine_stage()
fine_stage.seconds = 0.08
fine_stage.full_vocabulary = False
StageLearner.config = @TransformerConfig()
TransformerConfig.num_layers = 1
TransformerConfig.d_model = 8
TransformerConfig.num_heads = 2
TransformerConfig.d_ff = 8
StageLearner.optimizer = @OptimizerConfig()
OptimizerConfig.name = 'adamw'
"""


@pytest.fixture
def command(folders, tmp_path):
    (tmp_path / "small.gin").write_text(SMALL)
    data = f"--gin.DATA_DIR='{folders['tokens']}'"
    return ["train", f"--gin_file={tmp_path / 'small.gin'}", f"--model_dir={tmp_path / 'run'}", data]


def test_the_command_trains_writes_its_configuration_and_resumes(command, tmp_path, capsys):
    assert main.main(command) == 0
    assert "done: step 3 of 3" in capsys.readouterr().out
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert described["family"] == "stage" and described["config"]["d_model"] == 8
    assert described["learner"]["optimizer"]["name"] == "adamw" and described["learner"]["stage"]["name"] == "fine"
    assert "fine_task.crop_seconds = 0.08" in (tmp_path / "run" / "config.gin").read_text()

    assert main.main([*command, "--gin.TRAIN_STEPS=5"]) == 0
    out = capsys.readouterr().out
    assert "resuming from step 3 (epoch 0, example 6)" in out and "done: step 5 of 5" in out
    step, state = checkpoints.load(tmp_path / "run")
    assert step == int(state["step"]) == 5

    assert main.main([*command, "--gin.TRAIN_STEPS=7", "--gin.TransformerConfig.d_model=16"]) == 2
    assert "does not fit this configuration" in capsys.readouterr().err
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert described["config"]["d_model"] == 8, "the checkpoint's configuration"


def test_a_dry_run_reads_and_writes_nothing(command, tmp_path, capsys):
    nowhere = ["--gin.DATA_DIR='/nowhere'", f"--model_dir={tmp_path / 'run'}"]
    assert main.main(["train", command[1], "--dry_run", *nowhere]) == 0
    out = capsys.readouterr().out
    assert "dry run of stage: " in out and "tokens/s" in out and "GiB" in out
    assert not (tmp_path / "run").exists()


def test_a_run_can_start_from_a_bundles_weights(command, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    assert main.main(command) == 0
    assert main.main(["export", "--family=fine", f"--model_dir={tmp_path / 'run'}", f"--bundle={bundle}"]) == 0
    second = [*command[:2], f"--model_dir={tmp_path / 'second'}", command[3], f"--start_from={bundle}"]
    assert main.main([*second, "--gin.TRAIN_STEPS=1", "--gin.OptimizerConfig.learning_rate=1e-9"]) == 0
    expected = bundles.load(bundle).part("fine").variables["params"]
    step, state = checkpoints.load(tmp_path / "second")
    assert step == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state["params"], expected)
    third = [*command[:2], f"--model_dir={tmp_path / 'third'}", command[3], f"--start_from={bundle}"]
    capsys.readouterr()
    assert main.main([*third, "--gin.TransformerConfig.d_model=16"]) == 2
    assert "the bundle's model does not fit this configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--gin.TransformerConfig.depth=3", "parameter named 'depth': it has num_layers, num_heads, d_model,"),
        ("--gin.Nothing.x=3", "(in --gin.Nothing.x=3)"),
        ("--gin.Nothing.x=3", "No configurable matching 'Nothing': gin files can name MelodyConfig, "),
        ("--gin.train.task=@jazz_task()", "No configurable matching reference '@jazz_task()'"),
        ("--gin.train.task='jazz'", "train.task is 'jazz', expected a task"),
        ("--gin.BATCH_SIZE=(", "a gin value is incomplete"),
        ("--gin.BATCH_SIZE=1000", "training data holds no batch"),
        ("--gin.make_mesh.data=3", "mesh 3 x 1 x 1"),
        ("--gin.DATA_DIR='/nowhere'", "/nowhere holds no shards of split 'train'"),
        ("--gin_file=nothing.gin", "there is no gin file 'nothing.gin'"),
        ("--gin.TRAIN_STEP=10", "these gin files have no macro 'TRAIN_STEP': they use BATCH_SIZE, "),
        ("--gin.train.learner='fine'", "train.learner is 'fine', expected a learner"),
        ("--gin.train.mesh=(1, 2)", "train.mesh is (1, 2), expected a mesh"),
        ("--gin.BATCH_SIZE=2.5", "train.batch_size is 2.5, expected a whole number"),
        ("--gin.train.keep=0", "keep is 0, expected 1 or more"),
        ("--gin.train.log_period='all'", "log_period is 'all', expected a whole number, 1 or more"),
        ("--gin.OptimizerConfig.learning_rate='high'", "(in call to configurable 'OptimizerConfig')"),
        ("--gin.DATA_DIR=3", "(in call to configurable 'fine_task')"),
        ("--gin.DATA_DIR=None", "task 'fine' has no data: give its data_dir"),
        ("--gin.train.profile_steps=3", "profile_steps is 3, expected the first and the last step"),
        ("--model_dir=/dev/null/run", "cannot write checkpoints to /dev/null/run"),
    ],
)
def test_bad_input_is_one_clear_line(command, argument, message, capsys):
    if "make_mesh" in argument:
        command = [*command, "--gin.train.mesh=@make_mesh()"]
    assert main.main([*command, argument]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and "MUSICLM_TRACEBACK" not in error


def test_a_missing_macro_is_named(command, capsys):
    assert main.main(command[:-1]) == 2
    assert "DATA_DIR is not set: give --gin.DATA_DIR=VALUE; strings need inner quotes" in capsys.readouterr().err


def test_an_unknown_argument_is_refused(command, capsys):
    with pytest.raises(SystemExit):
        main.main([*command, "--steps=3"])
    assert "unknown argument '--steps=3': bindings are written --gin.NAME=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, meant",
    [
        ("DATA_DIR=tokens", "\"'tokens'\""),
        ("DATA_DIR=/data/my tokens", "\"'/data/my tokens'\""),
        ("DATA_DIR=gs://bucket/tokens", "\"'gs://bucket/tokens'\""),
        ("DATA_DIR=", "\"''\""),
        ("DATA_DIR=C:\\new\\tokens", "\"'C:\\new\\tokens'\""),
        ("TransformerConfig.dtype=bfloat16", "\"'bfloat16'\""),
        ("StageLearner.x=true", "True"),
        ("BATCH_SIZE=10k", "\"'10k'\""),
    ],
)
def test_a_text_without_quotes_is_answered_with_the_right_argument(command, given, meant, capsys):
    assert main.main([*command, f"--gin.{given}"]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"give --gin.{given.split('=')[0]}={meant}\n") and len(error.splitlines()) == 1


@pytest.mark.parametrize("folder", ["C:\\new\\tokens", "C:\\users\\x", "\\\\host\\share", "a'b"])
def test_backslashes_on_the_command_line_are_literal(folder):
    quote = '"' if "'" in folder else "'"
    train.parse_gin(["coarse.gin"], [f"DATA_DIR={quote}{folder}{quote}"])
    assert gin.query_parameter("DATA_DIR/gin.macro.value") == folder
    for kept in (
        "1e-4",
        "-3",
        "[1, 2]",
        "%BATCH_SIZE",
        "@make_mesh()",
        "None",
        "True",
        "10  # steps",
        "r'a'",
        "'a' 'b'",
    ):
        assert train.checked_binding(f"train.x={kept}") == f"train.x={kept}"
