"""Speed of the index layers beside their peers, at equal recall."""
