"""The commands of `twotower` that are about Kubeflow, a file each. `pipeline/cli.py` finds them."""
