"""Models, prompts and rewards that a config names."""
