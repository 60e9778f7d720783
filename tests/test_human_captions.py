"""People's sentences: the facts that a text states, and the clips for which all of them are true."""

import csv
import subprocess
import sys

import pytest

from musiclm_jax.corpus import human_captions, human_words, instruments
from musiclm_jax.corpus.human_captions import HumanCaption, find_facts, match

CLIP = {
    "instrument": "fiddle", "tempo": "fast", "mode": "major", "texture": "solo", "drums": False, "kind": "jig",
    "companions": [], "voices": "single line", "room": "dry",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("A violin is playing a happy melody.", {"instruments": ("fiddle",), "moods": ("happy",)}),
        ("The tempo is fast with a lively fiddle solo.",
         {"instruments": ("fiddle",), "tempo": "fast", "moods": ("energetic",), "texture": "solo", "drums": False}),
        ("Violins play in a minor key.", {"instruments": ("string ensemble",), "mode": "minor"}),
        ("This slow classical piece is played on a pipe organ, with no other instruments.",
         {"instruments": ("church organ",), "tempo": "slow", "texture": "solo", "drums": False}),
        ("An electric piano plays chords with a lot of reverb.",
         {"instruments": ("electric piano",), "chords": True, "reverb": True}),
        ("Bagpipes play a march over loud drums.",
         {"instruments": ("bagpipe",), "kinds": ("march",), "drums": True, "texture": "accompanied"}),
        ("A trumpet melody accompanied by a piano.", {"instruments": ("trumpet", "piano"), "texture": "accompanied"}),
        ("A banjo plays without percussion.", {"instruments": ("banjo",), "drums": False}),
        ("The sad harpsichord piece has no vocals.", {"instruments": ("harpsichord",), "moods": ("sad",)}),
        ("A church choir sings a hymn.", {"instruments": ("choir",), "kinds": ("chorale", "hymn")}),
        ("medium tempo steel pan melody", {"instruments": ("steel drums",), "tempo": "moderate"}),
        # What something would suit is not a fact.
        ("A music box melody. It could be used in a video game.", {"instruments": ("celesta",)}),
    ],
)  # fmt: skip
def test_facts_of_a_text(text, facts):
    found = find_facts(text)
    assert found is not None
    if "classical" in text:
        assert "chorale" in found.pop("kinds") and "jig" not in human_words._CLASSICAL
    empty = HumanCaption("", "", "", "", ())
    assert found == {name: facts.get(name, getattr(empty, name)) for name in found}


@pytest.mark.parametrize(
    "text",
    [
        "A male voice sings to a piano.",  # a singer
        "An electric guitar and a flute play.",  # an instrument that is not a lead of the corpus
        "The bass guitar plays a line with a banjo.",
        "A pan flute plays a melody.",
        "Chinese fiddle melody",
        "The song is slow and sad.",  # no instrument
        "It was accompanied by a flute.",  # the flute has a side role
        "A flute plays in the background.",
        "There is a piano accompaniment.",
        "Something like a violin plays.",
        "A flute-like instrument plays.",
        "The crowd cheers as the trumpet plays.",
        "This is a jazz trumpet piece.",
        "A trumpet, a flute and a piano play.",  # three
        "A slow, then fast banjo tune.",
        "At the end a piano plays.",
        "The tempo is medium fast with a harpsichord melody.",  # two tempi
        "A solo flute is accompanied by drums.",  # contradicts itself
        "The happy vibes of a summer day.",
        "The trumpeters play a march like a jig, rap and rock.",
        "A classical jig for piano.",  # no kind is both classical and a jig
        "piano",
        "A piano " + "and again " * 30,
    ],
)
def test_texts_that_do_not_fit_the_corpus_are_dropped(text):
    assert find_facts(text) is None


@pytest.mark.parametrize("name", [lead.name for lead in instruments.LEADS])
def test_each_lead_is_found_by_its_name_and_plural(name):
    plural = name if name.endswith("s") else f"{name}s"
    texts = (f"The {name} plays a nice tune.", f"The {plural} play a nice tune.")
    assert [find_facts(text)["instruments"] for text in texts] == [(name,)] * 2
    assert find_facts(f"The mega{name.replace(' ', '')} plays a nice tune.") is None  # at word boundaries only


@pytest.mark.parametrize(
    ("text", "change", "true"),
    [
        ("A violin plays a tune.", {}, True),
        ("A violin plays a tune.", {"instrument": "flute"}, False),
        ("A fast violin plays a tune.", {}, True),
        ("A fast violin plays a tune.", {"tempo": "moderate"}, False),
        ("A violin plays in a minor key.", {}, False),
        ("A violin plays in a minor key.", {"mode": "minor"}, True),
        ("A violin plays in a minor key.", {"mode": ""}, False),
        ("A happy violin tune.", {}, True),
        ("A happy violin tune.", {"mode": "mixolydian"}, True),
        ("A happy violin tune.", {"mode": "minor"}, False),
        ("A happy violin tune.", {"mode": ""}, False),
        ("A happy violin tune.", {"tempo": "slow"}, False),
        ("A sad violin tune.", {}, False),
        ("A sad violin tune.", {"mode": "minor", "tempo": "slow"}, True),
        ("An energetic violin tune.", {"mode": ""}, True),
        ("A happy, sad violin tune.", {}, False),
        ("A solo violin plays.", {}, True),
        ("A solo violin plays.", {"texture": "band"}, False),
        ("A violin plays over drums.", {}, False),
        ("A violin plays over drums.", {"texture": "with drums", "drums": True}, True),
        ("A violin plays without drums.", {}, True),
        ("A violin plays without drums.", {"texture": "with drums", "drums": True}, False),
        ("A violin plays a jig.", {}, True),
        ("A violin plays a jig.", {"kind": "reel"}, False),
        ("A violin plays folk music.", {"kind": "reel"}, True),
        ("A violin plays folk music.", {"kind": "game music"}, False),
        ("A violin plays with a piano.", {}, False),
        ("A violin plays with a piano.", {"texture": "ensemble", "companions": ["piano chords"]}, True),
        ("A violin plays with a piano.", {"texture": "ensemble", "companions": ["organ chords"]}, False),
        ("A piano plays with a violin.", {"texture": "ensemble", "companions": ["piano chords"]}, False),
        ("A violin plays chords.", {}, False),
        ("A violin plays chords.", {"voices": "in harmony"}, True),
        ("A violin with a lot of reverb.", {}, False),
        ("A violin with a lot of reverb.", {"room": "hall"}, True),
    ],
)
def test_match_returns_captions_that_are_true(text, change, true):
    caption = HumanCaption(text, "x", "train", "sentence", **find_facts(text))
    other = HumanCaption("", "x", "train", "sentence", ("sitar",))
    assert match([other, caption, other], CLIP | change) == ([1] if true else [])


def test_match_rejects_unknown_facts():
    known = {name: CLIP[name] for name in ("instrument", "tempo", "mode", "texture", "drums", "kind")}
    texts = ("A violin plays chords.", "A violin with echo.", "A violin plays with a piano.", "A fast violin.")
    captions = [HumanCaption(text, "x", "train", "sentence", **find_facts(text)) for text in texts]
    assert match(captions, known | {"texture": "ensemble"}) == [3]


ROWS = (
    ("a", "The low quality recording features a harpsichord melody. A man sings. The flute plays, while a crowd talks.",
     "['harpsichord melody', 'male voice', 'low quality']", "False"),
    ("b", "Acoustic guitar plays a calm tune. There are no voices. This may suit a coffee shop.", "[", "True"),
    ("c", "The flute plays, while a crowd talks.", "[]", "False"),
    ("d", "", "", "False"),
)  # fmt: skip


def write(path, columns=("ytid", "caption", "aspect_list", "is_audioset_eval")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *(row[: len(columns)] for row in ROWS)])
    return path


def test_read_takes_captions_sentences_clauses_and_aspects(tmp_path):
    found = human_captions.read(write(tmp_path / "c.csv"))
    assert [(c.source, c.split, c.part, c.text, c.instruments[0]) for c in found] == [
        ("a", "train", "sentence", "The recording features a harpsichord melody.", "harpsichord"),
        ("a", "train", "clause", "The flute plays", "flute"),
        ("a", "train", "aspect", "harpsichord melody", "harpsichord"),
        ("b", "test", "caption", ROWS[1][1], "acoustic guitar"),
        ("b", "test", "sentence", "Acoustic guitar plays a calm tune.", "acoustic guitar"),
    ]


def test_read_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match="no column is_audioset_eval"):
        human_captions.read(write(tmp_path / "c.csv", ("ytid", "caption")))
    with pytest.raises(ValueError, match="cannot be read as text"):
        human_captions.read(tmp_path / "nowhere.csv")
    (tmp_path / "latin.csv").write_bytes(b"ytid,caption\nx,\xff\xfe\n")
    with pytest.raises(ValueError, match="cannot be read as text"):
        human_captions.read(tmp_path / "latin.csv")


def test_saved_captions_are_restored_exactly(tmp_path):
    texts = ("A violin plays without drums.", "A sad classical piano piece, slow, with echo and chords.", "banjo solo")
    found = [HumanCaption(f"{text} é", "x", "test", "aspect", **find_facts(text)) for text in texts]
    assert [caption.drums for caption in found] == [False, None, False]
    human_captions.save(found, tmp_path / "e.json")
    assert human_captions.load(tmp_path / "e.json") == found
    assert len((tmp_path / "e.json").read_text(encoding="utf-8").splitlines()) == 5  # one per line, for readable diffs
    for text in ("{", '[{"text": 1}]', '{"a": 1}', "[1]"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="does not contain extracted captions"):
            human_captions.load(tmp_path / "bad.json")


def test_needs_neither_tensorflow_nor_jax():
    code = "import sys, musiclm_jax.corpus.human_captions; print({'jax', 'tensorflow', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_patterns_know_the_leads_and_the_kinds_of_the_corpus():
    caption_words = pytest.importorskip("musiclm_jax.corpus.caption_words")
    assert set(human_words.INSTRUMENTS) == {lead.name for lead in instruments.LEADS} | {human_words.OTHER}
    kinds = {kind for kinds in human_words.KINDS.values() for kind in kinds}
    assert kinds <= set(caption_words.KINDS)
