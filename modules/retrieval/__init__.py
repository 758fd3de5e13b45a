"""Retrieval: index layers that find a query's best candidates by inner product, and the choice among them."""
