import pytest

from musiclm_jax.data import tokens


def test_rates_match_the_paper():
    assert tokens.ACOUSTIC.frame_rate * tokens.ACOUSTIC.quantizers == 600
    assert tokens.SEMANTIC.frames(30) == 750
    assert tokens.ACOUSTIC.frames(10) * 4 == 2000
    assert tokens.MULAN.frames(123.4) == 1


def test_a_length_between_frames_is_an_error_that_says_what_to_choose():
    with pytest.raises(ValueError, match=r"0\.5 s of the odd stream.*multiple of"):
        tokens.TokenStream("odd", 25, 1, 8).frames(0.5)
