"""Speed and memory of a training step, beside the plain TFRS loop."""
