"""RunReport: a page a person judges a run by, written whether or not the gates let the model pass."""
