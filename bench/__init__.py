"""Benchmarks and the baselines they compare with: ``python -m bench``."""
