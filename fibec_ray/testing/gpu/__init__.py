"""`python -m fibec_ray.testing.gpu`: checks the engine on this machine's GPU. Needs only the installed package.

Each step runs in a process of its own with a time limit. Results are written after every step, so a crash, a hang or a
lost machine costs one step.
"""
