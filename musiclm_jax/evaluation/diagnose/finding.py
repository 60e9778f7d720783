"""Lines of a diagnosis, and which part of the chain is at fault."""

import dataclasses
from collections.abc import Sequence

from musiclm_jax.evaluation.metrics import Estimate

# From the sound to the music: what comes later cannot be better than what it is made of.
CHAIN = ("soundstream", "w2v_bert", "mulan", "token records", "semantic", "coarse", "fine")
JUDGES = "judges"  # what they hear in clips that no part made
VERDICTS = ("ok", "weak", "broken")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One measurement of one part.

    Attributes:
      part: one of `CHAIN`, or `JUDGES`.
      name: what was measured, with its unit.
      value: the figure, with its 95 % interval where it has one.
      verdict: one of `VERDICTS`, or "" for a figure that stands there to compare others with.
      bounds: what separates the verdicts.
      note: figures to set beside it.
      advice: what to do if the verdict is not "ok".
    """

    part: str
    name: str
    value: Estimate | float
    verdict: str = ""
    bounds: str = ""
    note: str = ""
    advice: str = ""

    def __post_init__(self) -> None:
        """Checks the verdict.

        Raises:
          ValueError: if it is none.
        """
        if self.verdict not in ("", *VERDICTS):
            raise ValueError(f"verdict is {self.verdict!r}, expected '' or one of {', '.join(VERDICTS)}")


def grade(broken: bool, weak: bool) -> str:
    """The verdict of two conditions, the worse one first."""
    return "broken" if broken else "weak" if weak else "ok"


def first_fault(findings: Sequence[Finding]) -> Finding | None:
    """The first broken finding along `CHAIN`; without one the first weak one; None if all is well."""
    for verdict in ("broken", "weak"):
        for part in CHAIN:
            for finding in findings:
                if (finding.part, finding.verdict) == (part, verdict):
                    return finding
    return None
