"""Prompts: texts, mixes of texts, and stories, in which the text changes over time (MusicLM section 5.3).

Checks that texts are valid, and whether they look like English, the language of the text encoder.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

MIN_SECTION_SECONDS = 1.0
MAX_PROMPT_CHARACTERS = 1000  # far more than the text encoder reads (128 word pieces)

# Function words identify the language: a prompt with at least two foreign ones, and fewer English ones, is foreign.
ENGLISH_WORDS = frozenset("a an and at by for from in is of on over that the this to with without".split())
OTHER_WORDS = frozenset(
    "au aux avec dans de des du et le les pour sur très un une der das dem den ein eine einem einen einer für im ist "
    "mit und von vom zum zur auf sehr del el los las y con para por muy una uno di il gli lo nel nella che molto com "
    "em muito os um uma na não een het met van voor op zeer en och med ett på".split()
)


class Section(NamedTuple):
    """Describes the music from `start` seconds on: a text, or a mix of texts."""

    start: float
    texts: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)  # one per text


@dataclasses.dataclass(frozen=True)
class Story:
    """Describes one piece in one or more sections.

    Attributes:
      sections: in order of time; the first begins at 0.
      blend: duration in seconds of the transition centered on the start of each later section; 0 switches at once.
    """

    sections: tuple[Section, ...]
    blend: float = 0.0

    def __post_init__(self) -> None:
        """Checks times, texts and weights.

        Raises:
          ValueError: if one is invalid; the message is one line.
        """
        check_texts([text for section in self.sections for text in section.texts])
        for section in self.sections:
            if len(section.weights) != len(section.texts) or not all(0 < w < math.inf for w in section.weights):
                raise ValueError(f"weights are {section.weights}: give each of {len(section.texts)} texts more than 0")
        starts = [section.start for section in self.sections]
        if not all(math.isfinite(start) for start in starts):
            raise ValueError(f"the sections of the story begin at {starts} s: give finite times")
        if starts[0] != 0:
            raise ValueError(f"the story begins at {clock(starts[0])}: begin it at 0:00")
        for earlier, later in itertools.pairwise(starts):
            if later <= earlier:
                raise ValueError(f"{clock(later)} follows {clock(earlier)}: put the times of a story in order")
            if later - earlier < max(MIN_SECTION_SECONDS, self.blend):
                raise ValueError(
                    f"only {later - earlier:g} s lie between {clock(earlier)} and {clock(later)}: a section must last "
                    f"at least {MIN_SECTION_SECONDS:g} s, and at least as long as the blend ({self.blend:g} s)"
                )
        if not 0 <= self.blend < math.inf:
            raise ValueError(f"blend is {self.blend:g}: give 0 seconds or more")

    def __str__(self) -> str:
        """Returns a simple prompt's text, "jazz:0.7 rock:0.3" for a mix, "0:00 jazz 0:15 rock" for a story."""
        mixes = [
            texts[0] if len(texts) == 1 else " ".join(f"{t}:{w:g}" for t, w in zip(texts, weights, strict=True))
            for _, texts, weights in self.sections
        ]
        if len(mixes) == 1:
            return mixes[0]
        return " ".join(f"{clock(section.start)} {mix}" for section, mix in zip(self.sections, mixes, strict=True))


Prompt = str | Story


def as_stories(prompts: Sequence[Prompt]) -> list[Story]:
    """Converts texts to stories of one section; returns stories unchanged.

    Raises:
      ValueError: if there are no prompts, or one is of another type, empty or too long; the message is one line.
    """
    if isinstance(prompts, str | Story):
        raise ValueError(f"prompts is a single prompt: give a list, [{str(prompts)[:40]!r}]")
    if not prompts:
        raise ValueError("there is no prompt: describe the music in a few words")
    return [prompt if isinstance(prompt, Story) else Story((Section(0.0, (prompt,)),)) for prompt in prompts]


def timed_story(times_and_texts: Sequence[tuple[str, str]], blend: float = 0.0) -> Story:
    """Builds a story from pairs such as ("0:15", "rock band").

    Raises:
      ValueError: if a time or text is invalid; the message is one line.
    """
    return Story(tuple(Section(parse_time(time), (text,)) for time, text in times_and_texts), blend)


def parse_story(lines: str, blend: float = 0.0) -> Story:
    """Parses a story from lines such as "0:15 rock band".

    Empty lines and lines that begin with # are skipped. A colon after the time, as in YAML, is allowed.

    Raises:
      ValueError: if a line is invalid; the message is one line and names it.
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
    """Parses one prompt from weighted texts, such as "jazz:0.7" and "rock:0.3".

    Raises:
      ValueError: if a weight is missing or a text is invalid; the message is one line.
    """
    texts, weights = [], []
    for given in weighted:
        text, _, weight = given.rpartition(":")
        try:
            weights.append(float(weight))
        except ValueError:
            raise ValueError(f"{given[:40]!r} has no weight: write it after a colon, such as 'jazz:0.7'") from None
        texts.append(text)
    return Story((Section(0.0, tuple(texts), tuple(weights)),))


def parse_time(text: str) -> float:
    """Parses "75", "1:15", "0:07.5" or "1:02:03" to seconds.

    Raises:
      ValueError: if it is not a valid time.
    """
    if not re.fullmatch(r"(\d+:)?(\d+:)?\d+(\.\d+)?", text) or any(float(part) >= 60 for part in text.split(":")[1:]):
        raise ValueError(f"{text!r} is not a time: write minutes and seconds, such as 0:15 or 1:30")
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def clock(seconds: float) -> str:
    """Formats seconds as "1:15" or "0:07.5"."""
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{int(minutes)}:{rest:06.3f}".rstrip("0").rstrip(".") if rest % 1 else f"{int(minutes)}:{int(rest):02d}"


def check_texts(texts: Sequence[str]) -> None:
    """Checks that texts are valid prompts.

    Raises:
      ValueError: if one is not a string, is empty or too long, or has no UTF-8; the message is one line.
    """
    for prompt in texts:
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {prompt!r} is a {type(prompt).__name__}: give a string")
        if any("\ud800" <= character <= "\udfff" for character in prompt):  # bytes of another encoding
            raise ValueError(f"prompt {prompt[:40]!a} is not UTF-8: set the terminal to UTF-8")
        if not any(character.isalnum() for character in prompt):
            raise ValueError(f"prompt {prompt[:40]!r} contains no words: describe the music in a few words")
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise ValueError(
                f"prompt {prompt[:40]!r}... has {len(prompt):,} characters: give at most {MAX_PROMPT_CHARACTERS:,} (a "
                "sentence or two work best)"
            )


def language_warnings(stories: Sequence[Story]) -> list[str]:
    """Returns a warning for each text that does not look English, judged by its script and function words."""
    lines = []
    for prompt in [text for story in stories for section in story.sections for text in section.texts]:
        letters = [character for character in prompt if character.isalpha()]
        words = "".join(c if c.isalpha() else " " for c in prompt.lower()).split()
        english, other = (sum(word in known for word in words) for known in (ENGLISH_WORDS, OTHER_WORDS))
        foreign_script = sum(ord(letter) > 0x24F for letter in letters) > len(letters) / 2  # beyond Latin Extended-B
        if foreign_script or (other >= 2 and other > english):
            lines.append(
                f"prompt {prompt[:40]!r} does not look like English, the models' language: the music may not follow it"
            )
    return lines
