"""The configuration of the melody model (MusicLM, arXiv 2301.11325, section 3.3 and appendix)."""

import dataclasses

from musiclm_jax.data.spectrogram import LogMelConfig
from musiclm_jax.data.tokens import MELODY, SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class MelodyConfig:
    """Sizes of the melody model; the defaults are the paper's.

    The paper does not specify: the size of a head (512 is not a multiple of 6 heads; here 64), the mel spectrogram's
    settings, the number of frames per patch, how patches are pooled (here by their mean), the order of the 72 tokens
    (here the first level of the 3 windows, then the second, ...).

    Not in the paper, for small models and little data: filters spaced by semitones (`semitones`), with patches that
    cover only some of them and slide over the rest (`patch_mels`), which makes the embedding independent of the key;
    and tokens for pitch classes (`chroma_parts`) before those of the embedding, since from a few thousand clips a stage
    does not learn to infer the key and to transpose.
    """

    window_seconds: float = MELODY.window_seconds  # audio per embedding
    hop_seconds: float = MELODY.hop_seconds  # from one embedding to the next
    windows: int = MELODY.windows  # embeddings per clip of 10 s, which make one set of tokens
    mel_window: int = 1200  # samples of an analysis window (50 ms: low notes are resolved)
    mel_hop: int = 480  # samples between frames (20 ms)
    mel_fft_size: int = 2048  # points of the transform
    num_mels: int = 128  # mel filters
    semitones: bool = False  # use a filter every semitone instead, from lowest_pitch on
    lowest_pitch: int = 40  # MIDI pitch of the first semitone filter
    mel_floor: float = 1e-5  # added before the logarithm
    mel_mean: float = -5.6  # subtracted from the log-mel
    mel_scale: float = 2.2  # and divided by
    patch_frames: int = 4  # frames per patch; a patch is one input of the Transformer
    patch_hop: int = 4  # frames from one patch to the next
    patch_mels: int = 128  # filters per patch; if fewer than num_mels, the maximum over all positions is taken
    num_layers: int = 12  # of the Transformer
    num_heads: int = 6  # attention heads
    head_dim: int = 64  # channels per head
    width: int = 512  # of the Transformer
    mlp_width: int = 1024  # of the feed-forward layers
    embedding_dim: int = 192  # dimensions of an embedding, which has length 1
    num_quantizers: int = 24  # codes per window: those of chroma_parts, then RVQ levels of the embedding
    codebook_size: int = MELODY.codebook_size  # entries per level
    chroma_parts: int = 0  # equal parts of a window, each with a code for its pitch classes; 0 for none

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          ValueError: if a window is not a whole number of patches, a patch does not fit, or the number of tokens does
            not match the melody stream.
        """
        if self.window_samples % (self.mel_hop * self.patch_hop):
            raise ValueError(
                f"window_seconds {self.window_seconds} are {self.window_samples} samples, expected a multiple of "
                f"mel_hop x patch_hop ({self.mel_hop * self.patch_hop})"
            )
        if not 1 <= self.patch_mels <= self.num_mels or not 1 <= self.patch_hop <= self.patch_frames:
            raise ValueError(
                f"a patch has patch_mels {self.patch_mels} of num_mels {self.num_mels} filters and patch_frames "
                f"{self.patch_frames} frames, patch_hop {self.patch_hop} apart: expected 1 to num_mels, and 1 to "
                "patch_frames"
            )
        if self.chroma_parts and not (self.semitones and 0 < self.chroma_parts < self.num_quantizers):
            raise ValueError(
                f"chroma_parts is {self.chroma_parts}: expected 0, or with semitones=True 1 to "
                f"{self.num_quantizers - 1}, fewer than num_quantizers"
            )
        if self.windows * self.num_quantizers != MELODY.quantizers:
            raise ValueError(
                f"windows x num_quantizers is {self.windows} x {self.num_quantizers}, expected the "
                f"{MELODY.quantizers} tokens of the melody stream"
            )

    @property
    def window_samples(self) -> int:
        """Samples of one window at 24 kHz."""
        return round(self.window_seconds * SAMPLE_RATE)

    @property
    def hop_samples(self) -> int:
        """Samples from one window to the next at 24 kHz."""
        return round(self.hop_seconds * SAMPLE_RATE)

    @property
    def clip_samples(self) -> int:
        """Samples of a clip whose windows make one set of tokens."""
        return self.window_samples + (self.windows - 1) * self.hop_samples

    @property
    def frames(self) -> int:
        """Frames of the spectrogram of one window."""
        return self.window_samples // self.mel_hop

    @property
    def patches(self) -> int:
        """Inputs of the Transformer for one window."""
        return self.window_samples // (self.mel_hop * self.patch_hop)

    @property
    def mel(self) -> LogMelConfig:
        """Settings of the model's input spectrogram."""
        return LogMelConfig(
            window=self.mel_window,
            hop=self.mel_hop,
            fft_size=self.mel_fft_size,
            num_mels=self.num_mels,
            floor=self.mel_floor,
        )
