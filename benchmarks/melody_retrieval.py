"""Measures the melody model's retrieval: python -m benchmarks.melody_retrieval --corpus RENDITIONS --bundle BUNDLE

Reports recall at 1 and at 10 among held-out tunes. RENDITIONS are made by `musiclm corpus --passages`. For one passage
of each tune, one rendition joins the gallery, and the others are queries. Results are split by who plays or sings the
query. They are repeated with both sides quantized, by the first RVQ levels alone (a stage's condition) or by all.
Intervals are bootstrapped over tunes.
"""

import numpy as np

from benchmarks.report import Figure, arguments, publish
from musiclm_jax import bundles
from musiclm_jax.evaluation import metrics
from musiclm_jax.tokenizers import melody, quantization

TOP = 10
FIRST_LEVELS = 4  # of the RVQ
BATCH = 16  # passages


def ranks(queries: np.ndarray, gallery: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Ranks the right tune for each query: the number of closer gallery entries, plus half of the ties.

    Args:
      queries: float `[queries, dim]`.
      gallery: float `[tunes, dim]`.
      right: int `[queries]`, the tune of each query.

    Returns:
      float `[queries]`, 0 if the right tune is first.
    """
    distances = np.sum((queries[:, None] - gallery[None]) ** 2, axis=-1)
    own = distances[np.arange(len(queries)), right][:, None]
    return np.sum(distances < own, axis=1) + (np.sum(distances == own, axis=1) - 1) / 2


def recall(ranked: np.ndarray, tunes: np.ndarray, top: int, seed: int) -> metrics.Estimate:
    """Computes recall at `top`, averaged within each tune first, because a tune's queries are not independent."""
    found = [np.mean(ranked[tunes == tune] < top) for tune in np.unique(tunes)]
    return metrics.bootstrap(found, seed=seed)


def main() -> None:
    """Runs the benchmark."""
    from musiclm_jax.data import records  # here: it imports TensorFlow

    parser = arguments(__doc__.splitlines()[0])
    args = parser.parse_args()
    config, variables = bundles.load(args.bundle).part("melody")
    rng = np.random.default_rng(args.seed)
    passages: dict[str, dict] = {}
    for record in records.read_rendition_records(records.shard_paths(args.corpus, "test")):
        passages.setdefault(record["composition"], record)
    if len(passages) < 2:
        raise ValueError(f"{args.corpus} has {len(passages)} tunes in its test split: expected 2 or more")
    tunes = list(passages.values())
    embedded, players = [], []
    for i in range(0, len(tunes), BATCH):
        audio = np.concatenate([tune["renditions"] for tune in tunes[i : i + BATCH]])
        embedded.append(np.asarray(melody.embed(config, variables, audio))[:, 0])
        players += [tune["players"] for tune in tunes[i : i + BATCH]]
    vectors = np.concatenate(embedded).reshape(len(tunes), -1, config.embedding_dim)
    wanted = rng.integers(vectors.shape[1], size=len(tunes))
    is_query = np.ones(vectors.shape[:2], bool)
    is_query[np.arange(len(tunes)), wanted] = False
    tune_of = np.nonzero(is_query)[0]
    player_of = np.array(players)[is_query]
    codes = quantization.encode(variables["codebooks"], vectors)
    forms = {"": vectors}
    for levels in (FIRST_LEVELS, len(variables["codebooks"])):
        decoded = quantization.decode(variables["codebooks"], codes[..., :levels])
        forms[f", by {levels} levels of the RVQ"] = np.asarray(decoded)
    figures, details = [], {"tunes": len(tunes), "queries": len(tune_of)}
    for form, space in forms.items():
        ranked = ranks(space[is_query], space[np.arange(len(tunes)), wanted], tune_of)
        for player in ("all", "instrument", "sung", "whistled"):
            chosen = (player_of == player) | (player == "all")
            details[f"{player}{form}"] = {"queries": int(chosen.sum()), "median rank": float(np.median(ranked[chosen]))}
            for top in (1, TOP):
                found = recall(ranked[chosen], tune_of[chosen], top, args.seed)
                note = f"chance {min(top / len(tunes), 1):.4f}"
                figures.append(Figure(f"recall at {top} of {len(tunes)}, {player}{form}", found, note=note))
    publish("melody", figures, args.output, details)


if __name__ == "__main__":
    main()
