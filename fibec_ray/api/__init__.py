"""The Python interface: what `import fibec_ray` offers."""
