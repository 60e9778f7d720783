"""Bundles on the Hugging Face Hub: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION."""

import pathlib
import re

SCHEME = "hf://"
FILES = ["config.json", "*.safetensors", "vocab.txt", "tags.json", "*.md"]  # of a bundle; a repository may hold more
_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


class HubError(ValueError):
    """Raised if a bundle cannot be had from the hub; the message is one line for the user."""


def downloaded(address: str) -> pathlib.Path:
    """Downloads a bundle, or finds it in the hub's cache, and returns its folder.

    Args:
      address: hf://OWNER/NAME or hf://OWNER/NAME@REVISION.

    Raises:
      HubError: if the address is wrong, huggingface_hub is not installed, or there is no such bundle to be had.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise HubError(f"bundle {address}: expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(
            f"bundle {address}: needs huggingface_hub, which is not installed: pip install 'musiclm_jax[hub]'"
        ) from error
    repository, revision = found.groups()
    try:
        folder = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=FILES)
    except Exception as error:  # of HTTP, of the connection, of the disk: the library has no common class for them
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise HubError(f"bundle {address}: cannot be downloaded ({lines[0].strip()})") from error
    return pathlib.Path(folder)
