"""Processes that tests kill come from one server, which imports what they need once, whichever test starts it."""

import multiprocessing

multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["torch", "transformers", "latentknobs.training.train", "killed"]
)
