"""Findings of a diagnosis, and the choice of the part at fault."""

import dataclasses
from collections.abc import Sequence

from musiclm_jax.evaluation.metrics import Estimate

# In order of dependency: a part cannot be better than the parts that it builds on.
CHAIN = ("soundstream", "w2v_bert", "mulan", "token records", "semantic", "coarse", "fine")
JUDGES = "judges"  # the judges themselves, measured on clips that no part generated
VERDICTS = ("ok", "weak", "broken")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One measurement of one part.

    Attributes:
      part: one of `CHAIN`, or `JUDGES`.
      name: the measured quantity and its unit.
      value: the figure, with a 95 % interval if it has one.
      verdict: one of `VERDICTS`, or "" for a figure that only serves as a reference.
      bounds: the bounds between the verdicts.
      note: reference values.
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
          ValueError: if it is unknown.
        """
        if self.verdict not in ("", *VERDICTS):
            raise ValueError(f"verdict is {self.verdict!r}, expected '' or one of {', '.join(VERDICTS)}")


def grade(broken: bool, weak: bool) -> str:
    """Returns "broken", "weak" or "ok"; `broken` takes precedence."""
    return "broken" if broken else "weak" if weak else "ok"


def first_fault(findings: Sequence[Finding]) -> Finding | None:
    """Returns the first broken finding along `CHAIN`, else the first weak one, else None."""
    for verdict in ("broken", "weak"):
        for part in CHAIN:
            for finding in findings:
                if (finding.part, finding.verdict) == (part, verdict):
                    return finding
    return None
