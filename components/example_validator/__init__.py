"""ExampleValidator: a run over data that the schema does not allow stops here, in words."""
