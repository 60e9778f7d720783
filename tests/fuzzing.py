"""What the fuzz tests share: how many examples they try, and what a function may do with what strangers hand over.

In the suite, each test tries a fixed set of examples. With MUSICLM_FUZZ=1000 (`.ci/nightly`), it tries 1000 times as
many, different in every run: an hour in one process.
"""

import contextlib
import os
import pathlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
from hypothesis import strategies as st

from musiclm_jax.launch import failures

TIMES = int(os.environ.get("MUSICLM_FUZZ", 1))
PROFILE = "suite" if TIMES == 1 else "nightly"
SECONDS = 60  # no example takes longer on any machine
MEBIBYTES = 500  # of memory that an example may take

hypothesis.settings.register_profile(
    PROFILE,
    derandomize=TIMES == 1,
    database=None,
    deadline=None,
    print_blob=True,
    # Files are written anew for each example, so that the folder of a test may be shared.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile(PROFILE)


def examples(count: int) -> hypothesis.settings:
    """Sets the number of examples that a test tries in the suite."""
    return hypothesis.settings(max_examples=count * TIMES)


def outcome(function: Callable[..., Any], *arguments: Any, named: str | os.PathLike | None = None) -> Any:
    """Returns what a function returns, or the error that the command line turns into one line.

    Args:
      function: the function.
      *arguments: its arguments.
      named: a file, or the beginning of its name, that the line must name.

    Raises:
      AssertionError: if the function raises another exception, hangs, or takes much memory.
    """
    try:
        with _limits():
            return function(*arguments)
    except AssertionError:
        raise
    except Exception as error:
        assert not isinstance(error, MemoryError | RecursionError), "no line names what is too large"
        line = failures.explained(error)
        assert line is not None, f"a bug: {type(error).__name__}: {error}"
        assert "\n" not in line and (named is None or os.fspath(named) in line), line
        return error


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Checks the time and the resident memory that the block takes."""

    def expire(number: int, frame: Any) -> None:
        raise AssertionError(f"took longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    started = _peak(forget=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert _peak() - started < MEBIBYTES, f"took {_peak() - started:.0f} MiB"


def _peak(forget: bool = False) -> float:
    """Returns the largest resident memory since `forget`, in MiB; 0 where the system does not tell (not Linux)."""
    try:
        if forget:
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


NUMBERS = st.sampled_from([0, 1, -1, 2, 0.5, 1e308, 10**9, 2**31, 2**63, 10**30, 10**400, float("inf"), float("nan")])
SCALARS = st.none() | st.booleans() | NUMBERS | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(  # what JSON can hold
    SCALARS, lambda own: st.lists(own, max_size=4) | st.dictionaries(st.text(max_size=4), own, max_size=4), max_leaves=8
)


def places(tree: Any, before: tuple = ()) -> list[tuple]:
    """Returns the paths of all values in tables and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in items for place in [(*before, key), *places(value, (*before, key))]]


def changed(tree: Any, place: tuple, value: Any) -> Any:
    """Returns a copy of tables and lists with another value at a place."""
    if not place:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[place[0]] = changed(tree[place[0]], place[1:], value)
    return copy


@st.composite
def damaged(draw: Callable, originals: list[bytes]) -> bytes:
    """Draws one of some files with bytes that are replaced, removed, repeated or inserted, or with its end missing."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        # Headers are at the beginning, where most of the decisions are made.
        start = draw(st.integers(0, min(80, len(content))) | st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 8) | st.integers(0, 2000)))
        kind = draw(st.sampled_from(["replace", "fill", "remove", "repeat", "insert", "cut"]))
        if kind == "replace":
            content[start : start + 4] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "fill":
            content[start:end] = bytes([draw(st.sampled_from([0, 1, 127, 128, 255]))]) * (end - start)
        elif kind == "remove":
            del content[start:end]
        elif kind == "repeat":
            content[start:start] = content[start:end]
        elif kind == "insert":
            content[start:start] = draw(st.binary(max_size=40))
        else:
            del content[start:]
    return bytes(content)
