"""The commands of `twotower`, a file each: a file's name is its command's. `pipeline/cli.py` finds them."""
