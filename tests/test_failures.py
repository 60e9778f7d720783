"""What ends a command, and what does not: standard streams that fail, signals, exceptions of any kind."""

import contextlib
import errno
import os
import pathlib
import subprocess
import sys
import zipfile

import flax.errors
import hangup
import jax
import pytest

import musiclm_jax
from musiclm_jax.launch import jax_environment, main

# Starts `musiclm` with a command that a test makes; the rest of the program is its body.
PROGRAM = """
import gc, os, pathlib, signal, sys, time, types
from musiclm_jax.launch import main

def fake(arguments):
{body}

module = types.ModuleType("fake")
module.main = fake
sys.modules["fake"] = module
main.COMMANDS["fake"] = ("fake", "")
sys.exit(main.main(["fake", *sys.argv[1:]]))
"""
TWO_PIECES = """
    for index in (1, 2):
        print(f"piece {index}: a caf\\u00e9 \\U0001f3b5 \\udcff", flush=True)
        pathlib.Path(arguments[0], f"{index}.wav").write_bytes(b"music")
"""


def program(body):
    return [sys.executable, "-P", "-c", PROGRAM.format(body=body)]


@pytest.fixture
def raised(monkeypatch, capsys):
    """Runs a command that raises an exception; returns (exit code, standard error)."""

    def raised(error):
        def fail(arguments):
            raise error

        monkeypatch.setitem(main.COMMANDS, "fake", ("fake", ""))
        monkeypatch.setattr(
            main.importlib, "import_module", lambda name: type("fake", (), {"main": staticmethod(fail)})
        )
        code = main.main(["fake", "a piano", "--seconds", "3"])
        return code, capsys.readouterr().err

    return raised


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "latin-1:surrogateescape"])
def test_a_console_that_lacks_a_character_ends_nothing(tmp_path, encoding):
    done = subprocess.run(
        [*program(TWO_PIECES), tmp_path], capture_output=True, env={"PYTHONIOENCODING": encoding, "HOME": str(tmp_path)}
    )
    assert done.returncode == 0 and done.stderr == b""
    assert sorted(path.name for path in tmp_path.glob("*.wav")) == ["1.wav", "2.wav"]
    assert rb"piece 2: a caf" in done.stdout and rb"\udcff" in done.stdout


def test_a_full_standard_output_ends_nothing_and_is_told(tmp_path):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*program(TWO_PIECES), tmp_path], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "standard output could not be written ([Errno 28] No space left on device)" in done.stderr
    assert len(list(tmp_path.glob("*.wav"))) == 2


def test_a_reader_that_left_ends_nothing(tmp_path):
    process = subprocess.Popen([*program(TWO_PIECES), tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    assert len(list(tmp_path.glob("*.wav"))) == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_not_taken_over_by_files(tmp_path, closed):
    body = TWO_PIECES + '    os.system("echo to everyone; echo to everyone >&2")\n    print("end", file=sys.stderr)\n'
    body = body.replace("write_bytes(b", 'open("xb").write(b')
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *program(body), tmp_path], capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stdout + done.stderr
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*.wav"))] == [b"music"] * 2


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_within_a_callback_is_not_swallowed(tmp_path, name):
    body = f"""
    def within(phase, info):
        if phase == "stop" and not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.{name})
            time.sleep(0.1)
    sent = []
    gc.callbacks.append(within)
    gc.collect()
    try:
        time.sleep(100)
    finally:
        print("cleared up")
"""
    done = subprocess.run(
        [*hangup.BEFORE, *program(body)],
        capture_output=True,
        text=True,
        timeout=90,
    )
    number = {"SIGINT": 2, "SIGTERM": 15, "SIGHUP": 1}[name]
    assert done.returncode == 128 + number and done.stdout == "cleared up\n"
    assert done.stderr == "\nmusiclm fake: interrupted\n"


def test_an_ignored_signal_stays_ignored(tmp_path):
    body = "    os.kill(os.getpid(), signal.SIGHUP)\n    time.sleep(0.1)\n"
    done = subprocess.run(["nohup", *program(body)], capture_output=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0


def tensorflow_error():
    import tensorflow as tf

    return tf.errors.DataLossError(None, None, "corrupted record at 12")


def error_of_a_library():
    try:
        jax.devices("nonesuch")
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error, message",
    [
        (lambda: MemoryError(), "not enough memory: use a smaller batch size"),
        (lambda: MemoryError("Unable to allocate 7.6 GiB"), "(Unable to allocate 7.6 GiB)"),
        (
            lambda: jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating"),
            "not enough memory: use a",
        ),
        (
            lambda: jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: ... trying to allocate {5 * 2**29} bytes."),
            "there is not enough memory for 2.5 GiB more: use a smaller batch size",
        ),
        (
            lambda: jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9.5GiB."),
            "there is not enough memory for 9.5 GiB more: use a smaller batch size",
        ),
        (
            lambda: jax.errors.JaxRuntimeError("INTERNAL: broken"),
            "the device or its compiler failed (INTERNAL: broken)",
        ),
        (error_of_a_library, "Unknown backend nonesuch"),
        (tensorflow_error, "TensorFlow cannot read or write the data (corrupted record at 12)"),
        (lambda: zipfile.BadZipFile("not a zip file"), "a file that was read is damaged (not a zip file)"),
        (lambda: flax.errors.ScopeParamNotFoundError("a", "b"), "the weights do not fit the models of this release"),
        (
            lambda: ModuleNotFoundError("No module named 'gin'", name="gin"),
            "a library is missing or damaged: No",
        ),
        (lambda: subprocess.CalledProcessError(1, ["ffmpeg"]), "a program that was started failed"),
        (lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "can't decode byte 0xff"),
        (lambda: RecursionError("maximum recursion depth"), "nested too deeply"),
    ],
)
def test_an_error_of_the_surroundings_is_one_line(raised, error, message):
    error = error()
    code, err = raised(error)
    assert err.startswith("musiclm fake: ") and err.count("\n") == 1 and message in err, err
    # Launch scripts restart a training that ended with 1: what failed may pass, unlike unusable input.
    assert code == (2 if isinstance(error, ValueError | ImportError | flax.errors.FlaxError) else 1)


@pytest.mark.parametrize(
    "error", [TypeError("unsupported\noperand"), KeyError("semantic"), AssertionError(), IndexError()]
)
def test_a_bug_asks_for_a_report_in_one_line(raised, error):
    code, err = raised(error)
    assert code == 1 and err.count("\n") == 1 and type(error).__name__ in err
    assert f"please report this line, version {musiclm_jax.__version__} on Python" in err
    assert "command: musiclm fake 'a piano' --seconds 3" in err and f"({pathlib.Path(__file__)}, line " in err


def test_errors_of_the_operating_system_are_words(raised):
    full = (errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raised(OSError(*full, "a.npz")) == (2, "musiclm fake: a.npz: No space left on device: free some space\n")
    assert raised(OSError(*full)) == (2, "musiclm fake: a file: No space left on device: free some space\n")
    assert raised(OSError("nothing known")) == (2, "musiclm fake: nothing known\n")


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonesuch"])
def test_a_platform_that_is_not_there_is_one_line(platform):
    body = "    import jax\n    jax.numpy.zeros(1)\n"
    environment = os.environ | {"JAX_PLATFORMS": platform, "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(program(body), capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("musiclm fake: the accelerator cannot be used (")
    assert done.stderr.endswith(f"JAX_PLATFORMS is {platform}: unset it or set it to cpu\n")


# What JAX does with a CUDA plugin that cannot start: it logs the exception and goes on without the plugin.
PLUGIN = """
    import logging, jax
    logger = logging.getLogger("jax._src.xla_bridge")
    try:
        try:
            raise OSError("cuInit")
        except OSError as error:
            raise RuntimeError("Outdated CUDA installation found.\\nInstalled version: 11080") from error
    except RuntimeError:
        logger.exception("Jax plugin configuration error: Exception when calling %s.initialize()", "jax_plugins.cuda")
    jax.numpy.zeros(1)
"""


@pytest.mark.parametrize(
    "platforms, code, said",
    [
        ("", 0, "musiclm: no GPU can be used (Outdated CUDA installation found.): the CPU computes. nvidia-smi shows"),
        ("cpu", 0, ""),
        (
            "cuda",
            1,
            "musiclm fake: the accelerator cannot be used (Outdated CUDA installation found.): nvidia-smi shows",
        ),
    ],
)
def test_a_driver_that_is_too_old_is_one_line(platforms, code, said):
    environment = os.environ | {"JAX_PLATFORMS": platforms}
    done = subprocess.run(program(PLUGIN), capture_output=True, text=True, env=environment)
    assert done.returncode == code and done.stderr.count("\n") == bool(said), done.stderr
    assert done.stderr.startswith(said) and ("'cuda12' needs driver 525 or newer" in done.stderr) == bool(said)


def test_on_a_gpu_the_share_of_its_memory_is_named(raised, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    _, err = raised(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: trying to allocate 1.0GiB"))
    assert "or the XLA_PYTHON_CLIENT_MEM_FRACTION of it (docs/gpu.md)" in err and err.count("\n") == 1


def test_settings_of_jax_that_change_music_are_put_aside():
    body = """
    import jax
    print(jax.numpy.ones(2, float).dtype, float(jax.random.normal(jax.random.key(0))))
"""
    plain = subprocess.run(program(body), capture_output=True, text=True)
    assert plain.returncode == 0 and plain.stdout.startswith("float32 "), plain.stderr
    settings = {"JAX_ENABLE_X64": "perhaps", "JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_TRANSFER_GUARD": "disallow"}
    settings |= {"JAX_THREEFRY_PARTITIONABLE": "0", "JAX_RANDOM_SEED_OFFSET": "7", "JAX_LEGACY_PRNG_KEY": "error"}
    done = subprocess.run(program(body), capture_output=True, text=True, env=os.environ | settings)
    assert done.returncode == 0 and done.stdout == plain.stdout
    assert done.stderr.replace(plain.stderr, "").count("\n") == 1
    assert all(f"{name}={value}" in done.stderr for name, value in settings.items())


def test_the_settings_put_aside_are_jax_settings():
    known = {name.upper() for name in jax.config.values}
    assert set(jax_environment.PUT_ASIDE) <= known


# As in containers: a home folder that cannot be written (for root too), none at all, or only the cache of the commands.
@pytest.mark.parametrize("home, kept", [("/proc", False), ("/dev/null", False), ("/proc", True)])
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, home, kept):
    body = """
    from musiclm_jax.launch import command
    command.enable_compilation_cache()
    import jax, matplotlib.font_manager
    jax.jit(lambda x: x + 1)(1.0)
    print(os.environ["NUMBA_CACHE_DIR"], matplotlib.get_cachedir())
"""
    cleared = ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "MPLCONFIGDIR", "JAX_COMPILATION_CACHE_DIR", "MUSICLM_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in cleared}
    environment |= {"HOME": home, "TMPDIR": str(tmp_path)} | ({"MUSICLM_CACHE": str(tmp_path / "kept")} if kept else {})
    done = subprocess.run(program(body), capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0 and all(place.startswith(str(tmp_path)) for place in done.stdout.split())
    if kept:
        assert done.stderr == "" and list((tmp_path / "kept").glob("*-cache"))
    else:
        assert done.stderr.count("\n") == 1 and f"{home}/.cache/musiclm_jax cannot be written (" in done.stderr
        assert "set MUSICLM_CACHE to a folder that can" in done.stderr and list(tmp_path.iterdir()) == []


LATIN = "caf\udce9"  # what Python makes of the bytes that a terminal in Latin-1 sends


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", LATIN],
        ["generate", "jazz", "--at", "0:15", LATIN],
        ["generate", "--mix", f"{LATIN}:1", "jazz:1"],
        ["listen", "--a", "a", "--b", "b", "--output", "c", "--listener", LATIN],
        ["evaluate", "--output", "a", "--system", LATIN],
    ],
)
def test_texts_that_are_not_utf8_are_refused_in_one_line(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(SystemExit):
        assert main.main(arguments) == 2
    err = capsys.readouterr().err
    assert r"'caf\udce9' is not UTF-8: set the terminal to UTF-8" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["tokenize", "--help"], ["generate", "--help"], ["train", "--help"]])
def test_python_without_docstrings(arguments):
    done = subprocess.run([sys.executable, "-OO", "-m", "musiclm_jax.launch.main", *arguments], capture_output=True)
    if arguments[0] == "train":
        assert done.returncode == 2 and b"start Python without -OO" in done.stderr and done.stderr.count(b"\n") == 1
    else:
        assert done.returncode == 0 and b"usage: musiclm" in done.stdout
