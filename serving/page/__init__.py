"""A page to try a model in the browser: one static file that asks TF Serving's REST interface and nothing else."""
