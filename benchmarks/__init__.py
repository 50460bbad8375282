"""Frame throughput of all paths through LiberTEM, in one run: ``python -m benchmarks``."""
