"""Counts the traffic of a compiled program in the text of XLA's optimised HLO: bytes of HBM and of collectives.

XLA's own `cost_analysis` counts the body of a loop once; here it counts as often as the loop runs it. Arrays in on-chip
memory (memory spaces other than 0, "S(1)" in a layout) cause no traffic. A fusion moves its inputs and outputs, not its
intermediate results; if it slices a stacked array, it moves only the slice.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8,
}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# They move nothing themselves, or are counted elsewhere: in the computations they call, or at the matching start.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "async-start", "async-update",
}  # fmt: skip
_SLICES = ("slice", "dynamic-slice", "gather")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO."""

    name: str
    shape: str  # shape of the result; tuples are in parentheses
    opcode: str
    operands: tuple[str, ...]  # names
    arguments: str  # the text of the operands
    attributes: str  # the text after the operands
    is_root: bool


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Traffic of one device in one run of the program, in bytes."""

    hbm: float  # read and written
    collectives: dict[str, float]  # sent over the interconnect by kind of collective, assuming rings
    collective_counts: dict[str, int]  # number of executions by kind
    slices: float = 0.0  # sent to the network between slices


def traffic(text: str) -> Traffic:
    """Counts a program's traffic.

    Args:
      text: `compiled.as_text()` of a jitted function.

    Raises:
      ValueError: if the text holds no program, or a loop's number of iterations cannot be determined.
    """
    computations, entry = parse(text)
    hbm, slices, sent, counts = 0.0, 0.0, defaultdict[str, float](float), Counter[str]()
    for name, times, fused in executions(computations, entry):
        computation = computations[name]
        for instruction in computation.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                sent[kind] += times * wire_bytes(instruction)
                counts[kind] += times
            if instruction.opcode == "send" and "_xla_megascale_transfer_type" in instruction.attributes:
                slices += times * array_bytes(instruction.shape, in_hbm_only=False)[0]
            if not fused:
                hbm += times * moved_bytes(instruction, computation, computations)
    return Traffic(hbm, dict(sent), dict(counts), slices)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations by name, and the name of the entry computation.

    Raises:
      ValueError: if there is no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and (found := _NAME.search(line)):
            current = computations[found.group(1)] = {}
            entry = found.group(1) if line.startswith("ENTRY") else entry
        elif line.startswith("  ") and " = " in line:
            instruction = _instruction(line.strip())
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
    return computations, entry


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].strip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    name = left.removeprefix("ROOT ").removeprefix("%")
    operands = tuple(_NAME.findall(arguments))
    is_root = left.startswith("ROOT ")
    return Instruction(name, shape, rest[:opening], operands, arguments, rest[closing + 1 :], is_root)


def _closing(text: str, opening: int) -> int:
    """Returns the position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def executions(computations: dict[str, Computation], entry: str) -> Iterator[tuple[str, int, bool]]:
    """Yields (name, number of runs, whether it is part of a fusion) of the entry and all computations below it."""
    todo = [(entry, 1, False)]
    while todo:
        name, times, fused = todo.pop()
        yield name, times, fused
        for instruction in computations[name].values():
            rounds = _rounds(instruction, computations) if instruction.opcode == "while" else 1
            inside = fused or instruction.opcode not in ("while", "conditional", "call")
            for called in _called(instruction):
                todo.append((called, times * rounds, inside))


def _called(instruction: Instruction) -> list[str]:
    """Returns the computations that an instruction runs, without the scalar functions of reductions."""
    names = re.findall(r"(?:calls|body|true_computation|false_computation)=%([\w.\-]+)", instruction.attributes)
    if branches := re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes):
        names += _NAME.findall(branches.group(1))
    if instruction.opcode == "call":
        names += re.findall(r"to_apply=%([\w.\-]+)", instruction.attributes)
    return names


def _rounds(loop: Instruction, computations: dict[str, Computation]) -> int:
    """Returns how often a loop runs its body."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known.group(1))
    found = re.search(r"condition=%([\w.\-]+)", loop.attributes)
    condition = computations[found.group(1)] if found else {}
    limits = {int(i.arguments) for i in condition.values() if i.opcode == "constant" and i.shape.startswith("s32[]")}
    if len(limits) != 1:
        raise ValueError(f"cannot determine how often loop {loop.name} runs: its condition has the constants {limits}")
    return limits.pop()


def array_bytes(shape: str, in_hbm_only: bool = True) -> list[float]:
    """Returns the bytes of each array of a shape; arrays in on-chip memory count 0 with `in_hbm_only`."""
    sizes = []
    for dtype, dimensions, layout in _ARRAY.findall(shape):
        on_chip = in_hbm_only and re.search(r"S\([1-9]", layout)
        count = math.prod(int(size) for size in dimensions.split(",") if size)
        sizes.append(0.0 if on_chip or dtype not in BYTES else BYTES[dtype] * count)
    return sizes


def moved_bytes(instruction: Instruction, computation: Computation, computations: dict[str, Computation]) -> float:
    """Counts the bytes of HBM that an instruction outside of fusions reads and writes."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    written = array_bytes(instruction.shape)
    if opcode == "slice-start":  # a tuple of the operand, the result and flags
        result = array_bytes(instruction.shape, in_hbm_only=False)[1]
        return min(result, sum(array_bytes(computation[instruction.operands[0]].shape))) + written[1]
    if opcode.endswith("-start"):  # a tuple of results, operands and flags
        written = written[:1]
    read = [sum(array_bytes(computation[name].shape)) if name in computation else 0.0 for name in instruction.operands]
    if opcode == "fusion" and (called := _called(instruction)):
        return _of_fusion(called[0], computations, read, written)
    if opcode in _SLICES:
        return 2 * sum(written)
    if opcode == "send":
        return sum(read)
    if opcode == "dynamic-update-slice":
        return 2 * read[1]
    return sum(written) + sum(read)


def _of_fusion(name: str, computations: dict[str, Computation], read: list[float], written: list[float]) -> float:
    """Counts the bytes of a fusion; operands that are only sliced and results that are only updated count the slice."""
    fused = computations[name]
    total = sum(min(size, _read_of_parameter(name, index, computations)) for index, size in enumerate(read))
    root = next(i for i in fused.values() if i.is_root)
    results = [fused[operand] for operand in root.operands] if root.opcode == "tuple" else [root]
    for result, size in zip(results, written, strict=False):
        while result.opcode in ("bitcast", "copy") and result.operands[0] in fused:
            result = fused[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            size = min(size, sum(array_bytes(fused[result.operands[1]].shape, in_hbm_only=False)))
        total += size
    return total


def _read_of_parameter(name: str, index: int, computations: dict[str, Computation]) -> float:
    """Counts the bytes that a fused computation reads from a parameter; infinite if an instruction reads all of it."""
    fused = computations[name]
    parameter = next((i for i in fused.values() if i.opcode == "parameter" and i.arguments == str(index)), None)
    return 0.0 if parameter is None else _read_of_value(parameter.name, fused, computations)


def _read_of_value(name: str, fused: Computation, computations: dict[str, Computation]) -> float:
    total = 0.0
    for user in (i for i in fused.values() if name in i.operands):
        if user.opcode in _SLICES and user.operands[0] == name:
            total += sum(array_bytes(user.shape, in_hbm_only=False))
        elif user.opcode == "bitcast":
            total += _read_of_value(user.name, fused, computations)
        elif user.opcode == "fusion":
            for index, operand in enumerate(user.operands):
                if operand == name:
                    total += _read_of_parameter(_called(user)[0], index, computations)
        elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name):
            return math.inf
    return total


def wire_bytes(instruction: Instruction) -> float:
    """Counts the bytes that a device sends in a collective, assuming a ring."""
    kind = instruction.opcode.removesuffix("-start")
    arrays = array_bytes(instruction.shape, in_hbm_only=False)
    if instruction.opcode.endswith("-start") and kind != "all-reduce":  # (operands, results)
        arrays = arrays[len(arrays) // 2 :] if len(arrays) % 2 == 0 else arrays[1:2]
    size, members = sum(arrays), group_size(instruction.attributes)
    if kind == "collective-permute":
        return size
    share = (members - 1) / members
    return {"all-reduce": 2 * share, "reduce-scatter": members - 1}.get(kind, share) * size


def group_size(attributes: str) -> int:
    """Returns the number of devices per group of a collective, from any of HLO's notations.

    Raises:
      ValueError: if the notation is unknown.
    """
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(found.group(2))
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found.group(1).split(","))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found.group(1))}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found.group(2))
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if "source_target_pairs" in attributes:
        return 2
    raise ValueError(f"cannot determine the groups of a collective: {attributes[:120]!r}")
