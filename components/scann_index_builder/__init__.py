"""ScannIndexBuilder: the embedded catalogue, its tuned index, and the servable around it."""
