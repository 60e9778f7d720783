"""The token streams of a piece of music (MusicLM section 3, arXiv 2301.11325).

Words used everywhere in this project: a *stream* is a sequence of *frames* at a fixed rate, each frame holds one *code*
per *quantizer* (a level of residual vector quantization), a *code* is a raw index 0..codebook_size-1, and an *id* is a
code's place in a stage's vocabulary. Axes are always `[batch, frames, quantizers]`; letters in shape comments:
b batch, t frames, q quantizers, l flat length, d model, h heads, k codebook entries.
"""

import dataclasses

SAMPLE_RATE = 24_000  # Hz, of all audio in this project
STAGES = ("semantic", "coarse", "fine")  # in the order in which they generate
SPLITS = ("train", "validation", "test")
PITCH_CLASS_RATE = 25  # frames per second of `pitch_class` in audio records, the rate of semantic tokens
MISSING_PITCH = -1  # in `pitch_class`: the lead voice rests


@dataclasses.dataclass(frozen=True)
class TokenStream:
    """One stream of codes.

    Attributes:
      name: key of the stream in records and batches.
      frame_rate: frames per second, or 0 for a stream with one set of codes per clip.
      quantizers: codes per frame.
      codebook_size: codes of one quantizer are 0..codebook_size-1.
      windows: number of windows of a stream with one set of codes per clip. Their codes are interleaved: code i belongs
        to window i % windows.
      window_seconds: length of a window, if there are several.
      hop_seconds: time from the start of a window to the start of the next one.
      parts: number of equal parts of a window with a code of their own: the first `parts` codes of a window describe
        one part each, the others the whole window. 0 if all codes describe the whole window.
    """

    name: str
    frame_rate: int
    quantizers: int
    codebook_size: int
    windows: int = 1
    window_seconds: float = 0.0
    hop_seconds: float = 0.0
    parts: int = 0

    def frames(self, seconds: float) -> int:
        """Returns the number of frames in `seconds` of audio: 1 for a stream with one set of codes per clip.

        Raises:
          ValueError: if `seconds` is not a whole number of frames.
        """
        if self.frame_rate == 0:
            return 1
        frames = seconds * self.frame_rate
        if abs(frames - round(frames)) > 1e-6:
            raise ValueError(
                f"{seconds} s of the {self.name} stream are {frames} frames at {self.frame_rate} frames/s: "
                f"choose a multiple of {1 / self.frame_rate} s"
            )
        return round(frames)

    @property
    def slot_seconds(self) -> float:
        """Seconds for which the same codes apply: a part of a window, or the hop if windows have no parts."""
        return self.window_seconds / self.parts if self.parts else self.hop_seconds

    def slots(self, levels: int, count: int) -> tuple[tuple[int, ...], ...]:
        """Returns the indices of the codes that apply in each slot of `slot_seconds`.

        A window's codes apply until the next window begins, and the code of a part only during that part. The codes of
        the last part of the last window apply to all later slots.

        Args:
          levels: number of codes per window.
          count: number of slots.
        """
        per_window = round(self.hop_seconds / self.slot_seconds)
        slots = []
        for slot in range(count):
            window = min(slot // per_window, self.windows - 1)
            part = min(slot - per_window * window, max(self.parts, 1) - 1)
            own = [level for level in range(levels) if level == part or level >= self.parts]
            slots.append(tuple(level * self.windows + window for level in own))
        return tuple(slots)


SEMANTIC = TokenStream("semantic", frame_rate=25, quantizers=1, codebook_size=1024)
ACOUSTIC = TokenStream("acoustic", frame_rate=50, quantizers=12, codebook_size=1024)
MULAN = TokenStream("mulan", frame_rate=0, quantizers=12, codebook_size=1024)
MELODY = TokenStream("melody", 0, quantizers=72, codebook_size=512, windows=3, window_seconds=4.0, hop_seconds=3.0)
STREAMS = {stream.name: stream for stream in (SEMANTIC, ACOUSTIC, MULAN, MELODY)}
