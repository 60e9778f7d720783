"""Token ids of a stage: each level of each stream has its own range."""

import dataclasses

from musiclm_jax.data.tokens import TokenStream

ROWS_MULTIPLE = 128  # embedding tables are padded to a multiple of it, to shard evenly and fill TPU tiles


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Ids of a stage: a range for each level of each stream, then one special id, then the table's unused rows."""

    streams: tuple[TokenStream, ...]

    def offset(self, stream: str, level: int = 0) -> int:
        """Returns the first id of a level of a stream.

        Raises:
          ValueError: if the vocabulary lacks that stream or level.
        """
        first = 0
        for own in self.streams:
            if own.name == stream:
                if not 0 <= level < own.quantizers:
                    raise ValueError(
                        f"level {level} of stream {stream!r} does not exist, expected 0..{own.quantizers - 1}"
                    )
                return first + level * own.codebook_size
            first += own.quantizers * own.codebook_size
        raise ValueError(f"stream {stream!r} is not in the vocabulary, which has {[own.name for own in self.streams]}")

    @property
    def bos(self) -> int:
        """The special id: it begins a sequence and replaces conditioning that is dropped or padded."""
        return sum(own.quantizers * own.codebook_size for own in self.streams)

    @property
    def rows(self) -> int:
        """Number of rows of the embedding table."""
        return -(-(self.bos + 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE
