"""Exceptions as one line for the user: what failed, and what to do."""

import errno
import os
import platform
import re
import shlex
import sys
import traceback
from collections.abc import Sequence

import musiclm_jax
from musiclm_jax.launch import extras, jax_environment

_SMALLER = "use a smaller batch size, a shorter piece or recording, or a smaller model"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_DAMAGED = "a file that was read is damaged"
# What is said about kinds of exceptions that are no bugs of this project, by the names of their classes. A kind covers
# its subclasses. Names, because importing these modules takes seconds.
_KINDS = {
    "builtins.MemoryError": f"there is not enough memory: {_SMALLER}",
    "builtins.RecursionError": "the input is nested too deeply",
    "builtins.EOFError": _DAMAGED,
    "zipfile.BadZipFile": _DAMAGED,
    "zlib.error": _DAMAGED,
    "lzma.LZMAError": _DAMAGED,
    # Undamaged weights with a missing layer or another shape fail only when a model is applied.
    "flax.errors.FlaxError": "the weights do not fit the models of this release",
    "jax.errors.JaxRuntimeError": "the device or its compiler failed",
    "jaxlib._jax.XlaRuntimeError": "the device or its compiler failed",
    "builtins.FloatingPointError": "a result is not finite, and JAX_DEBUG_NANS or JAX_DEBUG_INFS is set",
    "tensorflow.python.framework.errors_impl.OpError": "TensorFlow cannot read or write the data",
    "subprocess.SubprocessError": "a program that was started failed",
    "concurrent.futures._base.BrokenExecutor": "a process that was started ended too early (killed, out of memory?)",
}


def explained(error: Exception) -> str | None:
    """Returns one line about an error that is not a bug of this project, or None."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        where = "a file" if error.filename is None else error.filename
        return f"{where}: {error.strerror}" + (": free some space" if error.errno in _NO_SPACE else "")
    # This project's ValueErrors are one line for the user: what was given, what was expected, what to do.
    if isinstance(error, ValueError | OSError):
        return one_line(error)
    if isinstance(error, ImportError) and not (error.name or "").startswith("musiclm_jax"):
        extra = extras.providing((error.name or "").split(".")[0])
        what = "musiclm_jax again with its dependencies" if extra is None else f"'musiclm_jax[{extra}]'"
        return f"a library is missing or damaged: {one_line(error)}: install {what}"
    said = str(error)
    if "RESOURCE_EXHAUSTED" in said or "Out of memory" in said:
        return _memory(error)
    if (unusable := _devices_error()) is not None:  # JAX may hide this cause: of platforms it does not know, for one
        chosen = os.environ.get("JAX_PLATFORMS")
        advice = f"JAX_PLATFORMS is {chosen}: unset it or set it to cpu" if chosen else "JAX_PLATFORMS=cpu uses the CPU"
        reason = (*jax_environment.unusable_plugins, one_line(unusable, hint=False))[0]
        if "cuda" in f"{chosen} {reason}".lower():
            advice = f"{jax_environment.GPU_ADVICE}. {advice}"
        return f"the accelerator cannot be used ({reason}): {advice}"
    for kind in type(error).__mro__:
        if (explanation := _KINDS.get(f"{kind.__module__}.{kind.__qualname__}")) is not None:
            return f"{explanation} ({one_line(error)})" if said.strip() else explanation
    if isinstance(error, RuntimeError) and not _is_ours(error):  # a library's state, such as that of JAX's devices
        return f"{one_line(error)} (from {_module(error)})"
    return None


def is_of_input(error: Exception) -> bool:
    """Returns whether the same command would fail again: launch scripts restart a training only if it may not."""
    return isinstance(error, ValueError | OSError | ImportError) or type(error).__module__ == "flax.errors"


def bug_report(error: Exception, command: Sequence[str]) -> str:
    """Returns one line that asks for a report of an error that should not happen.

    Args:
      error: the error.
      command: arguments of `musiclm`.
    """
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {one_line(error, hint=False)} ({place.filename}, line {place.lineno}): a bug: "
        f"please report this line, version {musiclm_jax.__version__} on Python {platform.python_version()}, and the "
        f"command: musiclm {shlex.join(command)} (MUSICLM_TRACEBACK=1 shows more)"
    )


def one_line(error: Exception, hint: bool = True) -> str:
    """Returns an error as one line; errors from libraries may have more, which `hint` tells how to see."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    lines = [line for line in lines if not line.startswith("  In call to configurable")] or lines  # gin's, of any error
    return lines[0] + (" (MUSICLM_TRACEBACK=1 shows more)" if hint and len(lines) > 1 else "")


def _memory(error: Exception) -> str:
    """Returns one line about memory that ran out: how much was asked for, and what to change."""
    asked = re.search(r"allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error))
    amount = ""
    if asked is not None:
        number, unit = float(asked[1].rstrip(".")), asked[2]
        amount = f" for {number / 2**30:.2g} GiB more" if unit == "bytes" else f" for {number:g} {unit} more"
    share = ""
    if "jax" in sys.modules and _devices_error() is None and sys.modules["jax"].default_backend() == "gpu":
        share = "; XLA takes 75% of a GPU's memory, or the XLA_PYTHON_CLIENT_MEM_FRACTION of it (docs/gpu.md)"
    return f"there is not enough memory{amount}: {_SMALLER}{share} ({one_line(error)})"


def _devices_error() -> Exception | None:
    """Returns why JAX cannot use its devices, or None."""
    if "jax" in sys.modules:
        try:
            sys.modules["jax"].devices()
        except Exception as error:  # a RuntimeError or an AssertionError
            return error
    return None


def _module(error: Exception) -> str:
    """Returns the name of the module that raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", sys.executable)


def _is_ours(error: Exception) -> bool:
    return _module(error).startswith("musiclm_jax")
