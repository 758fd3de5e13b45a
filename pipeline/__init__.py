"""The pipeline itself: its configuration, its graph, the local runner, the command line and the data sets."""
