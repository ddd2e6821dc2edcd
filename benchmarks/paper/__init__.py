"""The experiments of arXiv 2411.09661 as recipes, beside every baseline that its reviewers requested.

Start with `python -m benchmarks.paper --help`.
"""
