"""Evaluator: TFMA on the servable, against floors, the most popular items and the pushed model."""
