"""InteractionExampleGen: tables of interactions, items and users become examples, joined, split, with histories."""
