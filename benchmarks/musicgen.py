"""A decoding step of transformers' MusicGen, which benchmarks/decode.py compares with ours."""

import functools
import time
from collections.abc import Callable
from typing import Any

CONDITION = 12  # tokens for MusicGen's cross-attention, as many as MuLan's


def musicgen_step(layers: int, position: int, rows: int, device: str = "cpu") -> Callable[[], float]:
    """Returns a function that runs a MusicGen decoder step on a random KV cache and returns its time.

    On a CPU that is processor time of one thread in float32, on a GPU ("cuda") wall time in bfloat16.
    """
    import torch
    from transformers import DynamicCache, EncoderDecoderCache, MusicgenForCausalLM
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    on_gpu = device == "cuda"
    if not on_gpu:
        torch.set_num_threads(1)
    clock = time.perf_counter if on_gpu else time.process_time
    placed = {"device": device, "dtype": torch.bfloat16 if on_gpu else torch.float32}
    model = _musicgen(layers, MusicgenForCausalLM, MusicgenDecoderConfig).to(**placed)
    ids = torch.zeros((4 * rows, 1), dtype=torch.long, device=device)
    condition = torch.randn(rows, CONDITION, 1024, **placed)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    arguments_ = {"encoder_hidden_states": condition, "past_key_values": cache, "use_cache": True}
    with torch.inference_mode():
        model(input_ids=ids, **arguments_)
    shape = (rows, 16, position - 1, 64)
    past = [(torch.randn(shape, **placed), torch.randn(shape, **placed)) for _ in range(layers)]

    def run() -> float:
        for layer, (keys, values) in zip(cache.self_attention_cache.layers, past, strict=True):
            layer.keys, layer.values = keys, values
        with torch.inference_mode():
            began = clock()
            logits = model(input_ids=ids, **arguments_).logits
            if on_gpu:
                torch.cuda.synchronize()
            spent = clock() - began
        assert logits.shape[-1] == 1024
        return spent

    run()
    return run


@functools.cache
def _musicgen(layers: int, model: Any, config: Any) -> Any:
    own = config(vocab_size=1024, num_hidden_layers=layers, hidden_size=1024, ffn_dim=4096, num_attention_heads=16)
    return model(own).eval()
