"""The round log: what a run records of itself, as three Parquet tables with one part file per round."""
