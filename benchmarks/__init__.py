"""What is measured, against whom. Run as `python -m benchmarks.NAME`; see benchmarks/README.md."""
