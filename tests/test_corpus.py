import json
import struct

import numpy as np
import pytest

from musiclm_jax.corpus import (
    abc,
    arrangement,
    build,
    captions,
    compositions,
    harmony,
    instruments,
    rendering,
    scores,
    shards,
)
from musiclm_jax.data import records
from musiclm_jax.data.samples import level_db
from musiclm_jax.launch import corpus as launch_corpus

JIG = """X: 7
T: The Test -- Jig
R: jig
M: 6/8
L: 1/8
K: D
A|d2f fdB|"G"(3ABA G =c3|{g}c>d e2-|e3 z3:|
"""


def _score(number, kind="jig", source="ryansMammoth", parts=1):
    """Returns a score of 24 bars in G major; the melody depends on the number."""
    rng = np.random.default_rng(number)
    scale = np.array([67, 69, 71, 72, 74, 76, 78, 79])
    rows = []
    for part in range(parts):
        pitches = scale[np.abs(np.cumsum(rng.integers(-2, 3, 95))) % 8] - 12 * part
        rows += [[on, 1.0, pitch, part, 100] for on, pitch in enumerate([67 - 12 * part, *pitches])]
    meter = (6, 8) if kind == "jig" else (4, 4)
    key = (7, "major") if source in scores.TUNE_BOOKS else (-1, "")
    programs = [scores.UNKNOWN_PROGRAM] * parts
    notes = np.array(sorted(rows), np.float32)
    return scores.Score(
        f"{source}/{number}", source, f"Tune number {number}", kind, "", meter, 0.0, *key, 0.0, programs, notes
    )


def _scores():
    tunes = [_score(100 * k + n, kind) for k, kind in enumerate(("jig", "hornpipe", "reel", "air")) for n in range(60)]
    return tunes + [_score(1000 + n, "chorale", "music21 bach", parts=4) for n in range(60)]


class SineRenderer:
    """A fake of the sound fonts: every note is a sine, one program may be silent."""

    silent = None

    def stem(self, tracks, seconds):
        audio = np.zeros(round(seconds * rendering.RATE), np.float32)
        if any(program == self.silent for _, program, _, _ in tracks):
            raise rendering.SilentError(f"program {self.silent}: -200 dB")
        for _, _, _, notes in tracks:
            for start, end, pitch, velocity in notes:
                a, b = round(float(start) * rendering.RATE), min(round(float(end) * rendering.RATE), audio.size)
                time = np.arange(max(b - a, 0)) / rendering.RATE
                audio[a:b] += velocity / 1000 * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
        return audio


@pytest.fixture(scope="module")
def pool():
    found = _scores()
    compositions.group(found)
    return compositions.split_scores(found)


def test_abc_tune_as_written():
    tune = abc.parse_tune(JIG)
    assert (tune.title, tune.rhythm, tune.meter, tune.tonic, tune.mode) == (
        "The Test -- Jig",
        "jig",
        (6, 8),
        2,
        "major",
    )
    # A pickup; the key makes F and C sharp, =c is natural until the end of its bar, c is sharp again in the next.
    expected = [
        (0.0, 0.5, 69), (0.5, 1.0, 74), (1.5, 0.5, 78), (2.0, 0.5, 78), (2.5, 0.5, 74), (3.0, 0.5, 71),
        (3.5, 1 / 3, 69), (3.5 + 1 / 3, 1 / 3, 71), (3.5 + 2 / 3, 1 / 3, 69), (4.5, 0.5, 67), (5.0, 1.5, 72),
        (6.5, 0.75, 73), (7.25, 0.25, 74), (7.5, 2.5, 76),
    ]  # fmt: skip
    assert tune.bars == [0.5, 3.5, 6.5, 8.5, 11.5]
    np.testing.assert_allclose(tune.notes, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "tonic", "mode", "altered"),
    [
        ("G", 7, "major", {"F": 1}),
        ("Bb", 10, "major", {"B": -1, "E": -1}),
        ("Em", 4, "minor", {"F": 1}),
        ("D Mixolydian", 2, "mixolydian", {"F": 1}),
        ("Ador", 9, "dorian", {"F": 1}),
        ("C", 0, "major", {}),
        ("Hp", 9, "mixolydian", {"F": 1, "C": 1}),
    ],
)
def test_abc_keys(text, tonic, mode, altered):
    assert abc.parse_key(text) == (tonic, mode, altered)


def test_abc_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match="key field 'Q'"):
        abc.parse_key("Q")
    with pytest.raises(ValueError, match="no K: field"):
        abc.parse_tune("X:1\nT:x\n")
    assert [str(abc.parse_length(text)) for text in ("", "2", "/", "//", "3/2", "/4")] == [
        "1",
        "2",
        "1/2",
        "1/4",
        "3/2",
        "1/4",
    ]


def test_wad_lumps_finds_midi():
    lump = b"MThd1234"
    directory = struct.pack("<ii8s", 12, len(lump), b"D_E1M1\0\0") + struct.pack("<ii8s", 0, 4, b"MAP01\0\0\0")
    wad = b"IWAD" + struct.pack("<ii", 2, 12 + len(lump)) + lump + directory
    assert scores.wad_lumps(wad) == {"D_E1M1": lump}


def test_find_key_of_scales():
    major, minor = [0, 2, 4, 5, 7, 9, 11, 0, 7, 4], [0, 2, 3, 5, 7, 8, 10, 0, 7, 3]
    rows = lambda steps, tonic: np.array([[i, 1.0, 60 + (s + tonic) % 12] for i, s in enumerate(steps)])  # noqa: E731
    assert harmony.find_key(rows(major, 7)) == (7, "major")
    assert harmony.find_key(rows(minor, 9)) == (9, "minor")
    assert harmony.key_name(7, "major") == "G major" and harmony.key_name(6, "minor") == "F# minor"


def test_chords_follow_the_melody():
    melody = np.array(
        [[0, 1, 67], [1, 1, 71], [2, 2, 74], [4, 1, 72], [5, 1, 76], [6, 2, 79], [8, 2, 66], [10, 2, 69]], float
    )
    roots = [chord[0] for _, chord in harmony.chords(melody, 7, "major", 0.0, 12.0, 4.0)]
    assert roots == [7, 0, 2]  # G, C and D in G major


def test_drums_keep_the_meter():
    waltz = harmony.drum_pattern((3, 4), 0.0, 6.0, 0)
    assert sorted(waltz[waltz[:, 2] == harmony.KICK, 0]) == [0.0, 3.0]
    jig = harmony.drum_pattern((6, 8), 0.0, 3.0, 0)
    assert sorted(jig[jig[:, 2] == harmony.CLOSED_HAT, 0]) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert jig[jig[:, 2] == harmony.SNARE, 0].tolist() == [1.5]


def test_same_title_or_melody_is_one_composition():
    first, retold, other = _score(1), _score(2), _score(3)
    copied = _score(1, kind="reel", source="airdsAirs")
    retold.title = "The Tune Number 1 (2nd setting)"
    copied.title = "Another Name"
    copied.notes[:, 2] += 5
    found = [first, retold, other, copied]
    compositions.group(found)
    assert first.composition == retold.composition == copied.composition != other.composition


def test_splits_share_no_composition(pool):
    ids = {split: {score.composition for score in pool[split]} for split in records.SPLITS}
    assert all(ids.values())
    assert (
        not ids["train"] & ids["test"] and not ids["train"] & ids["validation"] and not ids["test"] & ids["validation"]
    )
    share = len(ids["train"]) / sum(map(len, ids.values()))
    assert 0.82 < share < 0.94


def test_rare_kinds_stay_in_train():
    found = [_score(n, "waltz") for n in range(compositions.RARE_KIND - 1)]
    compositions.group(found)
    assert len(compositions.split_scores(found)["train"]) == len(found)


def test_pitch_class_is_the_highest_sounding_note():
    notes = np.array([[1.0, 2.0, 67, 100], [1.5, 2.5, 72, 100], [1.5, 2.5, 64, 100]])
    found = arrangement.lead_pitch_class(notes, preroll=1.0)
    assert found.shape == (250,) and set(found[38:]) == {-1}
    assert set(found[:12]) == {7} and set(found[13:37]) == {0}


def test_arranged_notes_are_the_written_ones():
    score, seen = _score(5), set()
    flute = instruments.BY_NAME["flute"]
    for seed in range(8):
        plan = arrangement.arrange(np.random.default_rng(seed), score, "solo", flute)
        ((_, program, _, notes),) = plan.lead_tracks
        assert program == 73 and not plan.other_tracks and not plan.drum_tracks
        shift = {int(note[2]) for note in notes}
        assert min(shift) >= flute.low and max(shift) <= flute.high
        # The written intervals are kept, wherever the passage begins.
        played = np.diff(notes[:, 2]).astype(int).tolist()
        written = np.diff(np.tile(score.notes[:, 2], 2)).astype(int).tolist()
        assert any(written[i : i + len(played)] == played for i in range(len(written)))
        # The tempo is the stated one: in 6/8, a quarter note lasts 60 / bpm / 1.5 s.
        assert np.median(np.diff(notes[:, 0])) == pytest.approx(40 / plan.bpm, abs=0.02)
        seen.add(plan.key)
    assert len(seen) > 3


def test_held_out_pairs_never_in_train(pool):
    drawn = {
        test: {
            (lead.name, score.kind)
            for seed in range(300)
            for score, _, lead in [
                arrangement.choose(np.random.default_rng(seed), pool["test"], test, instruments.LEADS[seed % 20])
            ]
        }
        for test in (False, True)
    }
    held = {pair for pair in arrangement.HELD_OUT_PAIRS if pair[1] != "game music"}
    assert not drawn[False] & held
    assert drawn[True] >= held


def _captions(texture, lead, score, seed):
    rng = np.random.default_rng(seed)
    plan = arrangement.arrange(rng, score, texture, instruments.BY_NAME[lead])
    return plan, captions.captions(plan, 0.0, rng), captions.aspects(plan, 0.0, rng)


def test_captions_state_what_is_arranged():
    for seed in range(60):
        texture = list(arrangement.TEXTURES)[seed % 5]
        plan, sentences, phrases = _captions(texture, "trombone", _score(seed, "hornpipe"), seed)
        assert len(sentences) == len(set(sentences)) >= 3
        assert "hornpipe" in " ".join(sentences).lower() and "trombone" in phrases
        drums = texture in ("with drums", "band")
        assert ("drums" in phrases) == drums == bool(plan.drum_tracks)
        assert bool(plan.companions) == bool(plan.other_tracks) == (texture not in ("solo", "with drums"))


def test_loudness_is_set_and_checked():
    tone = np.sin(np.arange(24_000) * 0.1).astype(np.float32)
    loud, gain = rendering.set_loudness(tone, -5.0)
    assert level_db(loud) == pytest.approx(-25.0, abs=0.01) and gain == pytest.approx(-5.0, abs=0.01)
    clicks = np.zeros(24_000, np.float32)
    clicks[::2000] = 1.0
    limited, gain = rendering.set_loudness(clicks, 4.0)
    assert np.abs(limited).max() == pytest.approx(rendering.MAX_PEAK) and gain < 4.0
    with pytest.raises(rendering.SilentError, match=r"level is -4\d"):
        clicks[2000:] = 0.0
        rendering.set_loudness(clicks, 4.0)


def test_mix_scales_stems_to_their_levels():
    rng = np.random.default_rng(0)
    low, high = (rng.standard_normal(24_000).astype(np.float32) for _ in range(2))
    mixed = rendering.mix([low * 0.01, high * 5], [-20.0, -30.0])
    expected = low / low.std() * 0.1 + high / high.std() * 10**-1.5
    np.testing.assert_allclose(mixed, expected, atol=2e-3)


def test_room_adds_a_tail_and_dry_does_not():
    burst = np.zeros(48_000, np.float32)
    burst[:2400] = np.random.default_rng(0).standard_normal(2400)
    assert rendering.add_room(burst, "dry", np.random.default_rng(1)) is burst
    tails = {
        r: np.square(rendering.add_room(burst, r, np.random.default_rng(1))[12_000:]).sum() for r in ("room", "hall")
    }
    assert tails["hall"] > 5 * tails["room"] > 0


def test_build_is_resumable_and_deterministic(tmp_path, monkeypatch):
    monkeypatch.setattr(
        scores, "load_scores", lambda folder, progress: (_scores(), {"freedoom": "apt install freedoom"})
    )
    monkeypatch.setattr(rendering, "Renderer", SineRenderer)
    lines, hours = [], 0.15
    assert build.build(str(tmp_path / "a"), 3, hours, progress=lines.append)
    paths = {split: records.shard_paths(tmp_path / "a", split) for split in records.SPLITS}
    clips = {split: list(records.read_audio_records(paths[split])) for split in records.SPLITS}
    assert {split: len(found) for split, found in clips.items()} == build.clip_counts(hours) == {
        "train": 48, "validation": 2, "test": 4}  # fmt: skip
    for clip in clips["train"] + clips["test"]:
        assert clip["audio"].shape == (240_000,) and clip["pitch_class"].shape == (250,) and len(clip["caption"]) >= 3
        low, high = rendering.RMS_RANGE_DB
        assert low < level_db(clip["audio"]) < high and np.abs(clip["audio"]).max() < 1.0
        assert level_db(clip["audio"]) == pytest.approx(rendering.NOMINAL_RMS_DB + clip["gain_db"], abs=0.05)
    # An interrupted build: one shard was never written, another is incomplete.
    lost = paths["train"][5]
    with open(lost, "rb") as file:
        before = file.read()
    rows = (tmp_path / "a" / "metadata.jsonl").read_text()
    (tmp_path / "a" / "train-00005-of-00016.tfrecord").rename(lost + ".tmp")
    lines.clear()
    assert build.build(str(tmp_path / "a"), 3, hours, progress=lines.append)
    assert any(" 3 clips to make" in line for line in lines)
    with open(lost, "rb") as file:
        assert file.read() == before
    assert (tmp_path / "a" / "metadata.jsonl").read_text() == rows
    card = (tmp_path / "a" / "CARD.md").read_text()
    assert "Real compositions in synthetic performance" in card and "apt install freedoom" in card
    assert json.loads(rows.splitlines()[0])["id"] == "test-00000"
    with pytest.raises(ValueError, match="choose another --output"):
        build.build(str(tmp_path / "a"), 4, hours, progress=lines.append)


def test_a_silent_instrument_is_an_error_not_a_clip(pool):
    renderer, index = SineRenderer(), [lead.name for lead in instruments.LEADS].index("sitar")
    assert build.make_clip(renderer, pool["train"], 0, "train", index).fields["instrument"] == "sitar"
    renderer.silent = instruments.BY_NAME["sitar"].program
    with pytest.raises(RuntimeError, match="none of 40 draws is suitable"):
        build.make_clip(renderer, pool["train"], 0, "train", index)


def test_workers_share_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "load_scores", lambda folder, progress: (_scores(), {}))
    monkeypatch.setattr(rendering, "Renderer", SineRenderer)
    assert not build.build(str(tmp_path), 0, 0.1, worker=(0, 2), progress=lambda line: None)
    assert build.build(str(tmp_path), 0, 0.1, worker=(1, 2), progress=lambda line: None)
    assert len(records.shard_paths(tmp_path, "train")) == shards.SHARDS["train"]


def test_command_line_refuses_bad_hours_and_workers(tmp_path, capsys):
    assert launch_corpus.main(["--output", str(tmp_path), "--hours", "0.001"]) == 1
    assert "each split needs at least one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        launch_corpus.main(["--output", str(tmp_path), "--worker", "2", "--workers", "2"])


def test_sound_fonts_play_in_tune():
    pytest.importorskip("tinysoundfont")
    pytest.importorskip("pretty_midi")
    try:
        renderer = rendering.Renderer()
    except SystemExit as error:
        pytest.skip(str(error))
    notes = np.array([[0.0, 1.0, 72, 100]])
    first = renderer.stem([(instruments.TIMGM, 73, False, notes)], 1.0)
    renderer.stem([(instruments.TIMGM, 48, False, notes - [0, 0, 7, 0])], 0.2)
    assert np.array_equal(renderer.stem([(instruments.TIMGM, 73, False, notes)], 1.0), first)
    spectrum = np.abs(np.fft.rfft(first * np.hanning(first.size)))
    assert np.argmax(spectrum) == pytest.approx(523.25, rel=0.02)  # one bin is one Hz
