"""The pipeline's custom TFX components, one folder each: component.py (spec and constructor) and executor.py."""
