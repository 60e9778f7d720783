"""Checks that the `musiclm_jax` that tests import is this checkout, or exactly what this checkout installs."""

import pathlib

# Folders of the checkout, and where they are installed in the package.
FOLDERS = {"musiclm_jax": ".", "tasks": "tasks", "launch": "launch", "gin_configs": "gin_configs"}
INSTALLED_WHOLE = {".py", ".gin"}  # every file with these extensions is installed


def problem(package: pathlib.Path, checkout: pathlib.Path) -> str:
    """Returns one line that says how an imported package differs from a checkout; "" if it does not.

    Args:
      package: folder of the imported `musiclm_jax`.
      checkout: root of the repository.
    """
    if package.resolve() == (checkout / "musiclm_jax").resolve():
        return ""
    difference = first_difference(files(package), checkout_files(checkout))
    if not difference:
        return ""
    return (
        f"the tests would run against {package}, which is not this checkout: {difference}. "
        f"Remove {checkout / 'build'} if it is there, then: pip install -e '.[test]'"
    )


def files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the files below a folder by relative path, without caches of Python and numba."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path for path in found}


def checkout_files(checkout: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the files of a checkout by their path in the installed package."""
    return {
        (pathlib.PurePosixPath(target) / name).as_posix(): path
        for source, target in FOLDERS.items()
        for name, path in files(checkout / source).items()
    }


def first_difference(installed: dict[str, pathlib.Path], expected: dict[str, pathlib.Path]) -> str:
    """Describes the first file that differs: missing in the checkout, with other content, or not installed."""
    for name, path in sorted(installed.items()):
        if name not in expected:
            return f"{name} is installed, but absent here"
        if path.read_bytes() != expected[name].read_bytes():
            return f"{name} differs"
    missing = (n for n, path in sorted(expected.items()) if n not in installed and path.suffix in INSTALLED_WHOLE)
    return next((f"{name} is not installed" for name in missing), "")
