"""Finds which of a bundle's models is at fault when the music does not match the request (`diagnosis`)."""

from musiclm_jax.evaluation.diagnose.diagnosis import Clips, Diagnosis, diagnose
from musiclm_jax.evaluation.diagnose.finding import CHAIN, JUDGES, VERDICTS, Finding, first_fault

__all__ = ["CHAIN", "JUDGES", "VERDICTS", "Clips", "Diagnosis", "Finding", "diagnose", "first_fault"]
