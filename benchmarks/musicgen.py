"""A decoding step of transformers' MusicGen, which benchmarks/decode.py compares with ours."""

import functools
import time
from collections.abc import Callable
from typing import Any

CONDITION = 12  # tokens for MusicGen's cross-attention, as many as MuLan's


def musicgen_step(layers: int, position: int, rows: int) -> Callable[[], float]:
    """Returns a function that runs a MusicGen decoder step on a random KV cache and returns its processor time."""
    import torch
    from transformers import DynamicCache, EncoderDecoderCache, MusicgenForCausalLM
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    torch.set_num_threads(1)
    model = _musicgen(layers, MusicgenForCausalLM, MusicgenDecoderConfig)
    ids = torch.zeros((4 * rows, 1), dtype=torch.long)
    condition = torch.randn(rows, CONDITION, 1024)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    arguments_ = {"encoder_hidden_states": condition, "past_key_values": cache, "use_cache": True}
    with torch.inference_mode():
        model(input_ids=ids, **arguments_)
    past = [(torch.randn(rows, 16, position - 1, 64), torch.randn(rows, 16, position - 1, 64)) for _ in range(layers)]

    def run() -> float:
        for layer, (keys, values) in zip(cache.self_attention_cache.layers, past, strict=True):
            layer.keys, layer.values = keys, values
        with torch.inference_mode():
            began = time.process_time()
            logits = model(input_ids=ids, **arguments_).logits
            spent = time.process_time() - began
        assert logits.shape[-1] == 1024
        return spent

    run()
    return run


@functools.cache
def _musicgen(layers: int, model: Any, config: Any) -> Any:
    own = config(vocab_size=1024, num_hidden_layers=layers, hidden_size=1024, ffn_dim=4096, num_attention_heads=16)
    return model(own).eval()
