"""The Trainer in parts: what it reads, what an epoch draws, the fit, what validation chooses, what is exported."""
