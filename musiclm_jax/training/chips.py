"""Peak figures of TPU chips."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of a chip, from Google Cloud's page of each TPU version (docs.cloud.google.com/tpu/docs)."""

    flops: float  # bfloat16 FLOP/s
    hbm_bytes: float
    hbm_rate: float  # bytes/s
    wire_rate: float  # bytes/s sent over all links of the interconnect (half of the bidirectional figure)
    network_rate: float = 0.0  # bytes/s between slices, a chip's share of its host's network; 0 if not published


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 3.125e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 400e9, 12.5e9),
}
TPU_KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}
