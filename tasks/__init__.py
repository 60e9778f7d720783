"""seqio tasks and TFDS builders; importing a module registers its tasks."""

if __name__ != "musiclm_jax.tasks":
    raise ImportError(
        f"imported as {__name__!r}: import musiclm_jax.tasks instead, since seqio would register every task twice. "
        "Install the project with `pip install -e .` to work on it."
    )
