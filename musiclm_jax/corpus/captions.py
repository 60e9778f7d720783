"""Captions that state only facts of the arrangement, in varied wording.

Mood words follow a fixed rule: mode and tempo class determine them (MOODS); if the mode is uncertain, there is no mood
word. Every caption names the lead instrument. People write prompts as lists of words, requests, phrases or several
sentences, so there are templates for each: a model trained on one form does not follow the others.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from musiclm_jax.corpus import caption_words as words
from musiclm_jax.corpus.arrangement import Arrangement
from musiclm_jax.corpus.caption_words import MOODS, TEMPO_WORDS, bare, capital, join
from musiclm_jax.corpus.caption_words import with_article as an

LOUD_DB, QUIET_DB = 1.5, -7.0  # a gain above the first is called loud, below the second quiet
CAPTIONS_PER_CLIP = (4, 5, 6)
# Shares of captions in lower case (half of them without the final period), in upper case, and without articles.
LOWER_SHARE, UPPER_SHARE, TELEGRAM_SHARE = 0.25, 0.03, 0.05


def _moods(arrangement: Arrangement) -> tuple[str, ...]:
    """Returns the mood words allowed by the rule in MOODS; there may be none."""
    mode = "major" if arrangement.mode == "mixolydian" else arrangement.mode
    return MOODS.get((mode, arrangement.tempo), ())


def _loudness(gain_db: float) -> tuple[str, ...]:
    """Returns words for the loudness if it is notable, else an empty tuple."""
    return words.LOUD if gain_db > LOUD_DB else words.QUIET if gain_db < QUIET_DB else ()


class Wording:
    """Draws true phrases about one clip; each call may use other words.

    Attributes:
      arrangement: what is played.
      moods: allowed mood words.
      loudness: words for the loudness; may be empty.
      sung: whether the lead is a choir.
      instrumental: whether no part is a choir.
      said: facts that the current caption has already stated; `facts` and `tags` skip them.
    """

    def __init__(self, arrangement: Arrangement, gain_db: float, rng: np.random.Generator):
        self.arrangement = arrangement
        self.moods = _moods(arrangement)
        self.loudness = _loudness(gain_db)
        self.sung = arrangement.lead.name == "choir"
        self.instrumental = not self.sung and not any("choir" in name for name in arrangement.companions)
        self.said: set[str] = set()
        self._rng = rng

    def pick(self, options: Sequence[str]) -> str:
        """Draws one of the options."""
        return str(options[int(self._rng.integers(len(options)))])

    def maybe(self, share: float) -> bool:
        """Returns True with probability `share`."""
        return bool(self._rng.random() < share)

    def shuffled(self, phrases: Sequence[str], fewest: int = 0) -> list[str]:
        """Draws at least `fewest` of the non-empty phrases, in random order."""
        there = [phrase for phrase in phrases if phrase]
        count = self._rng.integers(min(fewest, len(there)), len(there) + 1)
        return [there[index] for index in self._rng.permutation(len(there))[:count]]

    def _lead(self) -> str:
        # The most common name comes first and is drawn most often.
        names = words.LEADS.get(self.arrangement.lead.name, self.arrangement.lead.words)
        return names[0] if self.maybe(0.3) else self.pick(names)

    def lead(self) -> str:
        """Names the lead: "a violin", "the violin" or "strings"."""
        name = self._lead()
        return f"the {bare(name)}" if name[:2] in ("a ", "an") and self.maybe(0.2) else name

    def bare_lead(self) -> str:
        """Names the lead without an article: "violin"."""
        return bare(self._lead())

    def lead_plays(self, ing: bool = False) -> str:
        """Says that the lead plays: "a fiddler plays", "strings are playing"."""
        person = words.PEOPLE.get(self.arrangement.lead.name)
        name = person if person and self.maybe(0.4) else self.lead()
        plural = not name.startswith(("a ", "an ", "the ")) or name == "the pipes"
        if ing or self.sung:
            return f"{name} {'are' if plural else 'is'} {'singing' if self.sung else 'playing'}"
        return f"{name} play{'' if plural else 's'}"

    def on_lead(self) -> str:
        """Returns "on a violin", or "by a choir" for a choir."""
        return f"{'by' if self.sung else 'on'} {self.lead()}"

    def played(self) -> str:
        """Returns a phrase such as "played on a violin"."""
        return f"{'sung' if self.sung else self.pick(('played', 'performed'))} {self.on_lead()}"

    def mood(self) -> str:
        """Draws a mood word, or returns "" if none is certain."""
        self.said.add("mood")
        return self.pick(self.moods) if self.moods else ""

    def tempo(self) -> str:
        """Draws a tempo adjective: "slow"."""
        self.said.add("tempo")
        return self.pick(TEMPO_WORDS[self.arrangement.tempo])

    def tempo_state(self) -> str:
        """Draws a word to follow "the tempo is": "medium"."""
        self.said.add("tempo")
        return self.pick(words.TEMPO_IS[self.arrangement.tempo])

    def tempo_noun(self) -> str:
        """Draws a tempo noun: "a slow pace"."""
        self.said.add("tempo")
        return self.pick(words.TEMPO_NOUNS[self.arrangement.tempo])

    def feel(self, between: str = " and ") -> str:
        """Draws mood, tempo or both, in any order."""
        drawn = self.shuffled(("mood", "tempo") if self.moods else ("tempo",), fewest=1)
        return between.join(self.mood() if name == "mood" else self.tempo() for name in drawn)

    def kind(self) -> str:
        """Names the kind of piece: "jig"."""
        return self.pick(words.KINDS.get(self.arrangement.score.kind, (self.arrangement.score.kind,)))

    def piece(self, mood_share: float = 0.5, tempo_share: float = 0.5) -> str:
        """Describes the piece: "slow, sad Irish air"."""
        kind, origin = self.kind(), self.arrangement.score.origin
        front = self.shuffled(
            (self.mood() if self.maybe(mood_share) else "", self.tempo() if self.maybe(tempo_share) else ""), fewest=2
        )
        origin = origin + " " if origin and self.maybe(0.4) and origin.split()[0].lower() not in kind.lower() else ""
        return self.pick((", ", " ")).join(front) + (" " if front else "") + origin + kind

    def companions(self) -> list[str]:
        """Names the accompanying instruments, drums last; empty for a solo."""
        self.said.add("texture")
        names = [self.pick(words.COMPANIONS.get(name, (name,))) for name in self.arrangement.companions[:3]]
        return names + ([self.pick(words.DRUMS)] if self.arrangement.drum_tracks else [])

    def texture(self) -> str:
        """Describes the accompaniment, to follow "the lead, "."""
        beside = self.companions()
        if self.arrangement.texture == "solo":
            harmony = self.arrangement.voices == "in harmony"
            return self.pick(words.SOLO + (words.SOLO_HARMONY if harmony else words.SOLO_LINE))
        if not beside:
            return self.pick(("in an ensemble", "with other instruments", "together with others"))
        those = join(beside)
        options = [f"accompanied by {those}", f"with {those}", f"together with {those}", f"backed by {those}",
                   f"over {those}", f"with {those} in the background", f"supported by {those}"]  # fmt: skip
        if self.arrangement.texture == "band":
            options += [
                f"with a band of {those}",
                f"in front of a full band with {those}",
                f"backed by a band: {those}",
            ]
        if len(self.arrangement.companions) > 1 and self.arrangement.texture == "ensemble":
            options.append(f"in an ensemble with {those}")
        return self.pick(options)

    def room(self) -> str:
        """Describes the room: "a lot of reverb"."""
        self.said.add("room")
        return self.pick(words.ROOMS[self.arrangement.room])

    def tags(self) -> list[str]:
        """Draws at least two short phrases with facts that the caption has not stated, without the lead."""
        said, beside = set(self.said), [bare(name) for name in self.companions()]
        texture = "solo" if self.arrangement.texture == "solo" else self.pick(beside) if beside else "ensemble"
        options = [
            "" if "mood" in said else self.mood(),
            "" if "tempo" in said else self.tempo(),
            self.kind(),
            texture,
            self.pick(words.ROOM_TAGS[self.arrangement.room]),
            self.pick(self.loudness or ("",)),
            f"{self.arrangement.mode} key" if self.arrangement.mode in ("major", "minor") else "",
        ]
        return self.shuffled(options, fewest=2)

    def facts(self, most: int = 3) -> str:
        """Draws up to `most` sentences, maybe none, on facts not yet stated; each begins with a space."""
        said = set(self.said)  # stating one fact here does not rule out another
        sentences = [
            "" if "tempo" in said else self._tempo_fact(),
            "" if "mood" in said else self._mood_fact(),
            "" if "room" in said else self._room_fact(),
            "" if "texture" in said else self._texture_fact(),
            self._mode_fact(),
            self._loudness_fact(),
            self._no_drums_fact(),
            self._no_singer_fact(),
        ]
        return "".join(" " + text for text in self.shuffled(sentences)[:most])

    def _tempo_fact(self) -> str:
        state, pace = self.tempo_state(), self.tempo_noun()
        forms = (f"The tempo is {state}.", f"It is played at {pace}.", f"It moves at {pace}.", f"It has {pace}.")
        return self.pick(forms)

    def _mood_fact(self) -> str:
        mood = self.mood()
        if not mood:
            return ""
        feels = (f"The mood is {mood}.", f"It sounds {mood}.", f"It has {an(mood)} feel.", f"The music is {mood}.")
        return self.pick((*feels, f"The atmosphere is {mood}."))

    def _room_fact(self) -> str:
        return self.pick(("There is {}.", "It is recorded with {}.")).format(self.room())

    def _texture_fact(self) -> str:
        if self.arrangement.texture == "solo":
            return self.pick(("It is a solo.", "Nothing else plays.", "There is no accompaniment."))
        beside = self.companions()
        if not beside:
            return ""
        places = ("In the background you hear {}.", "The accompaniment is {}.", "It comes with {}.", "Also: {}.")
        return self.pick(places).format(join(beside))

    def _mode_fact(self) -> str:
        mode = self.arrangement.mode
        return f"It is in a {mode} key." if mode in ("major", "minor") and self.maybe(0.4) else ""

    def _loudness_fact(self) -> str:
        return f"The recording is {self.pick(self.loudness)}." if self.loudness else ""

    # Absence is rarely stated: people ask for what they want.

    def _no_drums_fact(self) -> str:
        clip = self.arrangement
        # Steel drums and timpani are drums, too.
        drums = clip.drum_tracks or clip.lead.name == "steel drums" or "timpani" in clip.companions
        if drums or not self.maybe(0.15):
            return ""
        return self.pick(("There are no drums.", "It has no drums.", "No drums."))

    def _no_singer_fact(self) -> str:
        if not self.instrumental or not self.maybe(0.25):
            return ""
        return self.pick(("It is instrumental music.", "It is an instrumental.", "There is no singer."))


# Each template names the lead. LISTS are lists of words, SENTENCES are sentences or phrases.
LISTS: tuple[Callable[[Wording], str], ...] = (
    lambda w: ", ".join(w.shuffled((w.bare_lead(), *w.tags()), fewest=9)),
    lambda w: ", ".join((f"{w.feel(' ')} {w.bare_lead()}", *w.tags()[:3])),
    lambda w: ", ".join((w.bare_lead(), *w.tags()[:4])),
    lambda w: f"{w.bare_lead()} {w.kind()}, {w.feel(', ')}",
    lambda w: f"{w.feel(' ')} {w.bare_lead()} music",
    lambda w: f"{w.feel(' ')} {w.kind()}, {w.bare_lead()}",
    lambda w: f"{w.kind()} / {w.bare_lead()} / {w.feel(' / ')}",
)
SENTENCES: tuple[Callable[[Wording], str], ...] = (
    # Noun phrases.
    lambda w: f"{an(w.piece())} {w.played()}, {w.texture()}.{w.facts(1)}",
    lambda w: f"{w.lead()} {'singing' if w.sung else 'playing'} {an(w.piece(0.7, 0.3))}, {w.texture()}.{w.facts(1)}",
    lambda w: f"{w.piece(1.0, 1.0)} for {w.bare_lead()}, {w.texture()}.",
    lambda w: f"{w.feel()} music: {an(w.piece(0.0, 0.0))} with {w.lead()}, {w.texture()}.",
    lambda w: f"{w.lead()}, {w.texture()}, {an(w.piece(0.6, 0.4))} with {w.room()}.",
    lambda w: f"{w.piece(0.8, 0.4)} {w.on_lead()}.",
    lambda w: f"{w.feel(', ')} {w.bare_lead()} {w.pick(('music', 'melody', 'tune'))} {w.texture()}.",
    lambda w: f"{w.bare_lead()}, {w.texture()}, at {w.tempo_noun()}.{w.facts(1)}",
    lambda w: f"the sound of {w.lead()} in {an(w.piece())}, with {w.room()}.",
    lambda w: f"{an(w.bare_lead() + ' version')} of {an(w.piece(0.4, 0.6))}.{w.facts(2)}",
    # Clauses in other orders.
    lambda w: f"{w.texture()}, {w.lead_plays()} {an(w.piece())}.{w.facts(1)}",
    lambda w: f"at {w.tempo_noun()}, {w.lead_plays()} {an(w.piece(0.7, 0.0))}.{w.facts(1)}",
    lambda w: f"with {w.room()}, {w.lead_plays(True)} {an(w.piece())}, {w.texture()}.",
    lambda w: f"{w.lead_plays(True)} {an(w.piece())}.{w.facts()}",
    lambda w: f"{w.lead_plays()} {an(w.piece(0.3, 0.3))}. {capital(w.texture())}.{w.facts(2)}",
    # Descriptions.
    lambda w: f"This is {an(w.piece(0.3, 0.6))}. The melody is {w.played()}, {w.texture()}.{w.facts(1)}",
    lambda w: f"The recording features {w.lead()}, {w.texture()}.{w.facts()}",
    lambda w: f"The recording features {an(w.piece())} that consists of {w.lead()}, {w.texture()}.{w.facts(2)}",
    lambda w: f"This song features {w.lead()} as the main instrument.{w.facts(4)}",
    lambda w: f"This is {an(w.kind())}. {capital(w.lead_plays())} the main melody.{w.facts(4)}",
    lambda w: f"The main melody of this {w.kind()} is {w.played()}.{w.facts(4)}",
    lambda w: f"This {w.kind()} is {w.feel()}. It features {w.lead()}, {w.texture()}.{w.facts(2)}",
    lambda w: f"The music is {w.feel()}. It is {an(w.piece(0.0, 0.0))} {w.played()}.{w.facts(2)}",
    lambda w: f"The tempo is {w.tempo_state()} with {w.lead()} carrying the melody, {w.texture()}.{w.facts(2)}",
    # Listeners.
    lambda w: f"You hear {w.lead()} in {an(w.piece())}, {w.texture()}.{w.facts(1)}",
    lambda w: f"I hear {an(w.piece())} {w.played()}.{w.facts(2)}",
    lambda w: f"We can hear how {w.lead_plays()} {an(w.piece())}, {w.texture()}.",
    lambda w: (
        f"Someone {'lets a choir sing' if w.sung else 'plays'} {an(w.piece())}"
        f"{'' if w.sung else ' ' + w.on_lead()}.{w.facts(2)}"
    ),
    lambda w: f"It sounds like {an(w.piece())} with {w.lead()}, {w.texture()}.",
    # Requests.
    lambda w: f"{w.pick(('Play', 'Play me', 'Give me', 'Let me hear'))} {an(w.piece(0.8, 0.3))} {w.on_lead()}.",
    lambda w: f"I {w.pick(('want', 'need', 'would like', 'am looking for'))} something {w.feel()} {w.on_lead()}.",
    lambda w: f"I {w.pick(('want', 'need', 'would like'))} {an(w.piece(0.6, 0.4))} with {w.lead()}, {w.texture()}.",
    lambda w: (
        f"{w.pick(('Make', 'Create', 'Compose', 'Write'))} {an(w.piece(0.7, 0.5))} for {w.bare_lead()}, {w.texture()}."
    ),
    lambda w: f"{w.pick(('Can', 'Could'))} you play me {an(w.piece(0.7, 0.5))} with {w.lead()}?",
    lambda w: f"Please play {w.feel()} music {w.on_lead()}, {w.texture()}.",
    lambda w: f"Something {w.feel()}, {w.texture()}, with {w.lead()} please.",
)
LIST_SHARE = 0.25  # share of captions that are lists


def _written(text: str, wording: Wording, is_list: bool) -> str:
    """Varies capitals, articles and punctuation of a text as people do."""
    text = text if is_list and wording.maybe(0.7) else capital(text)
    if wording.maybe(TELEGRAM_SHARE):
        text = re.sub(r"\b([Aa]n?|[Tt]he) (?!lot |little |touch |set )", "", text)
    if wording.maybe(LOWER_SHARE):
        text = text.lower().rstrip(".") if wording.maybe(0.5) else text.lower()
    return text.upper() if wording.maybe(UPPER_SHARE) else text


def captions(arrangement: Arrangement, gain_db: float, rng: np.random.Generator) -> list[str]:
    """Writes four to six different captions for a clip: sentences, phrases or lists; each names the lead.

    Args:
      arrangement: what is played.
      gain_db: the clip's final gain in dB.
      rng: the clip's generator.
    """
    wording = Wording(arrangement, gain_db, rng)
    wanted = CAPTIONS_PER_CLIP[rng.integers(len(CAPTIONS_PER_CLIP))]
    # No template occurs twice in a clip, so that its captions differ in more than synonyms.
    lists, sentences = list(rng.permutation(len(LISTS))), list(rng.permutation(len(SENTENCES)))
    result: list[str] = []
    while len(result) < wanted:
        is_list = bool(lists) and wording.maybe(LIST_SHARE)
        template = LISTS[lists.pop()] if is_list else SENTENCES[sentences.pop()]
        wording.said.clear()
        text = _written(template(wording), wording, is_list)
        if text not in result:
            result.append(text)
    return result


def aspects(arrangement: Arrangement, gain_db: float, rng: np.random.Generator) -> list[str]:
    """Writes short, true phrases about a clip in random order, like MusicCaps' aspect lists."""
    moods, wording = _moods(arrangement), Wording(arrangement, gain_db, rng)
    result = [arrangement.lead.name, arrangement.score.kind, f"{arrangement.tempo} tempo", arrangement.texture]
    if arrangement.texture == "solo":
        result.append(arrangement.voices)
    result += [f"{arrangement.mode} key"] if arrangement.mode in ("major", "minor") else []
    result += ["mixolydian mode"] if arrangement.mode == "mixolydian" else []
    result += [arrangement.score.origin] if arrangement.score.origin else []
    result += list(rng.permutation(moods)[:2]) if moods else []
    result += [phrase.removeprefix("a ").removeprefix("an ") for phrase in arrangement.companions]
    result.append("drums" if arrangement.drum_tracks else "no percussion")
    result += ["reverberant"] if arrangement.room == "hall" else ["dry sound"] if arrangement.room == "dry" else []
    result += ["loud"] if gain_db > LOUD_DB else ["quiet"] if gain_db < QUIET_DB else []
    # Add synonyms, but keep the plain names: evaluations read them.
    result += [name for name in (wording.bare_lead(), wording.tempo(), wording.kind()) if wording.maybe(0.5)]
    unique = list(dict.fromkeys(str(phrase) for phrase in result))
    return [unique[index] for index in rng.permutation(len(unique))]
