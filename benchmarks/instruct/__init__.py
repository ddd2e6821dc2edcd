"""What adapting is worth on a small instruct model: `python -m benchmarks.instruct --help`."""
