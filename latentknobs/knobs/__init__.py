"""Knobs: the contract, grids, what a knob may read, the registry, and spaces of several knobs."""
