"""The installed package: version and type annotations; and a clone works without an editable install."""

import importlib.metadata
import pathlib
import shutil
import subprocess
import sys

import installed_copy

import musiclm_jax
from musiclm_jax.launch import main

ROOT = pathlib.Path(__file__).parent.parent


def test_one_version(capsys):
    assert importlib.metadata.version("musiclm_jax") == musiclm_jax.__version__
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"musiclm {musiclm_jax.__version__}\n"


def test_type_checkers_read_the_annotations():
    assert (pathlib.Path(musiclm_jax.__file__).parent / "py.typed").is_file()


def test_importing_the_package_imports_nothing_heavy():
    program = "import sys, musiclm_jax; assert not {'jax', 'numpy', 'flax', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", program], check=True)


def test_a_clone_has_the_folders_that_install_into_the_package():
    """Without site-packages (-S), as if the package were not installed, or shadowed by the clone's folder."""
    program = """
import importlib.resources, importlib.util
import musiclm_jax.launch.main
for name in ("launch.main", "tasks.semantic", "launch", "tasks"):
    print(importlib.util.find_spec(f"musiclm_jax.{name}").origin)
print(importlib.resources.files("musiclm_jax.gin_configs") / "semantic.gin")
"""
    command = [sys.executable, "-S", "-E", "-c", program]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    names = (
        "launch/main.py",
        "tasks/semantic.py",
        "launch/__init__.py",
        "tasks/__init__.py",
        "gin_configs/semantic.gin",
    )
    assert found == [str(ROOT / name) for name in names]


def test_an_installed_copy_must_be_what_the_checkout_installs(tmp_path):
    checkout, package = tmp_path / "checkout", tmp_path / "site-packages" / "musiclm_jax"
    for name in ("musiclm_jax/losses.py", "musiclm_jax/tiny/config.json", "launch/main.py", "launch/local.sh"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name)
    for name in ("tasks", "gin_configs"):
        (checkout / name).mkdir()
    shutil.copytree(checkout / "musiclm_jax", package)
    (package / "launch").mkdir()
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "losses.pyc").write_text("compiled")
    shutil.copy(checkout / "launch" / "main.py", package / "launch")

    def difference():
        return installed_copy.problem(package, checkout)

    assert difference() == "" and installed_copy.problem(checkout / "musiclm_jax", checkout) == ""
    (checkout / "musiclm_jax" / "losses.py").write_text("raise")
    assert "losses.py differs. Remove" in difference() and "pip install -e" in difference()
    shutil.copy(checkout / "musiclm_jax" / "losses.py", package)
    (package / "trainer.py").write_text("an older release")
    assert "trainer.py is installed, but absent here" in difference()
    (package / "trainer.py").unlink()
    (checkout / "tasks" / "fine.py").write_text("new")
    assert "tasks/fine.py is not installed" in difference()


def test_python_m_runs_the_training_command():
    """`musiclm` imports the module again: gin must not know its names twice."""
    command = [sys.executable, "-m", "musiclm_jax.launch.train", "--gin_file=fine_tiny.gin", "--gin.BATCH_SIZE=none"]
    done = subprocess.run([*command, "--dry_run"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.endswith("give --gin.BATCH_SIZE=None\n"), done.stderr
