"""From tables to examples: files (tables), cells (columns), tf.Examples (examples), point in time (histories)."""
