"""Seconds, memory and recall of the whole pipeline as the data grows."""
