"""The configuration of MuLan's two towers (MuLan, arXiv 2208.12415, as MusicLM uses it)."""

import dataclasses

from musiclm_jax.data.spectrogram import LogMelConfig
from musiclm_jax.data.tokens import MULAN, SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class MulanConfig:
    """Sizes of MuLan; the defaults are the paper's (ResNet-50, BERT-base, 128 dimensions).

    The paper does not specify the number of mel filters, the normalisation (here GroupNorm: without batch statistics, a
    clip's embedding does not depend on the batch), the text length and the projection.
    """

    # Audio tower: a ResNet over the log-mel spectrogram of one window.
    window_seconds: float = 10.0  # length of a window of audio
    stride_seconds: float = 1.0  # stride of the windows whose embeddings are averaged
    mel_window: int = 600  # samples of an analysis window (25 ms)
    mel_hop: int = 240  # samples between frames (10 ms)
    mel_fft_size: int = 1024  # points of the transform
    num_mels: int = 80  # mel filters
    mel_mean: float = -5.6  # subtracted from the log-mel
    mel_scale: float = 2.2  # and divided by
    stem_width: int = 64  # channels of the first convolution
    stem_kernel: int = 7  # its kernel size, in frames and in mels
    stem_stride: int = 2  # its stride, in frames and in mels
    stem_pool: bool = True  # 3 x 3 max-pooling with stride 2 after it
    stage_widths: tuple[int, ...] = (
        256,
        512,
        1024,
        2048,
    )  # output channels of the stages; each but the first halves both axes
    stage_blocks: tuple[int, ...] = (3, 4, 6, 3)  # residual blocks of the stages
    bottleneck: bool = True  # 1x1, 3x3, 1x1 blocks (ResNet-50) instead of two 3x3
    norm_groups: int = 32  # groups of every GroupNorm
    # Text tower: a BERT encoder, mean over tokens, projection.
    vocab_size: int = 30_522  # WordPiece pieces
    text_width: int = 768  # model dimension
    text_layers: int = 12  # layers
    text_heads: int = 12  # attention heads
    text_mlp: int = 3072  # width of the feed-forward layers
    text_positions: int = 512  # learned positions
    max_text_tokens: int = 128  # longer texts are truncated to this, [CLS] and [SEP] included
    projection_hidden: int = 512  # hidden units of the projection; 0 makes it linear
    tune_text_encoder: bool = True  # False: the encoder is frozen and has no optimiser state
    # The joint space and its tokens.
    embedding_dim: int = 128  # dimensions of both towers' embeddings
    num_quantizers: int = MULAN.quantizers  # RVQ levels
    codebook_size: int = MULAN.codebook_size  # entries per level

    def __post_init__(self) -> None:
        if len(self.stage_widths) != len(self.stage_blocks):
            raise ValueError(
                f"stage_widths {self.stage_widths} and stage_blocks {self.stage_blocks} differ in length: "
                "give one of each per stage"
            )
        if self.text_width % self.text_heads:
            raise ValueError(f"text_width {self.text_width} is not divisible by text_heads {self.text_heads}")
        if self.max_text_tokens > self.text_positions:
            raise ValueError(
                f"max_text_tokens {self.max_text_tokens} exceeds the {self.text_positions} learned positions"
            )

    @property
    def window_samples(self) -> int:
        """Samples of one window of audio at 24 kHz."""
        return round(self.window_seconds * SAMPLE_RATE)

    @property
    def stride_samples(self) -> int:
        """Samples from one window to the next at 24 kHz."""
        return round(self.stride_seconds * SAMPLE_RATE)

    @property
    def mel(self) -> LogMelConfig:
        """Settings of the audio tower's input spectrogram."""
        return LogMelConfig(
            window=self.mel_window, hop=self.mel_hop, fft_size=self.mel_fft_size, num_mels=self.num_mels
        )
