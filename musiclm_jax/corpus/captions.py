"""Captions of true facts: what the arrangement chose, in varied sentences, and nothing else.

Mood words follow a stated rule: the mode and the tempo class decide (MOODS); without a certain mode there is no
mood word.
"""

import numpy as np

from musiclm_jax.corpus.arrangement import Arrangement

MOODS = {
    ("major", "fast"): ("cheerful", "happy", "lively", "joyful", "upbeat", "playful"),
    ("major", "moderate"): ("pleasant", "warm", "light-hearted", "friendly", "good-natured"),
    ("major", "slow"): ("peaceful", "calm", "gentle", "tender", "relaxing"),
    ("minor", "fast"): ("urgent", "restless", "tense", "driving", "dramatic"),
    ("minor", "moderate"): ("wistful", "serious", "moody", "dark"),
    ("minor", "slow"): ("sad", "melancholic", "mournful", "sombre"),
}
TEMPO_WORDS = {
    "slow": ("slow", "unhurried", "slow-paced"),
    "moderate": ("medium-tempo", "moderate", "mid-tempo"),
    "fast": ("fast", "quick", "fast-paced"),
}
KIND_WORDS = {
    "folk tune": ("folk tune", "folk melody"),
    "dance tune": ("folk dance", "dance tune"),
    "air": ("air", "song-like air"),
    "clog dance": ("clog dance", "clog"),
    "chorale": ("chorale", "chorale by Bach", "hymn-like chorale"),
    "string quartet movement": ("string quartet movement", "piece of chamber music", "movement from a string quartet"),
    "sonata movement": ("sonata movement", "movement from a sonata"),
    "ragtime": ("ragtime piece", "rag"),
    "game music": ("video game track", "piece of game music", "video game soundtrack"),
    "highland fling": ("highland fling", "Scottish fling"),
}
ROOM_WORDS = {
    "dry": ("a dry, close sound", "no reverb"),
    "room": ("a little room sound", "some room ambience"),
    "hall": ("a lot of reverb", "the echo of a large hall", "a spacious, reverberant sound"),
}
LOUD_DB, QUIET_DB = 1.5, -7.0  # gains beyond these are called loud and quiet
CAPTIONS_PER_CLIP = (3, 4, 5)


def _an(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _facts(arrangement: Arrangement) -> tuple[tuple[str, ...], bool]:
    """(mood words by the rule of MOODS, maybe none; whether there are drums)."""
    mode = "major" if arrangement.mode == "mixolydian" else arrangement.mode
    return MOODS.get((mode, arrangement.tempo), ()), bool(arrangement.drum_tracks)


def _texture_phrase(arrangement: Arrangement, rng: np.random.Generator) -> str:
    """What happens beside the lead, to stand after "the lead, "."""
    pick = lambda *options: str(rng.choice(options))  # noqa: E731
    companions = arrangement.companions[:3]
    if arrangement.texture == "solo":
        if arrangement.voices == "in harmony":
            return pick(
                "alone in full harmony", "solo, with several voices in harmony", "unaccompanied, in rich harmony"
            )
        return pick("solo", "unaccompanied", "all alone", "as a single melodic line without accompaniment")
    if arrangement.texture == "with drums":
        return pick("accompanied by drums", "with a drum beat", "over a drum kit groove", "with drums only")
    if arrangement.texture == "drone and bass":
        drone, bass = companions
        return pick(
            f"over {drone} and {bass}",
            "with a sustained drone and a bass underneath",
            f"accompanied by {drone} and bass notes",
        )
    if arrangement.texture == "band":
        if companions:
            return pick(
                f"with a band of {_join([*companions, 'drums'])}",
                f"backed by {_join([*companions, 'drums'])}",
                f"in front of a full band with {_join([*companions, 'drums'])}",
            )
        return pick("with a full band and drums", "backed by a band")
    if companions:
        drums = ["drums"] if arrangement.drum_tracks else []
        return pick(f"accompanied by {_join(companions + drums)}", f"together with {_join(companions + drums)}")
    return pick("in an ensemble", "with other instruments")


def captions(arrangement: Arrangement, gain_db: float, rng: np.random.Generator) -> list[str]:
    """Three to five different sentences about a clip.

    Args:
      arrangement: what is played.
      gain_db: the loudness that was reached.
      rng: the clip's generator.
    """
    moods, drums = _facts(arrangement)
    pick = lambda options: str(options[rng.integers(len(options))])  # noqa: E731
    score, maybe = arrangement.score, lambda share: rng.random() < share

    def piece(mood_share: float = 0.5, tempo_share: float = 0.5) -> str:
        """ "slow, sad Irish air" """
        kind = pick(KIND_WORDS.get(score.kind, (score.kind,)))
        front = []
        if maybe(tempo_share):
            front.append(pick(TEMPO_WORDS[arrangement.tempo]))
        if moods and maybe(mood_share):
            front.append(pick(moods))
        origin = score.origin + " " if score.origin and maybe(0.4) and score.origin.split()[0] not in kind else ""
        return (", ".join(front) + " " if front else "") + origin + kind

    def lead() -> str:
        return pick(arrangement.lead.words)

    def mood() -> str:
        return pick(moods)

    def tempo() -> str:
        return pick(TEMPO_WORDS[arrangement.tempo])

    def mood_and_tempo() -> str:
        return f"{mood()} and {tempo()}" if moods else tempo()

    def sounding() -> str:
        return f"{tempo()} and sounds {mood()}" if moods else tempo()

    def mood_sentence() -> str:
        return f" The mood is {mood()}." if moods else ""

    def extras() -> str:
        """A further true sentence, or nothing."""
        options = [f"There is {pick(ROOM_WORDS[arrangement.room])}."]
        if arrangement.mode in ("major", "minor"):
            options.append(f"It is in a {arrangement.mode} key.")
        if not drums:
            options.append(pick(("There are no drums.", "There is no percussion.")))
        if gain_db > LOUD_DB:
            options.append("The recording is loud.")
        if gain_db < QUIET_DB:
            options.append("The recording is quiet.")
        options.append(
            pick(("It is instrumental music.", "There is no singer.")) if arrangement.lead.name != "choir" else ""
        )
        chosen = pick(options) if maybe(0.5) else ""
        return " " + chosen if chosen else ""

    texture = lambda: _texture_phrase(arrangement, rng)  # noqa: E731
    name = arrangement.lead.name
    templates = (
        lambda: f"{_capital(_an(piece()))} played on {lead()}, {texture()}.{extras()}",
        lambda: f"{_capital(lead())} playing {_an(piece(0.7, 0.3))}, {texture()}.{extras()}",
        lambda: f"This is {_an(piece(0.3, 0.6))}. The melody is on {lead()}, {texture()}.{mood_sentence()}",
        lambda: f"The recording features {lead()}, {texture()}. The music is {sounding()}.{extras()}",
        lambda: f"{_capital(piece(1.0, 1.0))} for {name}, {texture()}.",
        lambda: f"{_capital(mood_and_tempo())} instrumental music: {_an(piece(0.0, 0.0))} with {lead()}, {texture()}.",
        lambda: f"{_capital(lead())}, {texture()}, {_an(piece(0.6, 0.4))} with {pick(ROOM_WORDS[arrangement.room])}.",
        lambda: f"{_capital(piece(0.8, 0.4))} on {lead()}.",
        lambda: f"You hear {lead()} in {_an(piece(0.5, 0.5))}, {texture()}.{extras()}",
    )  # fmt: skip
    wanted = CAPTIONS_PER_CLIP[rng.integers(len(CAPTIONS_PER_CLIP))]
    result: list[str] = []
    for index in rng.permutation(len(templates)):
        text = templates[index]()
        if text not in result:
            result.append(text)
        if len(result) == wanted:
            break
    return result


def aspects(arrangement: Arrangement, gain_db: float, rng: np.random.Generator) -> list[str]:
    """Short phrases about a clip, as in MusicCaps' aspect lists; all true, in a drawn order."""
    moods, drums = _facts(arrangement)
    result = [arrangement.lead.name, arrangement.score.kind, f"{arrangement.tempo} tempo", arrangement.texture]
    if arrangement.texture == "solo":
        result.append(arrangement.voices)
    result += [f"{arrangement.mode} key"] if arrangement.mode in ("major", "minor") else []
    result += ["mixolydian mode"] if arrangement.mode == "mixolydian" else []
    result += [arrangement.score.origin] if arrangement.score.origin else []
    result += list(rng.permutation(moods)[:2]) if moods else []
    result += [phrase.removeprefix("a ").removeprefix("an ") for phrase in arrangement.companions]
    result.append("drums" if drums else "no percussion")
    result += ["reverberant"] if arrangement.room == "hall" else ["dry sound"] if arrangement.room == "dry" else []
    result += ["loud"] if gain_db > LOUD_DB else ["quiet"] if gain_db < QUIET_DB else []
    unique = list(dict.fromkeys(str(phrase) for phrase in result))
    return [unique[index] for index in rng.permutation(len(unique))]
