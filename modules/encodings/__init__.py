"""Encodings: one file for each way in which a column becomes what a tower reads, and the YAML's section `features`.

To add one, write one class that derives from `base.Encoding` in a file of its own here. Nothing else names it:
`features.py` finds it, and Transform, the towers, the signatures, the schema check and the content model ask it.
"""
