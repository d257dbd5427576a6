"""The workload without our engine. Run in environments of their own, so these files import nothing else of ours."""
