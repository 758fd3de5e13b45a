"""The second stage after the retrieval: a ranking model on the hand-off's rows, and the rules that come last."""
