"""BaselineResolver: the last pushed model, found in the push destination itself."""
