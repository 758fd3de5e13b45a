"""Pusher: a version folder that appears whole, and only when every gate has blessed the model."""
