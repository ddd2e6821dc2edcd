"""Continuous values of knobs, learned end to end through differentiable likelihoods (AutoDeco, arXiv 2510.26697)."""
