"""The `musiclm` command: one subcommand per job, each imported only when it is called."""

import importlib
import os
import sys

import musiclm_jax
from musiclm_jax.launch import caches, extras, failures, interrupts, jax_environment, standard_streams

# name: (module with `main(arguments) -> int | None`, what it does)
COMMANDS = {
    "generate": ("musiclm_jax.launch.generate", "generate music from text or a recording"),
    "describe": ("musiclm_jax.launch.describe", "show the tags and captions closest to a recording, and its tokens"),
    "corpus": ("musiclm_jax.launch.corpus", "build the corpus of rendered scores that the tiny models train on"),
    "train": ("musiclm_jax.launch.train", "train one model: a tokenizer or a stage, selected by a gin file"),
    "plan": ("musiclm_jax.launch.plan", "estimate the training cost of a stage on TPUs you do not have"),
    "export": ("musiclm_jax.launch.export", "add a trained model to a bundle"),
    "evaluate": ("musiclm_jax.launch.evaluate", "score music: FAD, KLD and MCC of a bundle or of any system's clips"),
    "diagnose": ("musiclm_jax.launch.diagnose", "find the part of a bundle that is at fault, and say what to do"),
    "listen": ("musiclm_jax.launch.listen", "compare two systems by ear: blind pairs on a local web page"),
    "tokenize": ("musiclm_jax.launch.tokenize", "convert audio to the token records that the stages train on"),
    "bootstrap": ("musiclm_jax.launch.bootstrap", "train a whole bundle from scores on one accelerator in minutes"),
}
USAGE = """musiclm: music from text, with MusicLM in JAX.

usage: musiclm COMMAND ...

Try it:
  musiclm generate "a cheerful Irish jig on the fiddle" --seconds 10 --output jig.wav
  musiclm describe jig.wav

Commands:
{commands}

`musiclm COMMAND --help` explains one command. Without --bundle, commands use the models in the package.
"""


def usage() -> str:
    """Returns the help text of `musiclm`."""
    return USAGE.format(commands="\n".join(f"  {name:<9} {purpose}" for name, (_, purpose) in COMMANDS.items()))


def main(argv: list[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
      argv: arguments without the program's name; the process's arguments by default.

    Returns:
      Exit code: 0, 2 for unusable input, 1 for other failures, 128 + the signal's number if interrupted; one line on
      standard error says why. With MUSICLM_TRACEBACK=1 in the environment, errors are raised instead.
    """
    arguments = sys.argv[1:] if argv is None else argv
    with standard_streams.steady() as output, interrupts.heeded():
        code = _run(arguments)
        output.flush()
        if output.error is not None and not isinstance(output.error, BrokenPipeError):  # `musiclm ... | head` is fine
            lost = f"standard output could not be written ({output.error}): what was printed is lost, not what was made"
            print(f"musiclm: {lost}", file=sys.stderr)
            code = code or 2
    return code


def _run(arguments: list[str]) -> int:
    """Does what `main` does, on streams and with signals that it prepared."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] == "--version":
        print(f"musiclm {musiclm_jax.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"musiclm: there is no command {name!r}: use {', '.join(COMMANDS)}, or --help", file=sys.stderr)
        return 2
    if (lacking := extras.missing(name, rest)) is not None:
        print(f"musiclm {name}: {lacking}", file=sys.stderr)
        return 2
    jax_environment.put_aside()
    jax_environment.shorten_plugin_errors()
    caches.prepare()
    try:
        return importlib.import_module(COMMANDS[name][0]).main(rest) or 0
    except KeyboardInterrupt as interrupt:
        print(f"\nmusiclm {name}: interrupted", file=sys.stderr)
        return 128 + interrupts.number_of(interrupt)
    except Exception as error:
        if os.environ.get("MUSICLM_TRACEBACK") == "1":
            raise
        explanation = failures.explained(error) or failures.bug_report(error, arguments)
        print(f"musiclm {name}: {explanation}", file=sys.stderr)
        return 2 if failures.is_of_input(error) else 1


if __name__ == "__main__":
    sys.exit(main())
