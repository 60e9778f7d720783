"""Captions are true and varied, name their lead, and avoid the words reserved for benchmarks/paraphrases.py."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from benchmarks import paraphrases
from musiclm_jax.corpus import arrangement, caption_words, captions, instruments, scores

COMPANIONS = {
    "solo": [],
    "with drums": [],
    "drone and bass": ["an organ drone", "an upright bass"],
    "ensemble": ["strummed guitar chords", "an upright bass"],
    "band": ["string chords", "a bass guitar"],
    "duo": ["a flute"],  # a texture that captions.py does not know
}


def plan(
    lead="banjo", kind="jig", texture="solo", tempo="slow", mode="minor", room="dry", origin="", voices="single line"
):
    """Returns an arrangement with only the fields that captions read."""
    empty = {field.name: None for field in dataclasses.fields(arrangement.Arrangement)}
    notes = np.zeros((0, 5), np.float32)
    score = scores.Score("x/1", "x", "A Title", kind, origin, (6, 8), 0.0, -1, "", 0.0, [], notes)
    facts = {
        "lead": instruments.BY_NAME[lead], "texture": texture, "tempo": tempo, "mode": mode, "room": room,
        "voices": voices, "companions": list(COMPANIONS[texture]), "score": score,
        "drum_tracks": ["drums"] if texture in ("with drums", "band") else [],
    }  # fmt: skip
    return arrangement.Arrangement(**{**empty, **facts})


def many(count=60, gain_db=0.0, **facts):
    """Returns captions of the same facts from different random generators, as [clip][caption]."""
    return [captions.captions(plan(**facts), gain_db, np.random.default_rng(seed)) for seed in range(count)]


def text_of(count=60, **facts):
    return "\n".join(itertools.chain.from_iterable(many(count, **facts)))


def says(phrase, text):
    return re.search(rf"\b{re.escape(phrase)}\b", text, re.IGNORECASE) is not None


def test_four_to_six_different_captions():
    counts = [len(texts) for texts in many(100)]
    assert set(counts) == {4, 5, 6}
    assert all(len(set(texts)) == len(texts) for texts in many(100))
    first, again = (captions.captions(plan(), 0.0, np.random.default_rng(5)) for _ in range(2))
    assert first == again


def test_there_are_many_words_and_templates():
    assert len(captions.LISTS) + len(captions.SENTENCES) >= 40
    assert {lead.name for lead in instruments.LEADS} <= set(caption_words.LEADS)
    for table, fewest in ((caption_words.LEADS, 5), (captions.MOODS, 8), (captions.TEMPO_WORDS, 8)):
        assert all(len(set(names)) == len(names) >= fewest for names in table.values())
    different = set(itertools.chain.from_iterable(many(200)))
    assert len(different) > 950  # of about 1,000


@pytest.mark.parametrize("lead", [lead.name for lead in instruments.LEADS])
def test_every_caption_names_its_lead_and_no_other(lead):
    own = [caption_words.bare(name) for name in caption_words.LEADS[lead]]
    own += [caption_words.bare(caption_words.PEOPLE[lead])] if lead in caption_words.PEOPLE else []
    others = {other for other in caption_words.LEADS if not any(says(other, name) for name in [lead, *own])}
    for text in itertools.chain.from_iterable(many(40, lead=lead, texture="solo")):
        assert any(says(name, text) for name in own), text
        assert not [other for other in others if says(other, text)], text
        assert "_" not in text and "  " not in text and not re.search(r" [,.]|\.\.|,,|\{", text), text


@pytest.mark.parametrize(
    ("tempo", "mode"), itertools.product(captions.TEMPO_WORDS, ("major", "minor", "mixolydian", ""))
)
def test_tempo_and_mood_follow_the_rule(tempo, mode):
    text = text_of(40, tempo=tempo, mode=mode, texture="ensemble")
    words = {name: {*captions.TEMPO_WORDS[name], *caption_words.TEMPO_NOUNS[name]} for name in captions.TEMPO_WORDS}
    for other in set(words) - {tempo}:
        assert not [word for word in words[other] if says(word, text)]
    allowed = set(captions.MOODS.get(("major" if mode == "mixolydian" else mode, tempo), ()))
    moods = {word for names in captions.MOODS.values() for word in names}
    assert not [word for word in moods - allowed if says(word, text)]
    assert len([word for word in allowed if says(word, text)]) >= (6 if allowed else 0)
    assert says("major key", text) == (mode == "major") and says("minor key", text) == (mode == "minor")


@pytest.mark.parametrize("texture", COMPANIONS)
def test_captions_name_only_drums_and_companions_that_play(texture):
    text = text_of(80, texture=texture)
    without = re.sub(r"(?i)\b(no drums|no percussion)\b", "", text)
    drums = texture in ("with drums", "band")
    assert bool(re.search(r"(?i)\b(drum\w*|percussion)\b", without)) == drums
    assert not (drums and without != text)
    assert says("solo", text) == says("unaccompanied", text) == (texture == "solo")
    synonyms = lambda name: [caption_words.bare(word) for word in caption_words.COMPANIONS.get(name, (name,))]  # noqa: E731
    for name in COMPANIONS[texture]:
        assert sum(says(word, text) for word in synonyms(name)) >= min(len(synonyms(name)), 3)
        for word in sorted(synonyms(name), key=len, reverse=True):
            text = re.sub(word, "", text, flags=re.IGNORECASE)
    for name in {name for names in COMPANIONS.values() for name in names} - set(COMPANIONS[texture]):
        assert not [word for word in synonyms(name) if says(word, text)]
    if texture == "solo":
        assert not re.search(r"(?i)accompanied by|backed|background|together with|supported", text.replace("un", "un-"))


def test_absence_is_rarely_stated():
    texts = list(itertools.chain.from_iterable(many(300)))
    denied = [text for text in texts if re.search(r"(?i)no drums|no percussion", text)]
    assert 0 < len(denied) < 0.05 * len(texts)
    assert not says("no drums", text_of(300, lead="steel drums"))


@pytest.mark.parametrize(
    ("room", "wrong"), [("dry", "hall|echoing|lots?|plenty"), ("hall", "dry|no reverb|no echo|close")]
)
def test_room_is_the_true_one(room, wrong):
    assert not re.search(rf"(?i)\b({wrong})\b(?! pace)", text_of(60, room=room))


def test_loudness_is_named_only_beyond_the_limits():
    levels = {gain: "\n".join(itertools.chain.from_iterable(many(60, gain))) for gain in (-9.0, 0.0, 3.0)}
    assert [says("loud", levels[gain]) for gain in (-9.0, 0.0, 3.0)] == [False, False, True]
    assert [says("quiet", levels[gain]) for gain in (-9.0, 0.0, 3.0)] == [True, False, False]


def test_a_choir_sings():
    text = text_of(100, lead="choir", texture="ensemble")
    assert not re.search(r"(?i)instrumental|no singer|played (on|by)|plays|playing", text)
    assert says("sung by", text) and says("singing", text)
    accompanied = dataclasses.replace(plan(texture="ensemble"), companions=["a choir"])
    texts = [text for seed in range(100) for text in captions.captions(accompanied, 0.0, np.random.default_rng(seed))]
    assert not re.search(r"(?i)an instrumental|instrumental music|no singer", "\n".join(texts))


def test_people_write_in_many_ways():
    texts = list(itertools.chain.from_iterable(many(300, texture="band")))
    share = lambda found: sum(map(bool, map(found, texts))) / len(texts)  # noqa: E731
    assert 0.2 < share(str.islower) < 0.6 and 0.01 < share(str.isupper) < 0.06
    assert 0.03 < share(lambda t: t.islower() and t.endswith(".")) < 0.2
    assert 0.1 < share(lambda t: re.match(r"(?i)(play|give|let|i (want|need|would|am)|can|could|make|create|compose|"
                                          r"write|please|something)\b", t)) < 0.35  # fmt: skip
    assert 0.1 < share(lambda t: len(t.split()) <= 7)
    assert 0.2 < share(lambda t: t.count(". ") >= 1)
    assert share(lambda t: re.match(r"(?i)(i hear|we can hear|you hear)", t)) > 0.03
    assert share(lambda t: t.rstrip(".").endswith("?")) > 0.01


def test_stems_drop_the_endings_of_words():
    assert paraphrases._stems("Playing, plays, played; recordings, recording; SOFTLY and ties") == {
        "play", "record", "soft", "and", "ties",
    }  # fmt: skip
    # Every form of a word reserved for the benchmark counts as that word.
    [word] = paraphrases.repeated_words({"pluck", "gong"})
    assert word == "gong" and paraphrases.repeated_words(paraphrases._stems("gonging")) == {"gong"}


def test_words_reserved_for_the_benchmark_are_not_used():
    tables = [getattr(caption_words, name) for name in dir(caption_words) if name.isupper()]
    phrases = [table.values() if isinstance(table, dict) else [table] for table in tables]
    words = " ".join(
        word for group in phrases for names in group for word in ([names] if isinstance(names, str) else names)
    )
    assert not paraphrases.repeated_words(paraphrases._stems(words))
    own = {*itertools.chain.from_iterable(paraphrases.INSTRUMENTS.values()), *paraphrases.KINDS.values()}
    rng = np.random.default_rng(0)
    leads, kinds = [lead.name for lead in instruments.LEADS], list(caption_words.KINDS)
    assert set(paraphrases.KINDS) <= set(kinds)
    for seed in range(300):
        facts = {
            "lead": leads[seed % len(leads)], "kind": kinds[seed % len(kinds)],
            "texture": list(COMPANIONS)[seed % len(COMPANIONS)], "tempo": list(captions.TEMPO_WORDS)[seed % 3],
            "mode": ("major", "minor", "")[seed // 3 % 3], "room": ("dry", "room", "hall")[seed // 2 % 3],
            "voices": ("single line", "in harmony")[seed % 2], "origin": ("", "Irish", "Scottish")[seed % 3],
        }  # fmt: skip
        texts = captions.captions(plan(**facts), float(rng.uniform(-10, 4)), rng)
        assert not paraphrases.repeated_words(paraphrases._stems(" ".join(texts))), texts
        assert not set(texts) & own
        if facts["texture"] != "duo":
            tags = [f"{facts['tempo']} tempo", f"{facts['mode']} key"]
            record = {"id": str(seed), "instrument": facts["lead"], **facts, "aspects": tags}
            assert paraphrases.paraphrase(record).lower() not in {text.lower().rstrip(".") for text in texts}


def test_an_unknown_kind_or_lead_keeps_its_name():
    clip = plan(kind="tango")
    clip.lead = dataclasses.replace(clip.lead, name="kazoo", words=("a kazoo",))
    texts = [text for seed in range(40) for text in captions.captions(clip, 0.0, np.random.default_rng(seed))]
    assert all(says("kazoo", text) for text in texts)
    assert sum(says("tango", text) for text in texts) > 100


def test_aspects_keep_the_plain_names():
    drawn = [captions.aspects(plan(lead="fiddle"), -8.0, np.random.default_rng(seed)) for seed in range(200)]
    plain = {"fiddle", "jig", "slow tempo", "solo", "single line", "minor key", "no percussion", "dry sound", "quiet"}
    assert all(plain <= set(phrases) and len(phrases) == len(set(phrases)) for phrases in drawn)
    known = {*map(caption_words.bare, caption_words.LEADS["fiddle"]), *caption_words.KINDS["jig"], *plain}
    known |= {*captions.TEMPO_WORDS["slow"], *captions.MOODS["minor", "slow"]}
    assert set(itertools.chain.from_iterable(drawn)) <= known
    assert "violin" in set(itertools.chain.from_iterable(drawn))
