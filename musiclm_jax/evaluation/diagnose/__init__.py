"""Which of a bundle's models is at fault when the music is not what was asked (`diagnosis`)."""

from musiclm_jax.evaluation.diagnose.diagnosis import Clips, Diagnosis, diagnose
from musiclm_jax.evaluation.diagnose.finding import CHAIN, JUDGES, VERDICTS, Finding, first_fault

__all__ = ["CHAIN", "JUDGES", "VERDICTS", "Clips", "Diagnosis", "Finding", "diagnose", "first_fault"]
