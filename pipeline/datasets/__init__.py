"""Data sets that `twotower data` can fetch: each module fetches one and lays out its tables."""
