"""A package that adds one of each kind to latentknobs: a knob, a policy, a learner, an engine and a reward."""
