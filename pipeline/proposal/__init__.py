"""`twotower init`: a configuration for tables that nobody has described, each choice with its reason."""
