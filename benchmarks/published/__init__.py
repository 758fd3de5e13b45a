"""Our rows beside the tables of papers, on their data and under their protocol."""
