"""Benchmarks that anyone can run: `python -m fibec_ray.bench.NAME`; their results are in docs/."""
