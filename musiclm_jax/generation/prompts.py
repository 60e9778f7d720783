"""Prompts: texts, mixes of texts, and stories, in which the text changes with time (MusicLM section 5.3).

Says which texts can be used, and whether they look like English, the language of the text encoder.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

MIN_SECTION_SECONDS = 1.0
MAX_PROMPT_CHARACTERS = 1000  # far beyond what the text encoder reads (128 word pieces)

# Small words that tell a language: a prompt with two or more of the others, and more than of the English, is foreign.
ENGLISH_WORDS = frozenset("a an and at by for from in is of on over that the this to with without".split())
OTHER_WORDS = frozenset(
    "au aux avec dans de des du et le les pour sur très un une der das dem den ein eine einem einen einer für im ist "
    "mit und von vom zum zur auf sehr del el los las y con para por muy una uno di il gli lo nel nella che molto com "
    "em muito os um uma na não een het met van voor op zeer en och med ett på".split()
)


class Section(NamedTuple):
    """What the music is like from `start` seconds on: a text, or a mix of texts."""

    start: float
    texts: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)  # one per text


@dataclasses.dataclass(frozen=True)
class Story:
    """What one piece is like: one section or several.

    Attributes:
      sections: in the order of their times; the first begins at 0.
      blend: seconds around the start of a section in which the music goes from the section before to it; 0 switches.
    """

    sections: tuple[Section, ...]
    blend: float = 0.0

    def __post_init__(self) -> None:
        """Checks times, texts and weights.

        Raises:
          ValueError: in one line, naming what is wrong.
        """
        check_texts([text for section in self.sections for text in section.texts])
        for section in self.sections:
            if len(section.weights) != len(section.texts) or not all(0 < w < math.inf for w in section.weights):
                raise ValueError(f"weights are {section.weights}: give each of {len(section.texts)} texts more than 0")
        starts = [section.start for section in self.sections]
        if starts[0] != 0:
            raise ValueError(f"the story begins at {clock(starts[0])}: begin it at 0:00")
        for earlier, later in itertools.pairwise(starts):
            if later <= earlier:
                raise ValueError(f"{clock(later)} stands after {clock(earlier)}: put the times of a story in order")
            if later - earlier < max(MIN_SECTION_SECONDS, self.blend):
                raise ValueError(
                    f"only {later - earlier:g} s lie between {clock(earlier)} and {clock(later)}: a section needs "
                    f"{MIN_SECTION_SECONDS:g} s, and no less than the blend, which is {self.blend:g} s"
                )
        if not 0 <= self.blend < math.inf:
            raise ValueError(f"blend is {self.blend:g}: give 0 seconds or more")

    def __str__(self) -> str:
        """The text alone of a simple prompt, "jazz:0.7 rock:0.3" of a mix, "0:00 jazz 0:15 rock" of a story."""
        mixes = [
            texts[0] if len(texts) == 1 else " ".join(f"{t}:{w:g}" for t, w in zip(texts, weights, strict=True))
            for _, texts, weights in self.sections
        ]
        if len(mixes) == 1:
            return mixes[0]
        return " ".join(f"{clock(section.start)} {mix}" for section, mix in zip(self.sections, mixes, strict=True))


Prompt = str | Story


def as_stories(prompts: Sequence[Prompt]) -> list[Story]:
    """Texts as stories of one section, stories as they are.

    Raises:
      ValueError: in one line, if there is no prompt, or one is neither, empty or too long.
    """
    if isinstance(prompts, str | Story):
        raise ValueError(f"prompts is one prompt: give a list, [{str(prompts)[:40]!r}]")
    if not prompts:
        raise ValueError("there is no prompt: describe the music in a few words")
    return [prompt if isinstance(prompt, Story) else Story((Section(0.0, (prompt,)),)) for prompt in prompts]


def timed_story(times_and_texts: Sequence[tuple[str, str]], blend: float = 0.0) -> Story:
    """A story of pairs such as ("0:15", "rock band").

    Raises:
      ValueError: in one line, if a time or text cannot be used.
    """
    return Story(tuple(Section(parse_time(time), (text,)) for time, text in times_and_texts), blend)


def parse_story(lines: str, blend: float = 0.0) -> Story:
    """A story of lines such as "0:15 rock band".

    Empty lines, and those that begin with #, are skipped; a colon after the time, as YAML has it, is taken, too.

    Raises:
      ValueError: in one line, naming the line that cannot be used.
    """
    pairs = []
    for number, line in enumerate(lines.splitlines(), 1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        time, _, text = line.strip().partition(" ")
        if not time[:1].isdigit() or not text.strip():
            raise ValueError(
                f"line {number} is {line.strip()[:40]!r}: write a time and a text, such as '0:15 rock band'"
            )
        pairs.append((time.removesuffix(":"), text.strip()))
    if not pairs:
        raise ValueError("the story is empty: write a line for each section, such as '0:15 rock band'")
    return timed_story(pairs, blend)


def parse_mix(weighted: Sequence[str]) -> Story:
    """One prompt of texts with weights, such as "jazz:0.7" and "rock:0.3".

    Raises:
      ValueError: in one line, if a weight is missing or a text cannot be used.
    """
    texts, weights = [], []
    for given in weighted:
        text, _, weight = given.rpartition(":")
        try:
            weights.append(float(weight))
        except ValueError:
            raise ValueError(f"{given[:40]!r} has no weight: write it behind a colon, such as 'jazz:0.7'") from None
        texts.append(text)
    return Story((Section(0.0, tuple(texts), tuple(weights)),))


def parse_time(text: str) -> float:
    """Seconds of "75", "1:15", "0:07.5" or "1:02:03".

    Raises:
      ValueError: if it is no time.
    """
    if not re.fullmatch(r"(\d+:)?(\d+:)?\d+(\.\d+)?", text) or any(float(part) >= 60 for part in text.split(":")[1:]):
        raise ValueError(f"{text!r} is no time: write minutes and seconds, such as 0:15 or 1:30")
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def clock(seconds: float) -> str:
    """Seconds as "1:15" or "0:07.5"."""
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{int(minutes)}:{rest:06.3f}".rstrip("0").rstrip(".") if rest % 1 else f"{int(minutes)}:{int(rest):02d}"


def check_texts(texts: Sequence[str]) -> None:
    """Refuses texts that cannot be used.

    Raises:
      ValueError: in one line, if one is no text, empty or too long.
    """
    for prompt in texts:
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {prompt!r} is a {type(prompt).__name__}: give a string")
        if not any(character.isalnum() for character in prompt):
            raise ValueError(f"prompt {prompt[:40]!r} holds no words: describe the music in a few words")
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise ValueError(
                f"prompt {prompt[:40]!r}... has {len(prompt):,} characters: give at most {MAX_PROMPT_CHARACTERS:,} (a "
                "sentence or two work best)"
            )


def language_warnings(stories: Sequence[Story]) -> list[str]:
    """One line for each text that is not English (the text encoder's language), by its script or its small words."""
    lines = []
    for prompt in [text for story in stories for section in story.sections for text in section.texts]:
        letters = [character for character in prompt if character.isalpha()]
        words = "".join(c if c.isalpha() else " " for c in prompt.lower()).split()
        english, other = (sum(word in known for word in words) for known in (ENGLISH_WORDS, OTHER_WORDS))
        foreign_script = sum(ord(letter) > 0x24F for letter in letters) > len(letters) / 2  # beyond Latin Extended-B
        if foreign_script or (other >= 2 and other > english):
            lines.append(
                f"prompt {prompt[:40]!r} does not look like English, which the models know: the music may not follow it"
            )
    return lines
