"""`python -m fibec_ray` is the `fibec-ray` command."""

from fibec_ray.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
