"""The conformance suite: named checks that every knob must pass, shipped ones included. Public face: `latentknobs.testing`."""

from latentknobs.conformance.runner import CHECKS, ConformanceError, Outcome, check_knob, report, run_checks

__all__ = ["CHECKS", "ConformanceError", "Outcome", "check_knob", "report", "run_checks"]
