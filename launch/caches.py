"""Where compiled programs are kept, also for users without a home folder: a cache that fails costs one line."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile


def folder() -> pathlib.Path:
    """Returns where programs are kept: $MUSICLM_CACHE, or musiclm_jax in the user's cache folder."""
    return pathlib.Path(os.path.expanduser(os.environ.get("MUSICLM_CACHE") or f"{_users()}/musiclm_jax"))


def _users() -> str:
    return os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")


def why_unusable(cache: pathlib.Path) -> str:
    """Creates a cache folder; returns why it cannot be written, or ""."""
    if not cache.is_absolute() and str(cache).startswith("~"):
        return "this user has no home folder"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def prepare() -> None:
    """Finds out whether the caches can be written, and says so if not; call it before numba and matplotlib.

    Those two keep theirs in the home folder. Without one, numba raises an error and matplotlib prints two lines, so
    theirs move to $MUSICLM_CACHE, or to a temporary folder.
    """
    trouble = why_unusable(folder())
    if trouble:
        print(
            f"musiclm: compiled programs are not kept: {folder()} cannot be written ({trouble}): set MUSICLM_CACHE to "
            "a folder that can",
            file=sys.stderr,
        )
    if not why_unusable(pathlib.Path(_users())):
        return
    place = folder()
    if trouble:
        try:
            place = pathlib.Path(tempfile.mkdtemp(prefix="musiclm-"))
        except OSError:  # nothing can be written here
            return
        atexit.register(shutil.rmtree, place, ignore_errors=True)
    for name, own in (("NUMBA_CACHE_DIR", "numba"), ("MPLCONFIGDIR", "matplotlib")):
        if not os.environ.get(name):
            os.environ[name] = str(place / own)
            (place / own).mkdir(exist_ok=True)
