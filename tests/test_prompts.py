"""Which prompts are taken, and which are warned about."""

import pytest

from musiclm_jax import prompts


@pytest.mark.parametrize(
    "given, message",
    [
        ([], "no prompt"),
        ("piano", "one string"),
        ([""], "holds no words"),
        ([" ?! "], "holds no words"),
        (["piano", "a" * 10_000], "10,000 characters: give at most 1,000"),
        ([7], "is a int"),
    ],
)
def test_bad_prompts_are_one_line(given, message):
    with pytest.raises(ValueError, match=message) as raised:
        prompts.check_prompts(given)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


def test_other_languages_are_warned_about():
    english = [
        "für Elise",
        "jig 123",
        "a calm Bach chorale in the style of Clair de lune, con brio, for the organ",
        "La Bamba de Veracruz with a guitar and the drums",
        "solo piano",
        "Chopin nocturne op 9 no 2",
        "piano, e minor, then e major, i think",
    ]
    assert prompts.language_warnings(english) == []
    others = [
        "веселая мелодия",
        "静かなピアノ",
        "un air de flûte très gai",
        "eine ruhige Melodie auf der Geige",
        "una canción alegre con guitarra y tambor",
        "un valzer lento con il pianoforte",
    ]
    lines = prompts.language_warnings([*others, "piano"])
    assert len(lines) == len(others) and all("English" in line for line in lines)
