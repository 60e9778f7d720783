import numpy as np
import pytest
import scipy.stats

from musiclm_jax.evaluation import metrics
from musiclm_jax.evaluation.metrics import Estimate

RATE = 24_000


def tone(hz, seconds=1.0, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hz * np.arange(int(RATE * seconds)) / RATE)


def test_bootstrap_interval_of_a_mean_matches_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = metrics.bootstrap(values)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_is_seeded_and_takes_any_statistic():
    values = np.arange(50.0)
    assert metrics.bootstrap(values, seed=3) == metrics.bootstrap(values, seed=3)
    assert metrics.bootstrap(values, np.max).value == 49
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"


@pytest.mark.parametrize("values, message", [([1.0], "at least two"), ([1.0, np.nan], "1 of 2 values are NaN")])
def test_bootstrap_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        metrics.bootstrap(values)


def test_roc_auc_on_literals_and_against_scipy():
    assert metrics.roc_auc([3, 4], [1, 2]) == 1
    assert metrics.roc_auc([1, 2], [3, 4]) == 0
    assert metrics.roc_auc([1, 2], [2, 0]) == pytest.approx(0.625)  # 1 beats 0; 2 ties with 2 and beats 0
    rng = np.random.default_rng(1)
    positive, negative = rng.integers(0, 9, 40), rng.integers(2, 11, 60)
    expected = scipy.stats.mannwhitneyu(positive, negative).statistic / 2400
    assert metrics.roc_auc(positive, negative) == pytest.approx(expected)
    with pytest.raises(ValueError, match="0 positive"):
        metrics.roc_auc([], [1])


def test_matched_auc_is_the_mean_of_the_labels_aucs():
    rng = np.random.default_rng(2)
    scores, asked = rng.normal(size=(90, 4)), rng.integers(0, 4, 90)
    wins = metrics.matched_wins(scores, asked)
    for label in range(4):
        own, others = scores[asked == label, label], scores[asked != label, label]
        assert wins[asked == label].mean() == pytest.approx(metrics.roc_auc(own, others))
    scores[np.arange(90), asked] += 100
    assert metrics.matched_auc(scores, asked) == 1
    with pytest.raises(ValueError, match="same requested label"):
        metrics.matched_auc(scores, np.zeros(90, int))


def test_si_sdr_measures_the_noise_and_ignores_the_gain():
    rng = np.random.default_rng(0)
    clean = rng.normal(size=200_000)
    noise = rng.normal(size=200_000)
    noise -= noise @ clean / (clean @ clean) * clean
    assert metrics.si_sdr(clean, clean + 0.1 * noise) == pytest.approx(20, abs=0.05)
    assert metrics.si_sdr(clean, 7 * (clean + 0.1 * noise)) == pytest.approx(20, abs=0.05)
    quiet = 1e-5 * clean
    assert metrics.si_sdr(clean, quiet + 1e-6 * noise) == pytest.approx(20, abs=0.05)
    assert metrics.si_sdr(clean, clean) == metrics.MAX_SI_SDR
    assert metrics.si_sdr(clean, np.zeros_like(clean)) == -metrics.MAX_SI_SDR
    with pytest.raises(ValueError, match="silent"):
        metrics.si_sdr(np.zeros(10), np.ones(10))
    with pytest.raises(ValueError, match="differ in length"):
        metrics.si_sdr(clean, clean[1:])


@pytest.mark.parametrize("delay", [37, -12, 0])
def test_a_delay_is_found_and_removed(delay):
    audio = np.random.default_rng(0).normal(size=5000)
    late = np.roll(audio, delay)
    lag = metrics.best_lag(audio, late, 100)
    assert lag == delay
    aligned = metrics.shifted(late, lag, 5000)
    np.testing.assert_array_equal(aligned[100:-100], audio[100:-100])
    assert metrics.shifted(audio[:10], 4, 20).shape == (20,)


def test_log_mel_distance_of_a_gain_is_the_gain():
    audio = np.random.default_rng(0).normal(0, 0.2, RATE)
    assert metrics.log_mel_distance_db(audio, audio, RATE) == 0
    assert metrics.log_mel_distance_db(audio, audio / 2, RATE) == pytest.approx(6.02, abs=0.02)


def test_log_mel_distance_is_relative_to_full_scale_and_ignores_levels_below_the_floor():
    far_below = metrics.MEL_FLOOR / 100
    silence, hiss = np.zeros(RATE), np.random.default_rng(0).normal(0, far_below, RATE)
    assert metrics.log_mel_distance_db(silence, hiss, RATE) == 0
    near = metrics.log_mel_distance_db(tone(440), tone(450), RATE)
    assert 0 < near < metrics.log_mel_distance_db(tone(440), tone(1760), RATE)


def test_entropies_on_literals():
    assert metrics.entropy_bits(np.array([[0, 1], [2, 3]])) == pytest.approx(2)
    assert metrics.entropy_bits(np.zeros(9, int)) == 0
    assert metrics.perplexity(np.repeat(np.arange(8), 5)) == pytest.approx(8)
    # Counts 3 + 1 and 1 + 1 of 6: a test code 0 costs log2(6/4), a 1 costs log2(6/2).
    bits = metrics.unigram_bits(np.array([0, 0, 0, 1]), np.array([0, 1]), 2)
    assert bits == pytest.approx((np.log2(1.5) + np.log2(3)) / 2)


def test_mutual_information_is_one_for_renamed_labels_and_zero_for_unrelated_ones():
    labels = np.random.default_rng(0).integers(0, 5, 20_000)
    assert metrics.normalized_mutual_information(labels, 10 - 2 * labels) == pytest.approx(1)
    assert metrics.normalized_mutual_information(labels, np.random.default_rng(1).permutation(labels)) < 0.002
    assert metrics.normalized_mutual_information(labels, np.zeros_like(labels)) == 0
    # Halves of four labels: I = 1 bit, entropies 2 and 1 bit.
    assert metrics.normalized_mutual_information(np.arange(4), np.arange(4) // 2) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="expected equal lengths"):
        metrics.normalized_mutual_information(labels, labels[1:])


@pytest.mark.parametrize("tonic", [0, 5, 11])
def test_key_fit_does_not_depend_on_the_tonic(tonic):
    scale = np.zeros(12)
    scale[[(tonic + step) % 12 for step in (0, 2, 4, 5, 7, 9, 11)]] = [4, 2, 3, 2, 4, 2, 1]
    assert metrics.key_fit(scale) > 0.9
    assert metrics.key_fit(np.roll(metrics.MINOR_PROFILE, tonic)) == pytest.approx(1)


def test_random_histograms_fit_keys_worse():
    rng = np.random.default_rng(0)
    fits = [metrics.key_fit(rng.exponential(size=12)) for _ in range(300)]
    assert 0.4 < np.mean(fits) < 0.65
    assert metrics.key_fit(np.ones(12)) == 0
    assert metrics.key_fit(np.zeros(12)) == 0
    with pytest.raises(ValueError, match="12 weights"):
        metrics.key_fit(np.ones(11))


def test_pitch_classes_in_use_distinguishes_a_hum_from_music():
    assert metrics.pitch_classes_in_use(np.eye(12)[3]) == 1
    assert metrics.pitch_classes_in_use(np.repeat([1, 0], 6)) == pytest.approx(6)
    assert metrics.pitch_classes_in_use(np.zeros(12)) == 0


def test_kl_divergence_on_literals_and_against_scipy():
    reference, generated = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert metrics.kl_divergence(reference, generated, smoothing=0) == pytest.approx(expected)
    other_way = metrics.kl_divergence(reference, generated, "generated||reference", smoothing=0)
    assert other_way == pytest.approx(0.25 * np.log(0.5) + 0.75 * np.log(1.5))
    many = np.random.default_rng(0).gamma(1.0, size=(2, 3, 4, 20))  # clips, segments; normalized to sum to 1
    found = metrics.kl_divergence(many[0], many[1])
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found, scipy.stats.entropy(many[0], many[1], axis=-1), rtol=1e-3)


def test_kl_divergence_is_smoothed_where_a_class_is_missing():
    certain, other = np.eye(10)[0], np.eye(10)[1]
    cost = metrics.kl_divergence(certain, other, smoothing=1e-3)
    assert cost == pytest.approx(np.log(10 / 1e-3), rel=0.01)
    assert metrics.kl_divergence(certain, certain) == 0


def test_kl_divergence_follows_the_pairs():
    rows = np.random.default_rng(0).gamma(0.5, size=(30, 8))
    near = rows * np.random.default_rng(1).uniform(0.9, 1.1, rows.shape)
    paired = metrics.kl_divergence(rows, near).mean()
    assert metrics.kl_divergence(rows[::-1], near[::-1]).mean() == pytest.approx(paired)
    assert metrics.kl_divergence(rows, np.roll(near, 1, axis=0)).mean() > 10 * paired


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1.0, 0.0], [1.0, 0.0], "both"), "direction is 'both'"),
        (([1.0, 0.0], [1.0, 0.0, 0.0]), "2 and 3 classes"),
        (([1.0, 0.0], [0.0, 0.0]), "not all 0"),
        (([1.0, np.nan], [1.0, 0.0]), "finite"),
        (([1.0, -0.1], [1.0, 0.0]), "at least 0"),
    ],
)
def test_kl_divergence_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        metrics.kl_divergence(*arguments)


def test_cosine_on_literals():
    text, audio = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 2.0], [-3.0, -4.0]])
    np.testing.assert_allclose(metrics.cosine(text, audio), [np.sqrt(0.5), -1])
    assert metrics.cosine(text, audio[::-1]).mean() != pytest.approx(metrics.cosine(text, audio).mean())
    with pytest.raises(ValueError, match="no direction"):
        metrics.cosine(text, np.zeros((2, 2)))
