"""The configuration of the melody model (MusicLM, arXiv 2301.11325, section 3.3 and appendix)."""

import dataclasses

from musiclm_jax.data.spectrogram import LogMelConfig
from musiclm_jax.data.tokens import MELODY, SAMPLE_RATE


@dataclasses.dataclass(frozen=True)
class MelodyConfig:
    """Sizes of the melody model; the defaults are the paper's.

    The paper leaves open: the size of a head (512 is no multiple of 6 heads; here 64), the mel spectrogram's settings,
    how many of its frames make a patch, how patches are pooled (here their mean), the order of the 72 tokens (here the
    first level of the 3 windows, then the second, ...).

    What the paper does not have, for small models and little data: filters by semitone (`semitones`), over which
    patches lower than the spectrum slide (`patch_mels`), so that the key does not matter by construction; and tokens
    that tell pitch classes (`chroma_parts`) before the embedding, which is the same in every key: a stage that has
    heard a few thousand clips does not learn to find out the key and to transpose.
    """

    window_seconds: float = MELODY.window_seconds  # of audio, that one embedding stands for
    hop_seconds: float = MELODY.hop_seconds  # between embeddings
    windows: int = MELODY.windows  # embeddings of a clip, which make one set of tokens: 10 s
    mel_window: int = 1200  # samples of an analysis window (50 ms: low notes are resolved)
    mel_hop: int = 480  # samples between frames (20 ms)
    mel_fft_size: int = 2048  # points of the transform
    num_mels: int = 128  # mel filters
    semitones: bool = False  # a filter every semitone instead, from lowest_pitch on
    lowest_pitch: int = 40  # MIDI pitch of the first of them
    mel_floor: float = 1e-5  # added before the logarithm
    mel_mean: float = -5.6  # subtracted from the log-mel
    mel_scale: float = 2.2  # and divided by
    patch_frames: int = 4  # frames of a patch, one input of the Transformer
    patch_hop: int = 4  # frames between patches
    patch_mels: int = 128  # filters of a patch; with fewer than there are, the best match at any height counts
    num_layers: int = 12  # of the Transformer
    num_heads: int = 6  # its attention heads
    head_dim: int = 64  # channels of one of them
    width: int = 512  # of the Transformer
    mlp_width: int = 1024  # of its feed-forward
    embedding_dim: int = 192  # of an embedding, of length 1
    num_quantizers: int = 24  # RVQ levels of one embedding
    codebook_size: int = MELODY.codebook_size  # entries of a level
    chroma_parts: int = 0  # equal parts of a window; of its codes the first ones tell their pitch classes; 0 for none

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          ValueError: if the window is no whole number of patches, a patch does not fit, or the tokens are not those of
            the stream.
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
        """Samples between two windows at 24 kHz."""
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
        """The spectrogram that the model sees."""
        return LogMelConfig(
            window=self.mel_window,
            hop=self.mel_hop,
            fft_size=self.mel_fft_size,
            num_mels=self.num_mels,
            floor=self.mel_floor,
        )
