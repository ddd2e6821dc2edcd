"""The experiments of arXiv 2411.09661 as recipes, beside every baseline that its reviewers asked for.

Start with `python -m benchmarks.paper --help`.
"""
