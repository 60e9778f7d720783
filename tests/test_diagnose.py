"""Planted faults are found and named; intact parts pass."""

import functools
import json
import pathlib
import shutil

import jax
import miniature
import numpy as np
import pytest
import record_folders

from musiclm_jax import bundles
from musiclm_jax.bundles.encode import Tokenizers
from musiclm_jax.evaluation import diagnose, metrics
from musiclm_jax.evaluation.diagnose import codec, instruments, resynthesis, retrieval
from musiclm_jax.evaluation.diagnose.finding import Finding, first_fault
from musiclm_jax.launch import diagnose as launch
from musiclm_jax.tokenizers import quantization
from musiclm_jax.tokenizers.soundstream import model as soundstream_model

RATE = 24_000
CODES = miniature.CODES


def noisy_clip(number: int) -> dict:
    """Returns an audio record of 2 s: changing tones in noise."""
    rng = np.random.default_rng(number)
    time = np.arange(RATE // 4) / RATE
    tones = [
        np.sin(2 * np.pi * hz * time) * level
        for hz, level in zip(rng.uniform(100, 4000, 8), rng.uniform(0, 0.5, 8), strict=True)
    ]
    audio = np.concatenate(tones) + 0.05 * rng.standard_normal(2 * RATE)
    return {
        "id": f"clip{number}",
        "audio": audio.astype(np.float32) / np.abs(audio).max(),
        "caption": [f"a {('slow', 'jig on the')[number % 2]} {('piano', 'fiddle', 'organ')[number % 3]}"],
        "instrument": ("piano", "fiddle")[number % 2],
        "composition": f"piece{number}",
        "pitch_class": np.repeat(rng.integers(0, 12, 10), 5),
    }


CLIPS = [noisy_clip(number) for number in range(8)]
TRAIN = [noisy_clip(number) for number in range(10, 14)]


def spread_codebooks(residual: np.ndarray, levels: int) -> np.ndarray:
    """Fits codebooks `[levels, CODES, dim]` to vectors `[n, dim]` by one step of residual k-means: all codes occur."""
    rng, codebooks = np.random.default_rng(0), []

    def nearest(codebook: np.ndarray) -> np.ndarray:
        return np.argmin(((residual[:, None] - codebook) ** 2).sum(axis=-1), axis=1)

    for _ in range(levels):
        codebook = residual[rng.choice(len(residual), CODES, replace=False)]
        assigned = nearest(codebook)
        codebook = np.stack([residual[assigned == k].mean(axis=0) for k in range(CODES)])
        residual = residual - codebook[nearest(codebook)]
        codebooks.append(codebook)
    return np.stack(codebooks)


def whole_diagnosis(folder: pathlib.Path, resynthesized: int) -> diagnose.Diagnosis:
    """Diagnoses a bundle with random weights and a collapsed third codebook, on records with shuffled tokens."""
    miniature.copy(folder)
    config, variables = bundles.load(folder).part("soundstream")
    audio = np.stack([clip["audio"] for clip in CLIPS])
    embed = jax.jit(functools.partial(soundstream_model.embed, config))
    embedded = np.asarray(embed(variables["params"], audio))
    codebooks = spread_codebooks(embedded.reshape(-1, config.embedding_dim), config.num_quantizers)
    codebooks[2] = codebooks[2, :1]
    bundles.save_part(folder, "soundstream", config, variables | {"codebooks": codebooks})
    bundle = bundles.load(folder)
    streams = Tokenizers.from_bundle(bundle).tokenize(audio)
    rng = np.random.default_rng(0)
    recorded = {}
    for i, clip in enumerate(CLIPS):
        recorded[clip["id"]] = {name: codes[i] for name, codes in streams.items()}
        recorded[clip["id"]]["semantic"] = rng.permutation(streams["semantic"][i])
    return diagnose.diagnose(bundle, diagnose.Clips(CLIPS, TRAIN, recorded), resynthesized)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> diagnose.Diagnosis:
    return whole_diagnosis(tmp_path_factory.mktemp("diagnose") / "mini", 0)


def named(findings, name: str) -> Finding:
    """Returns the finding whose name contains `name`."""
    found = [finding for finding in findings if name in finding.name]
    assert len(found) == 1, [finding.name for finding in findings]
    return found[0]


def test_a_collapsed_codebook_is_named_and_the_others_are_not(whole):
    levels = {f.name: f for f in whole.findings if f.name.startswith("perplexity of level")}
    broken = [name for name, finding in levels.items() if finding.verdict == "broken"]
    assert len(levels) == 12 and broken == ["perplexity of level 3"]
    assert levels["perplexity of level 3"].value == 1 and "15 dead" in levels["perplexity of level 3"].note


def test_random_weights_are_broken_along_the_chain(whole):
    for name in ("log-mel distance of the round trip", "from text to audio"):
        assert named(whole.findings, name).verdict == "broken", name
    assert all(f.verdict == "broken" for f in whole.findings if f.name.startswith("bits per token"))
    assert sum(f.name.startswith("bits per token") for f in whole.findings) == 13
    assert whole.fault.part == "soundstream"


def test_shuffled_semantic_tokens_of_the_records_are_named(whole):
    finding = named(whole.findings, "semantic tokens that the tokenizers reproduce")
    assert finding.verdict == "broken" and "frames were shuffled" in finding.advice
    assert named(whole.findings, "acoustic tokens that").verdict == "ok"
    assert named(whole.findings, "MuLan tokens that").verdict == "ok"


@pytest.mark.slow
def test_every_version_of_the_resynthesis_is_judged(tmp_path):
    found = whole_diagnosis(tmp_path / "mini", 8)
    heard = [f.name.split(", ")[1] for f in found.findings if f.name.startswith("AUC of its own caption")]
    assert heard == ["real renders", "coarse alone", "codec", "true coarse", "true semantic", "all generated"]
    assert any("musicnn" in reason for reason in found.left_out)  # two seconds are too short for it
    assert named(found.findings, "log-mel distance of music from true semantic").verdict == "broken"


def test_each_version_uses_the_right_true_tokens(monkeypatch):
    # Fakes: semantic codes are 1, coarse codes are semantic codes + 10, fine codes are coarse codes + 100.
    def generate_semantic(part, conditions, known, frames, request, keys, progress):
        assert conditions.codes.shape == (1, 3, 12) and len(keys) == 3
        yield np.ones((3, frames, 1), int)

    def generate_coarse(part, conditions, semantic, known, frames, request, keys, progress):
        assert conditions.codes.shape == (1, 6, 12) and len(keys) == 6
        yield np.repeat(np.repeat(semantic.until(frames), 2, axis=1), 4, axis=2) + 10

    def generate_acoustic(part, coarse, known, frames, request, keys, at_once, progress):
        assert len(keys) == 9 and known.shape == (9, 0, 12)
        above = coarse.until(frames)
        yield np.concatenate([above, np.repeat(above[..., :1], 8, axis=2) + 100], axis=2)

    for function in (generate_semantic, generate_coarse, generate_acoustic):
        monkeypatch.setattr(resynthesis.windows, function.__name__, function)
    monkeypatch.setattr(resynthesis.pipeline, "decode_audio", lambda part, codes: codes.reshape(len(codes), -1))
    monkeypatch.setattr(resynthesis.mulan, "embed_text", lambda config, variables, texts: np.zeros((len(texts), 8)))
    monkeypatch.setattr(resynthesis.mulan, "tokens", lambda *_: np.zeros((3, 12), int))
    true = {"semantic": np.full(20, 5), "acoustic": np.tile(np.arange(12) + 50, (40, 1)), "audio": np.zeros(480)}
    done = []
    bundle = bundles.load(miniature.path())
    sounds = resynthesis.resynthesize(bundle, [true] * 3, ["a", "b", "c"], 0, lambda *told: done.append(told))
    first = {name: audio[0].reshape(40, -1)[0].tolist() for name, audio in sounds.items()}
    assert first == {
        "codec": list(range(50, 62)),
        "coarse alone": [50, 51, 52, 53],
        "true coarse": [50, 51, 52, 53] + [150] * 8,
        "true semantic": [15] * 4 + [115] * 8,
        "all generated": [11] * 4 + [111] * 8,
        "real renders": [0] * 12,
    }
    assert done[-1][1] == done[-1][2]


def test_a_mulan_at_chance_is_broken_and_a_working_one_is_not():
    rng = np.random.default_rng(0)
    text, noise = rng.normal(size=(64, 16)), rng.normal(size=(64, 16))

    def verdicts(audio):
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (text, audio)]
        return [f.verdict for f in retrieval.judge_retrieval(unit[0] @ unit[1].T, 0)]

    assert verdicts(noise) == ["broken", "broken"]
    assert verdicts(text + 0.7 * noise) == ["ok", "ok"]
    assert verdicts(text[rng.permutation(64)]) == ["broken", "broken"]  # captions of other clips
    assert verdicts(np.ones((64, 16))) == ["broken", "broken"]  # one embedding for all


def test_the_best_loss_is_ln_of_the_batch_at_chance_and_zero_for_a_perfect_match():
    assert retrieval.best_loss(np.zeros((32, 32))) == pytest.approx(np.log(32))
    assert retrieval.best_loss(np.eye(32)) == pytest.approx(0, abs=1e-3)
    assert retrieval.best_loss(-np.eye(32)) <= np.log(32)
    # Two equal texts for each clip: no temperature can separate them.
    assert retrieval.best_loss(np.kron(np.eye(16), np.ones((2, 2)))) == pytest.approx(np.log(2), abs=1e-3)


def test_text_tokens_are_compared_with_another_clips():
    rng = np.random.default_rng(0)
    audio = rng.integers(0, 16, (64, 12))
    other = np.roll(np.arange(64), 1)

    def verdict(share):
        text = np.where(rng.random((64, 1)) < share, audio, rng.integers(0, 16, (64, 12)))
        return retrieval.judge_tokens(text, audio, other, 2, 0).verdict

    assert (verdict(0.9), verdict(0.35), verdict(0)) == ("ok", "weak", "broken")
    constant = np.full((64, 12), 3)
    assert retrieval.judge_tokens(constant, constant, other, 2, 0).verdict == "broken"  # no information


def codec_verdicts(noise: float, opus: dict | None = None) -> list[str]:
    """Returns the verdicts on a codec that adds noise, scaled relative to the clips."""
    rng = np.random.default_rng(0)
    audio = [clip["audio"] for clip in CLIPS[:4]]
    decoded = [(1 - min(noise, 1)) * a + noise * rng.normal(0, a.std(), len(a)).astype(np.float32) for a in audio]
    own = np.array([codec.distances(a, d) for a, d in zip(audio, decoded, strict=True)])
    strange = np.array([codec.distances(a, d) for a, d in zip(audio, decoded[1:] + decoded[:1], strict=True)])
    return [f.verdict for f in codec.round_trip(own, strange, opus or {}, 6.0, 0)]


def test_the_round_trip_is_compared_with_another_clip_and_opus():
    assert codec_verdicts(0.02) == ["ok", "ok"]
    assert codec_verdicts(1.0) == ["broken", "weak"]  # only noise
    better, worse = ({6: np.full((4, 2), x), 12: np.full((4, 2), x)} for x in (0.1, 20.0))
    assert codec_verdicts(0.02, better)[0] == "weak" and codec_verdicts(0.02, worse)[0] == "ok"
    assert codec.not_finite(0.5).verdict == "broken"


def test_codebook_use_allows_for_the_number_of_draws():
    rng = np.random.default_rng(0)

    def verdict(codes, size=1024):
        return codec.codebook_use(codes, size, "soundstream", "level 1").verdict

    assert verdict(rng.integers(0, 1024, 20_000)) == "ok"
    assert verdict(rng.integers(0, 1024, 500)) == "ok"  # 500 draws cannot cover 512 codes
    assert verdict(np.repeat(rng.integers(0, 1024, 300), 60)) == "ok"  # long notes
    assert verdict(rng.integers(0, 300, 20_000)) == "weak"
    assert verdict(rng.integers(0, 20, 20_000)) == "broken"
    assert verdict(np.zeros(100, int)) == "broken"


def test_codebooks_out_of_order_are_named():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 8)).astype(np.float32)
    codebooks = spread_codebooks(x, 4)

    def judged(books):
        return codec.level_energy(books, np.asarray(quantization.encode(books, x)))

    assert judged(codebooks).verdict == "ok"
    turned = judged(codebooks[::-1].copy())
    assert turned.verdict == "broken" and "level 4 is louder than level 1" in turned.advice


# A coarse stage that is correct by construction. Without layers, its input is the current semantic token, and the
# embedding of code (s + level) % 16 points in the direction of semantic code s.
def test_links_are_judged_by_what_they_keep():
    rng = np.random.default_rng(0)

    def wins(auc):
        return np.clip(auc + rng.normal(0, 0.02, 40), 0, 1)

    def verdicts(*aucs):
        names = (resynthesis.REAL, resynthesis.CODEC, resynthesis.COARSE_ALONE, resynthesis.TRUE_COARSE)
        names += (resynthesis.TRUE_SEMANTIC, resynthesis.GENERATED)
        found = resynthesis.judge_links("AUC", {n: wins(a) for n, a in zip(names, aucs, strict=True)}, 0)
        return {f.part: f.verdict for f in found[2:]}

    good = verdicts(0.94, 0.92, 0.85, 0.91, 0.9, 0.88)
    assert good == dict.fromkeys(("soundstream", "fine", "coarse", "semantic"), "ok")
    assert verdicts(0.94, 0.92, 0.85, 0.91, 0.55, 0.54)["coarse"] == "broken"
    assert verdicts(0.94, 0.92, 0.85, 0.91, 0.75, 0.74) == good | {"coarse": "weak"}
    deaf = verdicts(0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
    assert set(deaf.values()) == {""}  # a judge at chance gives no verdict


def test_a_link_with_too_few_clips_has_no_verdict():
    names = ("real renders", "codec", "coarse alone", "true coarse", "true semantic", "all generated")
    wins = {name: np.array([1.0, 0.9, 0.8, 0.9]) for name in names} | {"all generated": np.array([1.0, 1.0, 0.1, 0.9])}
    finding = resynthesis.judge_links("AUC", wins, 0)[-1]
    assert finding.part == "semantic" and finding.verdict == "" and "too few clips" in finding.note


def test_sounds_are_judged_by_their_distance():
    rng = np.random.default_rng(0)

    def verdicts(true_coarse, true_semantic):
        means = {"codec": 4, "coarse alone": 6, "true coarse": true_coarse, "true semantic": true_semantic}
        distances = {name: mean + rng.normal(0, 0.1, 16) for name, mean in means.items()}
        return [f.verdict for f in resynthesis.judge_sounds(distances, np.full(16, 11.0), 0)]

    assert verdicts(5.0, 6.5) == ["ok", "ok"]
    assert verdicts(6.0, 9.5) == ["weak", "weak"]
    assert verdicts(7.0, 11.5) == ["broken", "broken"]


def test_the_first_fault_is_first_in_the_chain_and_broken_precedes_weak():
    weak, broken, late = (
        Finding("mulan", "a", 0.0, "weak"),
        Finding("coarse", "b", 0.0, "broken"),
        Finding("fine", "c", 0.0, "broken"),
    )
    assert first_fault([late, weak, broken]) is broken
    assert first_fault([Finding("fine", "d", 0.0, "weak"), weak]) is weak
    assert first_fault([Finding("fine", "e", 0.0, "ok"), Finding("judges", "f", 0.5)]) is None
    with pytest.raises(ValueError, match="verdict is 'bad'"):
        Finding("fine", "g", 0.0, "bad")


def test_musicnn_says_why_it_cannot_judge(monkeypatch):
    monkeypatch.setattr(instruments.importlib.util, "find_spec", lambda name: object())
    assert instruments.cannot_hear(["flute", "piano"], 5 * RATE) == ""
    assert "no tags for 'kazoo'" in instruments.cannot_hear(["flute", "kazoo"], 5 * RATE)
    assert "have one instrument" in instruments.cannot_hear(["flute"], 5 * RATE)
    assert "3 s" in instruments.cannot_hear(["flute", "piano"], 2 * RATE)
    monkeypatch.setattr(instruments.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in instruments.cannot_hear(["flute", "piano"], 5 * RATE)


def test_checks_that_cannot_run_are_listed(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    bundles.save_generation(folder, bundles.GenerationConfig())
    silence = CLIPS[0] | {"audio": np.zeros_like(CLIPS[0]["audio"])}
    found = diagnose.diagnose(bundles.load(folder), diagnose.Clips([silence, *CLIPS[:2]], TRAIN))
    assert found.findings == [] and found.fault is None
    assert found.left_out[0].startswith("1 silent clips") and "soundstream: not in the bundle" in found.left_out
    with pytest.raises(ValueError, match="only 1 held-out clips are not silent"):
        diagnose.diagnose(bundles.load(folder), diagnose.Clips([silence, CLIPS[0]], TRAIN))
    short = CLIPS[0] | {"audio": CLIPS[0]["audio"][:RATE]}
    with pytest.raises(ValueError, match="24000 to 48000 samples"):
        diagnose.diagnose(bundles.load(folder), diagnose.Clips([short, CLIPS[1]], TRAIN))


def test_the_command_prints_the_fault_last_and_writes_json(tmp_path, monkeypatch, capsys):
    corpus = record_folders.audio_folder(tmp_path / "corpus")
    tokens = record_folders.token_folder(tmp_path / "tokens")
    findings = [
        Finding("soundstream", "perplexity of level 1", 500.0, "ok", "broken under 32"),
        Finding(
            "coarse",
            "bits per token, level 1",
            metrics.Estimate(9.0, 8.9, 9.1),
            "broken",
            "broken from 9",
            "x",
            "train it",
        ),
    ]
    asked = []

    def fake(bundle, clips, resynthesized, seed, progress):
        asked.append((clips, resynthesized, seed))
        return diagnose.Diagnosis(findings, ["Opus: ffmpeg is not installed"])

    monkeypatch.setattr(diagnose, "diagnose", fake)
    monkeypatch.setenv("MUSICLM_CACHE", str(tmp_path / "cache"))
    folders = ["--bundle", str(miniature.path()), "--corpus", str(corpus), "--tokens", str(tokens)]
    launch.main([*folders, "--clips", "4", "--resynthesis", "3", "--output", str(tmp_path / "found.json")])
    clips, resynthesized, seed = asked[0]
    assert (len(clips.held_out), resynthesized, seed) == (4, 3, 0)
    assert set(clips.token_records) == {f"test{i}" for i in range(6)} and len(clips.train_tokens) == 6
    lines = capsys.readouterr().out.splitlines()
    assert "  ok      perplexity of level 1: 500.000" in lines
    assert "  broken  bits per token, level 1: 9.000 [8.900, 9.100]" in lines
    assert lines[-1].startswith("The first part at fault: coarse (bits per token, level 1: 9.000 [8.900, 9.100]).")
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["fault"]["part"] == "coarse" and content["findings"][1]["value"] == [9.0, 8.9, 9.1]
    for wrong, message in (
        (["--clips", "1"], "give 2 or more"),
        (["--output", "/nowhere/x.json"], "no folder /nowhere"),
    ):
        with pytest.raises(ValueError, match=message):
            launch.main([*folders, *wrong])


def test_no_fault_and_weak_parts_are_distinguished():
    assert launch.report(diagnose.Diagnosis([Finding("fine", "a", 1.0, "ok", "b")])).endswith("No part is at fault.")
    weak = launch.report(diagnose.Diagnosis([Finding("fine", "a", 1.0, "weak", "b", "", "train it")]))
    assert "No part is broken; the first weak one: fine (a: 1.000)." in weak


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_opus_is_available_with_ffmpeg():
    assert codec.opus_is_there()


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_opus_of_concatenated_clips_matches_each_clip_alone():
    time = np.arange(24_000) / 24_000
    clips = [(0.3 * np.sin(2 * np.pi * hz * time)).astype(np.float32) for hz in (300, 700, 1900)]
    for clip, joined in zip(clips, codec.opus_of_clips(clips, 12), strict=True):
        alone = codec.opus(clip, 12)[0]
        assert len(joined) == len(clip)
        middle = slice(2_400, -2_400)  # without the encoder's start-up and the borders
        assert metrics.si_sdr(clip[middle], joined[middle]) > 10
        assert metrics.si_sdr(alone[: len(clip)][middle], joined[middle]) > 10
