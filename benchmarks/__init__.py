"""Benchmarks: ``python -m benchmarks.NAME [--json] [--quick]``. What they found is in ``README.md``."""
