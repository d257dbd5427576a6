"""The round log: what a run records of itself, as Parquet tables with one part file per round."""
