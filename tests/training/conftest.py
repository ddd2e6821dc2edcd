"""Processes that tests kill come from one server, which imports what they need once, whichever test starts it."""

import multiprocessing

NEEDED = ["torch", "transformers", "latentknobs.training.train", "killed"]
multiprocessing.get_context("forkserver").set_forkserver_preload(NEEDED)
