"""Reduces sound fonts (SF2, and SF3 with Vorbis samples) to some of their presets, to make them small and fast to load.

Source: SoundFont technical specification 2.04, section 7. SF3 is the same, except that a sample's start and end count
bytes of its Ogg stream.
"""

import dataclasses
import struct
from collections.abc import Collection, Sequence

import numpy as np

# The records in the list "pdta"; the last record of each kind only marks the end of the one before.
_PRESET = np.dtype([("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("rest", "<u4", 3)])
_INSTRUMENT = np.dtype([("name", "S20"), ("bag", "<u2")])
_BAG = np.dtype([("generator", "<u2"), ("modulator", "<u2")])
_GENERATOR = np.dtype([("kind", "<u2"), ("amount", "<u2")])
_MODULATOR = np.dtype("V10")
_SAMPLE = np.dtype(
    [("name", "S20"), ("start", "<u4"), ("end", "<u4"), ("loop", "<u4", 2), ("rate", "<u4"), ("pitch", "V2"),
     ("link", "<u2"), ("type", "<u2")]
)  # fmt: skip
_TYPES = {
    "phdr": _PRESET, "pbag": _BAG, "pmod": _MODULATOR, "pgen": _GENERATOR,
    "inst": _INSTRUMENT, "ibag": _BAG, "imod": _MODULATOR, "igen": _GENERATOR, "shdr": _SAMPLE,
}  # fmt: skip
_USES_INSTRUMENT, _USES_SAMPLE = 41, 53  # kinds of generators whose amount is the index of another record
_VORBIS = 0x10  # bit in a sample's type
_MONO = 1
_PADDING = 46  # silence after each sample, in samples, as required by the specification


@dataclasses.dataclass
class _Zones:
    """The zones of presets or of instruments: their bags, generators and modulators."""

    bags: np.ndarray
    generators: np.ndarray
    modulators: np.ndarray

    def generators_of(self, first: int, last: int) -> np.ndarray:
        """Returns the generators of the bags from `first` up to, but not including, `last`."""
        return self.generators[self.bags["generator"][first] : self.bags["generator"][last]]


def _chunks(data: memoryview) -> list[tuple[str, memoryview]]:
    """Returns names and contents of the consecutive RIFF chunks in `data`."""
    found, position = [], 0
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        found.append((name.decode("latin-1"), data[position + 8 : position + 8 + size]))
        position += 8 + size
        # MuseScore's fonts omit the padding byte of odd chunks; no chunk name begins with a zero byte.
        position += size % 2 if data[position : position + 1] == b"\0" else 0
    return found


def _chunk(name: str, content: bytes) -> bytes:
    content += b"\0" * (len(content) % 2)  # included in the size, since not every player skips a padding byte
    return struct.pack("<4sI", name.encode("latin-1"), len(content)) + content


def _used(zones: _Zones, owners: np.ndarray, numbers: Sequence[int], kind: int) -> list[int]:
    """Returns the indices of the instruments or samples that the zones of the given owners use."""
    found: set[int] = set()
    for number in numbers:
        generators = zones.generators_of(owners["bag"][number], owners["bag"][number + 1])
        found |= set(generators["amount"][generators["kind"] == kind].tolist())
    return sorted(found)


def _cut_zones(
    zones: _Zones, owners: np.ndarray, numbers: Sequence[int], kind: int, kept: Sequence[int]
) -> tuple[np.ndarray, _Zones]:
    """Returns the given owners and their zones; references to the records in `kept` are renumbered."""
    renumbered = {old: new for new, old in enumerate(kept)}
    cut = owners[[*numbers, len(owners) - 1]].copy()
    bags: list[tuple[int, int]] = []
    generators, modulators = [zones.generators[:0]], [zones.modulators[:0]]
    for place, number in enumerate(numbers):
        cut["bag"][place] = len(bags)
        for bag in range(owners["bag"][number], owners["bag"][number + 1]):
            bags.append((sum(map(len, generators)), sum(map(len, modulators))))
            own = zones.generators_of(bag, bag + 1).copy()
            uses = own["kind"] == kind
            own["amount"][uses] = [renumbered[old] for old in own["amount"][uses].tolist()]
            generators.append(own)
            modulators.append(zones.modulators[zones.bags["modulator"][bag] : zones.bags["modulator"][bag + 1]])
    cut["bag"][-1] = len(bags)
    bags.append((sum(map(len, generators)), sum(map(len, modulators))))
    return cut, _Zones(
        np.array(bags, _BAG),
        np.concatenate([*generators, zones.generators[-1:]]),
        np.concatenate([*modulators, zones.modulators[-1:]]),
    )


def _cut_samples(samples: np.ndarray, sound: memoryview, kept: Sequence[int]) -> tuple[np.ndarray, bytes]:
    """Returns headers and audio data of the kept samples."""
    cut, parts, position = samples[[*kept, len(samples) - 1]].copy(), [], 0
    for sample in cut[:-1]:
        vorbis = bool(sample["type"] & _VORBIS)
        start, end = int(sample["start"]), int(sample["end"])
        if vorbis:  # loop points are already relative to the sample's beginning
            part = bytes(sound[start:end])
            begin, length = position, end - start
        else:
            part = bytes(sound[2 * start : 2 * end]) + bytes(2 * _PADDING)
            part += bytes(-position % 2)
            begin, length = position // 2, end - start
            sample["loop"] = sample["loop"].astype(np.int64) + begin - start
        sample["start"], sample["end"] = begin, begin + length
        # Drop the link between left and right samples: players treat each zone separately and do not need it.
        sample["link"], sample["type"] = 0, _MONO | (_VORBIS if vorbis else 0)
        parts.append(part)
        position += len(part)
    return cut, b"".join(parts)


def cut(data: bytes, presets: Collection[tuple[int, int]]) -> bytes:
    """Reduces a sound font to some presets, and the instruments and samples that they use.

    Args:
      data: content of an SF2 or SF3 file.
      presets: (bank, program) of each preset to keep.

    Returns:
      Content of the reduced file.

    Raises:
      ValueError: if the font lacks one of the presets, or is not a sound font.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
        raise ValueError("not a sound font: expected a RIFF file of form sfbk")
    lists = {bytes(content[:4]).decode(): content[4:] for _, content in _chunks(memoryview(data)[12:])}
    tables = {name: np.frombuffer(content, _TYPES[name]) for name, content in _chunks(lists["pdta"])}
    headers, instruments = tables["phdr"], tables["inst"]
    preset_zones = _Zones(tables["pbag"], tables["pgen"], tables["pmod"])
    instrument_zones = _Zones(tables["ibag"], tables["igen"], tables["imod"])
    places = {(int(row["bank"]), int(row["program"])): number for number, row in enumerate(headers[:-1])}
    lacking = sorted(set(presets) - set(places))
    if lacking:
        raise ValueError(f"the sound font lacks the presets {lacking} (bank, program)")
    kept_presets = sorted(places[preset] for preset in set(presets))
    kept_instruments = _used(preset_zones, headers, kept_presets, _USES_INSTRUMENT)
    kept_samples = _used(instrument_zones, instruments, kept_instruments, _USES_SAMPLE)
    headers, preset_zones = _cut_zones(preset_zones, headers, kept_presets, _USES_INSTRUMENT, kept_instruments)
    instruments, instrument_zones = _cut_zones(
        instrument_zones, instruments, kept_instruments, _USES_SAMPLE, kept_samples
    )
    samples, sound = _cut_samples(tables["shdr"], dict(_chunks(lists["sdta"]))["smpl"], kept_samples)
    tables = {
        "phdr": headers, "pbag": preset_zones.bags, "pmod": preset_zones.modulators, "pgen": preset_zones.generators,
        "inst": instruments, "ibag": instrument_zones.bags, "imod": instrument_zones.modulators,
        "igen": instrument_zones.generators, "shdr": samples,
    }  # fmt: skip
    body = b"sfbk" + _chunk("LIST", b"INFO" + bytes(lists["INFO"])) + _chunk("LIST", b"sdta" + _chunk("smpl", sound))
    body += _chunk("LIST", b"pdta" + b"".join(_chunk(name, tables[name].tobytes()) for name in _TYPES))
    return _chunk("RIFF", body)
