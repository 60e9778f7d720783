"""Peak figures of TPU chips and of NVIDIA's GPUs."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of a chip.

    Those of TPUs are from Google Cloud's page of each version (docs.cloud.google.com/tpu/docs), those of GPUs from
    NVIDIA's data sheets "H100 Tensor Core GPU" and "H200 Tensor Core GPU" for the SXM form, without sparsity (the
    "H100 Tensor Core GPU Architecture" paper, which gives the dense bfloat16 rate). The sheets say 80 and 141 GB; here
    is what CUDA reports of the cards, as in XLA's own descriptions of them (xla/backends/gpu/target_config/specs).
    """

    flops: float  # bfloat16 FLOP/s
    hbm_bytes: float
    hbm_rate: float  # bytes/s
    wire_rate: float  # bytes/s sent over all links of the interconnect or NVLink (half of the bidirectional figure)
    network_rate: float = 0.0  # bytes/s between slices, a chip's share of its host's network; 0 if not published


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 3.125e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 6.25e9),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 400e9, 12.5e9),
    "h100": Chip(989.4e12, 84_942_979_072, 3350e9, 450e9),
    "h200": Chip(989.4e12, 151_397_597_184, 4800e9, 450e9),
}
TPU_KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}
GPU_KINDS = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}
