"""What a GPU does, in one command: ``python -m benchmarks.gpu``."""
