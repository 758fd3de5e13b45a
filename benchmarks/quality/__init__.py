"""Recommendation quality beside peers: protocols, a judge that alone holds the test part, systems that never see it."""
