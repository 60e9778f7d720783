"""A stage of ours in PyTorch, as one would write it for a GPU: for benchmarks/gpu.py.

Fused attention with T5's bias as its mask, compiled layers, products in bfloat16, PyTorch's fused AdamW.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from musiclm_jax.stages import layout
from musiclm_jax.stages.layers import relative_buckets
from musiclm_jax.stages.learner import StageLearner
from musiclm_jax.stages.transformer import TransformerConfig

Z_LOSS = 1e-4
ALIGNED = 8  # fused attention copies a bias whose rows do not begin at a multiple of it


class Layer(nn.Module):
    """Attention and gated feed-forward, each with a norm before it."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        d = config.d_model
        self.heads, self.rate = config.num_heads, config.dropout
        self.attention_norm, self.mlp_norm = nn.RMSNorm(d, eps=1e-6), nn.RMSNorm(d, eps=1e-6)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.gate, self.up = (nn.Linear(d, config.d_ff, bias=False) for _ in range(2))
        self.down = nn.Linear(config.d_ff, d, bias=False)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Maps [b, l, d] to [b, l, d]; bias is [1, h, l, l]."""
        rows, length, d = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(rows, length, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        branch = self.out(attended.transpose(1, 2).reshape(rows, length, d))
        x = x + functional.dropout(branch, self.rate)
        normed = self.mlp_norm(x)
        hidden = functional.gelu(self.gate(normed), approximate="tanh") * self.up(normed)
        return x + functional.dropout(self.down(functional.dropout(hidden, self.rate)), self.rate)


class Model(nn.Module):
    """The whole model, with one table for inputs and outputs."""

    def __init__(self, config: TransformerConfig, rows: int, length: int, backend: str):
        super().__init__()
        self.embedding = nn.Embedding(rows, config.d_model)
        self.relative_bias = nn.Parameter(torch.randn(config.relative_buckets, config.num_heads) * 0.03)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        for layer in self.layers:
            layer.compile(backend=backend)  # the first compiles, the others have its program
        self.final_norm, self.rate = nn.RMSNorm(config.d_model, eps=1e-6), config.dropout
        buckets = relative_buckets(np.arange(length), config.relative_buckets, config.relative_max_distance)
        self.register_buffer("buckets", torch.from_numpy(buckets.astype(np.int64)))

    def bias(self, dtype: torch.dtype) -> torch.Tensor:
        """Returns T5's bias with the future masked, [1, h, l, l]; see `block_attention.causal_bias`."""
        near = self.relative_bias[self.buckets].T.to(dtype)  # [h, l]
        heads, length = near.shape
        padded = -(-length // ALIGNED) * ALIGNED
        line = torch.cat([near.flip(1), near.new_full((heads, padded), float("-inf"))], 1)
        width = line.shape[1]
        repeated = line[:, None].expand(heads, length, width).reshape(heads, -1)
        shifted = repeated[:, length - 1 : length - 1 + length * (width - 1)].reshape(heads, length, width - 1)
        return shifted[None, :, :, :padded].contiguous()[..., :length]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Maps ids [b, l] to hidden states [b, l, d]."""
        x = functional.dropout(self.embedding(ids), self.rate).to(torch.bfloat16)
        bias = self.bias(torch.bfloat16)
        for layer in self.layers:
            x = layer(x, bias)
        return functional.dropout(self.final_norm(x), self.rate)


class Step:
    """A train step; call it to take one and wait for it."""

    def __init__(self, learner: StageLearner, batch: Mapping[str, np.ndarray], device: str, backend: str):
        torch.manual_seed(0)
        stage = learner.stage
        self.stage, self.device = stage, device
        self.model = Model(learner.config, stage.vocabulary.rows, learner.row_tokens, backend).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        lm = layout.assemble(stage, batch)
        self.ids = torch.from_numpy(np.array(lm.decoder_input_tokens, np.int64)).to(device)
        self.targets = torch.from_numpy(np.array(lm.target_codes, np.int64)).to(device)

    def loss(self) -> torch.Tensor:
        """Computes the loss over the codebook of each position's level."""
        stage, size = self.stage, self.stage.stream(self.stage.target.stream).codebook_size
        first, levels = stage.vocabulary.offset(stage.target.stream, stage.target.first_level), stage.target.levels
        with torch.autocast(self.device, torch.bfloat16):
            hidden = self.model(self.ids)[:, stage.condition_length() :]
            hidden = hidden.reshape(*self.targets.shape, -1) * hidden.shape[-1] ** -0.5
            table = self.model.embedding.weight[first : first + levels * size].view(levels, size, -1)
            logits = torch.einsum("btqd,qkd->btqk", hidden, table).float()
        normalizer = torch.logsumexp(logits, -1)
        expected = torch.gather(logits, -1, self.targets[..., None])[..., 0]
        return (normalizer - expected + Z_LOSS * normalizer.square()).mean()

    def __call__(self) -> None:
        """Takes a step."""
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device == "cuda":
            torch.cuda.synchronize()


def step(learner: StageLearner, batch: Mapping[str, np.ndarray], device: str, backend: str) -> Any:
    """Makes the step; raises torch.OutOfMemoryError if the batch is too large."""
    return Step(learner, batch, device, backend)
