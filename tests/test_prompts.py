"""Prompts: validation, formats of stories and mixes, language warnings."""

import pytest

from musiclm_jax.generation import prompts
from musiclm_jax.generation.prompts import Section, Story


@pytest.mark.parametrize(
    "given, message",
    [
        ([], "no prompt"),
        ("piano", "a single prompt: give a list"),
        ([""], "contains no words"),
        ([" ?! "], "contains no words"),
        (["piano", "a" * 10_000], "10,000 characters: give at most 1,000"),
        ([7], "is a int"),
    ],
)
def test_bad_prompts_are_one_line(given, message):
    with pytest.raises(ValueError, match=message) as raised:
        prompts.as_stories(given)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


def test_a_text_is_a_story_of_one_section():
    story = prompts.timed_story([("0:00", "piano"), ("0:15", "jig")])
    assert prompts.as_stories(["piano", story]) == [Story((Section(0.0, ("piano",)),)), story]
    assert [str(s) for s in prompts.as_stories(["piano", story])] == ["piano", "0:00 piano 0:15 jig"]


@pytest.mark.parametrize(
    "text, seconds", [("0", 0), ("75", 75), ("1:15", 75), ("0:07.5", 7.5), ("1:02:03", 3723), ("10:00", 600)]
)
def test_times(text, seconds):
    assert prompts.parse_time(text) == seconds
    assert prompts.parse_time(prompts.clock(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "1:75", "-1", "0:15:", "soon", "1e3", "nan", "0:0:0:1", "1:60"])
def test_invalid_times(text):
    with pytest.raises(ValueError, match="is not a time"):
        prompts.parse_time(text)


def test_a_story_is_lines_with_times():
    story = prompts.parse_story("# a story\n\n0:00  calm piano: solo\n0:15: rock band\n 1:00 7 trumpets\n", blend=2.0)
    assert story.sections == (
        Section(0.0, ("calm piano: solo",)),
        Section(15.0, ("rock band",)),
        Section(60.0, ("7 trumpets",)),
    )
    assert story.blend == 2.0


@pytest.mark.parametrize(
    "lines, blend, message",
    [
        ("", 0, "the story is empty"),
        ("0:00 piano\njig", 0, "line 2 is 'jig': write a time and a text"),
        ("0:00 piano\n0:15", 0, "line 2 is '0:15'"),
        ("0:05 piano", 0, "the story begins at 0:05: begin it at 0:00"),
        ("0:00 piano\n0:30 jig\n0:15 organ", 0, "0:15 follows 0:30"),
        ("0:00 piano\n0:00 jig", 0, "0:00 follows 0:00"),
        ("0:00 piano\n0:00.5 jig", 0, "only 0.5 s lie between 0:00 and 0:00.5: a section must last at least 1 s"),
        ("0:00 piano\n0:05 jig", 6, r"at least as long as the blend \(6 s\)"),
        ("0:00 piano\n0:05 jig", -1, "blend is -1"),
        ("0:00 piano\n0:05 !!", 0, "contains no words"),
    ],
)
def test_bad_stories_are_one_line(lines, blend, message):
    with pytest.raises(ValueError, match=message) as raised:
        prompts.parse_story(lines, blend)
    assert "\n" not in str(raised.value)


def test_a_mix_is_texts_with_weights():
    mix = prompts.parse_mix(["jazz: slow:0.7", "rock:3"])
    assert mix.sections == (Section(0.0, ("jazz: slow", "rock"), (0.7, 3.0)),)
    assert str(mix) == "jazz: slow:0.7 rock:3"
    for given, message in [
        ("jazz", "no weight"),
        ("jazz:-1", "more than 0"),
        (":1", "no words"),
        ("a:nan", "more than"),
    ]:
        with pytest.raises(ValueError, match=message):
            prompts.parse_mix([given])


def test_other_languages_give_a_warning():
    english = [
        "für Elise",
        "jig 123",
        "a calm Bach chorale in the style of Clair de lune, con brio, for the organ",
        "La Bamba de Veracruz with a guitar and the drums",
        "solo piano",
        "Chopin nocturne op 9 no 2",
        "piano, e minor, then e major, i think",
    ]
    assert prompts.language_warnings(prompts.as_stories(english)) == []
    others = [
        "веселая мелодия",
        "静かなピアノ",
        "un air de flûte très gai",
        "eine ruhige Melodie auf der Geige",
        "una canción alegre con guitarra y tambor",
        "un valzer lento con il pianoforte",
    ]
    lines = prompts.language_warnings(prompts.as_stories([*others, "piano"]))
    assert len(lines) == len(others) and all("English" in line for line in lines)
