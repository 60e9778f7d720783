"""Performance of clips: phrases, accents, tempo drift, starts and ends of pieces, sounds from two fonts."""

import collections

import numpy as np
import pytest
import test_corpus

from musiclm_jax.corpus import arrangement, clips, compositions, excerpts, instruments, performance, rendering


def draw(seed, piece=None, drums=False, number=5):
    """Draws an excerpt of the same reel and a performance of it; `piece` fixes the kind of excerpt."""
    score = test_corpus._score(number, "reel")
    for attempt in range(200):
        rng = np.random.default_rng((seed, attempt))
        excerpt = excerpts.draw(rng, score, 100.0)
        if piece in (None, excerpt.piece):
            return rng, excerpt, performance.draw(rng, excerpt, drums)
    raise AssertionError(piece)


def test_the_tempo_drifts_around_its_mean():
    depths = []
    for seed in range(30):
        _, excerpt, played = draw(seed)
        pace = np.diff(played.seconds) / excerpt.per_quarter
        assert np.abs(pace - 1).max() <= performance.RUBATO + 1e-9
        assert np.abs(np.diff(pace)).max() < 0.04  # smooth from one quarter note to the next
        inside = np.interp([excerpt.start, excerpt.end], played.quarters, played.seconds)
        assert np.diff(inside)[0] == pytest.approx((excerpt.end - excerpt.start) * excerpt.per_quarter, rel=0.006)
        depths.append(np.abs(pace - 1).max())
        with_drums = draw(seed, drums=True)[2]
        assert np.abs(np.diff(with_drums.seconds) / excerpt.per_quarter - 1).max() < 0.02
    assert max(depths) > 0.015 and min(depths) < 0.01


def test_phrases_rise_and_fall_and_bars_are_accented():
    _, excerpt, played = draw(1)
    bar, start = excerpt.score.bar, excerpt.score.pickup
    inside = start + np.arange(0.25, played.phrase, 0.5)  # never on a beat
    loudness = played.loudness(inside)
    top = int(np.argmax(loudness))
    assert 0.3 < (inside[top] - start) / played.phrase < 0.8
    assert (np.diff(loudness[: top + 1]) > 0).all() and (np.diff(loudness[top:]) < 0).all()
    on_bar, on_beat, between = (played.loudness(np.array([start + bar + shift]))[0] for shift in (0.0, 1.0, 0.03))
    assert on_bar > between + 0.3 and on_beat > between
    assert played.phrase / bar in performance.PHRASE_BARS


def test_loudness_differs_between_clips_and_within():
    flute, means = instruments.BY_NAME["flute"], []
    for seed in range(60):
        plan = arrangement.arrange(np.random.default_rng(seed), test_corpus._score(5, "reel"), "solo", flute)
        velocity = plan.lead_tracks[0][3][:, 3]
        assert velocity.std() > 3 and velocity.min() >= 25 and velocity.max() <= 127
        means.append(velocity.mean())
    assert min(means) < 78 and max(means) > 95


def test_notes_are_slightly_off_and_never_overlap_at_one_pitch():
    rng, excerpt, played = draw(2, "middle")
    rows = np.array([[excerpt.start + 0.5 * i, 0.5, 60, 90] for i in range(1, 25)])
    notes = played.play(rng, rows)
    expected = np.interp(rows[:, 0], played.quarters, played.seconds)
    assert 0.001 < np.std(notes[:, 0] - expected) < 0.015
    assert (notes[1:, 0] - notes[:-1, 1] > 0.004).all()
    assert played.play(rng, rows[:0]).shape == (0, 4)


def test_a_share_of_clips_are_starts_and_ends():
    score = test_corpus._score(5, "reel")
    found = collections.Counter(excerpts.draw(np.random.default_rng(seed), score, 100.0).piece for seed in range(3000))
    assert found["start"] / 3000 == pytest.approx(excerpts.START_SHARE, abs=0.025)
    assert found["end"] / 3000 == pytest.approx(excerpts.END_SHARE, abs=0.02)


@pytest.mark.parametrize("texture", ["solo", "band", "drone and bass"])
def test_starts_begin_with_silence_and_ends_ring_out(texture):
    score, pieces = test_corpus._score(5, "reel"), collections.Counter()
    written = score.notes[:, 2]
    for seed in range(120):
        plan = arrangement.arrange(np.random.default_rng(seed), score, texture, instruments.BY_NAME["fiddle"])
        pieces[plan.piece] += 1
        tracks = [track[3] for track in plan.lead_tracks + plan.other_tracks + plan.drum_tracks]
        first = min(notes[:, 0].min() for notes in tracks) - plan.preroll
        last = max(notes[:, 1].max() for notes in tracks) - plan.preroll
        lead = plan.lead_tracks[0][3]
        if plan.piece == "start":
            low, high = excerpts.SILENCE_BEFORE
            assert low - 0.03 < first < high + 0.03
            assert (np.diff(lead[:6, 2]) == np.diff(written[:6])).all()
        if plan.piece == "end":
            silence = excerpts.CLIP_SECONDS - last
            low, high = excerpts.SILENCE_AFTER
            assert low - 0.03 < silence + performance.RING_SECONDS < high + 0.03
            assert (np.diff(lead[-6:, 2]) == np.diff(written[-6:])).all()
        if plan.piece == "middle":
            assert first < 0.3 and last > excerpts.CLIP_SECONDS - 0.2
    assert pieces["start"] > 4 and pieces["end"] > 2


def test_silence_before_a_piece_is_heard():
    found = test_corpus._scores()
    compositions.group(found)
    pool, starts = compositions.split_scores(found)["train"], 0
    for index in range(60):
        clip = clips.make_clip(test_corpus.SineRenderer(), pool, 0, "train", index)
        if clip.extra["piece"] == "start":
            audio, starts = clip.fields["audio"], starts + 1
            assert np.abs(audio[: round(0.25 * rendering.RATE)]).max() < 1e-6 < np.abs(audio).max()
            assert (clip.fields["pitch_class"][:6] == -1).all()
    assert starts


def test_instruments_have_sounds_from_both_fonts():
    assert sum(len({font for font, _ in lead.sounds}) == 2 for lead in instruments.LEADS) >= 14
    score, drawn = test_corpus._score(5, "reel"), set()
    for seed in range(30):
        plan = arrangement.arrange(np.random.default_rng(seed), score, "solo", instruments.BY_NAME["flute"])
        drawn.add(plan.lead_tracks[0][:2])
    assert drawn == set(instruments.BY_NAME["flute"].sounds)
    assert instruments.BY_NAME["piano"].sounds == ((instruments.TIMGM, 0),)  # the other one is almost silent


def test_half_of_the_clips_are_solo():
    assert arrangement.TEXTURES["solo"] >= 0.5 and sum(arrangement.TEXTURES.values()) == pytest.approx(1.0)
