"""Prompts: which texts can be used, and whether they look like English, the language of the text encoder."""

from collections.abc import Sequence

MAX_PROMPT_CHARACTERS = 1000  # far beyond what the text encoder reads (128 word pieces)

# Small words that tell a language: a prompt with two or more of the others, and more than of the English, is foreign.
ENGLISH_WORDS = frozenset("a an and at by for from in is of on over that the this to with without".split())
OTHER_WORDS = frozenset(
    "au aux avec dans de des du et le les pour sur très un une der das dem den ein eine einem einen einer für im ist "
    "mit und von vom zum zur auf sehr del el los las y con para por muy una uno di il gli lo nel nella che molto com "
    "em muito os um uma na não een het met van voor op zeer en och med ett på".split()
)


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses prompts that cannot be used.

    Raises:
      ValueError: in one line, if there is none, or one is no text, empty or too long.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is one string: give a list, [{prompts[:40]!r}]")
    if not prompts:
        raise ValueError("there is no prompt: describe the music in a few words")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {prompt!r} is a {type(prompt).__name__}: give a string")
        if not any(character.isalnum() for character in prompt):
            raise ValueError(f"prompt {prompt[:40]!r} holds no words: describe the music in a few words")
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise ValueError(
                f"prompt {prompt[:40]!r}... has {len(prompt):,} characters: give at most {MAX_PROMPT_CHARACTERS:,} (a "
                "sentence or two work best)"
            )


def language_warnings(prompts: Sequence[str]) -> list[str]:
    """One line for each prompt that is not English (the text encoder's language), by its script or its small words."""
    lines = []
    for prompt in prompts:
        letters = [character for character in prompt if character.isalpha()]
        words = "".join(c if c.isalpha() else " " for c in prompt.lower()).split()
        english, other = (sum(word in known for word in words) for known in (ENGLISH_WORDS, OTHER_WORDS))
        foreign_script = sum(ord(letter) > 0x24F for letter in letters) > len(letters) / 2  # beyond Latin Extended-B
        if foreign_script or (other >= 2 and other > english):
            lines.append(
                f"prompt {prompt[:40]!r} does not look like English, which the models know: the music may not follow it"
            )
    return lines
