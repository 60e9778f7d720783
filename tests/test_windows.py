"""Windows of the stages: their inputs, and that requesting little at a time changes nothing."""

import jax
import miniature
import numpy as np
import pytest

from musiclm_jax import bundles
from musiclm_jax.generation import windows
from musiclm_jax.generation.request import Request
from musiclm_jax.generation.windows import Conditions, Frames, Step


class Recorder:
    """A fake stage that continues a piece by a rule, one frame at a time, and records its inputs."""

    def __init__(self, rule):
        self.rule, self.calls = rule, []

    def __call__(self, part, conditioning, prefix, frames, keys, sampling):
        self.calls.append((conditioning, prefix, frames))
        new = self.rule({name: np.asarray(codes) for name, codes in conditioning.items()}, prefix, frames)
        for frame in range(prefix.shape[1], frames):
            yield new[:, frame : frame + 1]


@pytest.fixture(scope="module")
def bundle():
    return bundles.load(miniature.path())


def keys(rows):
    return jax.random.split(jax.random.key(0), rows)


def constant(rows):
    return Conditions((0,), np.zeros((1, rows, 12), int))


def nothing(rows, levels):
    return np.zeros((rows, 0, levels), int)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((0, 40, 40), [(0, 0, 40)]),
        ((0, 70, 40), [(0, 0, 40), (20, 40, 60), (40, 60, 70)]),
        ((0, 30, 40), [(0, 0, 30)]),
        ((50, 70, 40), [(30, 50, 70)]),
        ((7, 60, 40), [(0, 7, 40), (20, 40, 60)]),
        # A change ends a window; the next one begins half a window before it.
        ((0, 70, 40, (0, 45)), [(0, 0, 40), (20, 40, 45), (25, 45, 65), (45, 65, 70)]),
        ((0, 40, 40, (0, 10)), [(0, 0, 10), (0, 10, 40)]),
        # Windows that look ahead end with the piece.
        ((0, 70, 40, (), 30), [(0, 0, 40), (20, 40, 60), (30, 60, 70)]),
        ((0, 12, 40, (), 0), [(0, 0, 12)]),
    ],
)
def test_windows_follow_each_other(arguments, expected):
    made = windows.steps(*arguments)
    assert made == [Step(*step) for step in expected]
    assert [step.known for step in made[1:]] == [step.end for step in made[:-1]]


def test_semantic_stage_continues_from_its_last_half(monkeypatch, bundle):
    def count_on(conditioning, prefix, frames):
        first = prefix[:, :1, 0] if prefix.shape[1] else np.zeros((2, 1), int)
        return (first + np.arange(frames)[None])[..., None]

    stage = Recorder(count_on)
    monkeypatch.setattr(windows, "sample_window", stage)
    part = bundle.part("semantic")  # windows of 1.6 s: 40 frames
    made = windows.generate_semantic(part, constant(2), nothing(2, 1), 70, Request(), keys(2), windows.silent)
    codes = np.concatenate(list(made), axis=1)
    np.testing.assert_array_equal(codes[..., 0], np.tile(np.arange(70), (2, 1)))
    assert [(prefix.shape[1], frames) for _, prefix, frames in stage.calls] == [(0, 40), (20, 40), (20, 30)]
    np.testing.assert_array_equal(stage.calls[1][1][0, :, 0], np.arange(20, 40))
    # It continues known codes in the same way.
    known = np.tile(np.arange(50), (2, 1))[..., None]
    more = windows.generate_semantic(part, constant(2), known, 70, Request(), keys(2), windows.silent)
    np.testing.assert_array_equal(np.concatenate(list(more), axis=1)[0, :, 0], np.arange(50, 70))


def test_a_window_gets_the_melody_of_its_time(monkeypatch, bundle):
    class Tune:
        def at(self, frame):
            return np.full(72, frame)

    stage = Recorder(lambda c, prefix, frames: np.zeros((2, frames, 1), int))
    monkeypatch.setattr(windows, "sample_window", stage)
    asked = constant(2)._replace(melody=Tune())
    list(
        windows.generate_semantic(bundle.part("semantic"), asked, nothing(2, 1), 70, Request(), keys(2), windows.silent)
    )
    for (conditioning, _, _), begin in zip(stage.calls, [0, 20, 40], strict=True):
        np.testing.assert_array_equal(conditioning["melody"], np.full((2, 72), begin))
        assert conditioning["mulan"].shape == (2, 12)


def test_prompts_change_at_their_frame(monkeypatch, bundle):
    stage = Recorder(lambda c, prefix, frames: np.tile(c["mulan"][:, :1, None], (1, frames, 1)))
    monkeypatch.setattr(windows, "sample_window", stage)
    changing = Conditions((0, 25, 45), np.array([10, 11, 12])[:, None, None] * np.ones((1, 2, 12), int))
    expected = [10] * 25 + [11] * 20 + [12] * 15
    made = windows.generate_semantic(
        bundle.part("semantic"), changing, nothing(2, 1), 60, Request(), keys(2), windows.silent
    )
    np.testing.assert_array_equal(np.concatenate(list(made), axis=1)[1, :, 0], expected)
    semantic = Frames(np.zeros((2, 60, 1), int))
    made = windows.generate_coarse(
        bundle.part("coarse"), changing, semantic, nothing(2, 1), 60, Request(), keys(2), windows.silent
    )
    np.testing.assert_array_equal(np.concatenate(list(made), axis=1)[1, :, 0], np.repeat(expected, 2))


@pytest.mark.parametrize("frames, calls", [(50, [(0, 40), (20, 40), (20, 40), (20, 40)]), (12, [(0, 24)])])
def test_coarse_windows_get_their_part_of_the_semantic_codes(monkeypatch, bundle, frames, calls):
    stage = Recorder(lambda c, prefix, frames: np.repeat(c["semantic"], 2, axis=1)[..., None] + np.arange(4))
    monkeypatch.setattr(windows, "sample_window", stage)
    part = bundle.part("coarse")  # windows of 0.8 s: 20 semantic frames, 40 acoustic ones
    in_all = windows.semantic_frames(part, frames)
    semantic = np.stack([np.arange(in_all), 100 + np.arange(in_all)])[..., None]
    made = windows.generate_coarse(
        part, constant(2), Frames(semantic), nothing(2, 4), frames, Request(), keys(2), windows.silent
    )
    codes = np.concatenate(list(made), axis=1)
    np.testing.assert_array_equal(codes, np.repeat(semantic, 2, axis=1)[:, : 2 * frames] + np.arange(4))
    assert [(prefix.shape[1], frames) for _, prefix, frames in stage.calls] == calls
    assert {c["semantic"].shape for c, _, _ in stage.calls} == {(2, 20)}


@pytest.mark.parametrize("at_once", [1, 2, 9])
@pytest.mark.parametrize("frames, known, windows_made", [(60, 0, 3), (50, 0, 3), (40, 0, 2), (12, 0, 1), (60, 30, 2)])
def test_fine_windows_cover_the_piece_once(monkeypatch, bundle, frames, known, windows_made, at_once):
    stage = Recorder(lambda c, prefix, frames: np.tile(c["acoustic"][..., :1], (1, 1, 8)) + 7)
    monkeypatch.setattr(windows, "sample_window", stage)
    coarse = np.stack([np.arange(frames), 1000 + np.arange(frames)])[..., None] * np.ones(4, int)
    there = np.zeros((2, known, 12), int)
    made = windows.generate_acoustic(
        bundle.part("fine"), Frames(coarse), there, frames, Request(), keys(2), at_once, windows.silent
    )
    codes = np.concatenate([there, *made], axis=1)
    np.testing.assert_array_equal(codes[:, known:, :4], coarse[:, known:])
    np.testing.assert_array_equal(codes[:, known:, 4:], coarse[:, known:, :1] + np.full(8, 7))
    batches = -(-windows_made // at_once)
    assert [c["acoustic"].shape[0] for c, _, _ in stage.calls] == [2 * -(-windows_made // batches)] * batches


def test_windows_use_different_keys():
    drawn = [windows.window_keys(keys(2), stage, start) for stage in range(3) for start in (0, 10)]
    assert len(np.unique(np.concatenate([jax.random.key_data(k) for k in drawn]), axis=0)) == 12


def test_frames_request_no_more_than_they_need():
    asked = []

    def pieces():
        for start in (2, 4, 6):
            asked.append(start)
            yield np.arange(start, start + 2)[None, :, None]

    frames = Frames(np.arange(2)[None, :, None], pieces())
    for count, expected in [(1, []), (2, []), (3, [2]), (4, [2]), (8, [2, 4, 6]), (5, [2, 4, 6])]:
        np.testing.assert_array_equal(frames.until(count)[0, :, 0], np.arange(count))
        assert asked == expected
