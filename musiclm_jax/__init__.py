"""MusicLM (text to music) in JAX and Flax."""
