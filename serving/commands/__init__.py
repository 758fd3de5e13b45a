"""The commands of `twotower` that are about serving, a file each. `pipeline/cli.py` finds them."""
