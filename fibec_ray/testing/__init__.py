"""Checks for parts of your own: `python -m fibec_ray.testing my_rules.py`. They need neither pytest nor a checkout."""
