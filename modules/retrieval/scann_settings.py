"""What ScaNN is trained with, for those who have it with TensorFlow and for those who have it without."""

from __future__ import annotations

# The value that ScaNN's authors recommend for inner products: errors along the vector cost more than across it.
_ANISOTROPIC_THRESHOLD = 0.2
# What ScaNN learns from. At 1M vectors and 2,000 partitions, 50 vectors a partition and 12 rounds take a third longer
# to build and searches look at as many members for the same recall; with 20 a partition they look at more.
_SAMPLE_PER_PARTITION = 32
_LEAST_SAMPLE = 20_000
_PARTITION_ROUNDS = 8
_CODE_SAMPLE = 20_000
_CODE_ROUNDS = 5


def default_partitions(size: int) -> int:
    """Number of leaves: the square root of the catalogue's size balances scoring the leaves and their members."""
    return max(1, round(size**0.5))


def sample_size(size: int, partitions: int) -> int:
    """How many of a catalogue's vectors so many partitions are learned from."""
    return min(size, max(_LEAST_SAMPLE, _SAMPLE_PER_PARTITION * partitions))


def tree_settings(size: int, partitions: int) -> dict[str, int]:
    """Arguments of ScaNN's `tree` for a catalogue: how many partitions, and what they are learned from."""
    sample = sample_size(size, partitions)
    return {
        "num_leaves": partitions,
        "num_leaves_to_search": 1,
        "training_sample_size": sample,
        "training_iterations": _PARTITION_ROUNDS,
        # A quarter of the average. ScaNN counts it in its training sample: more than the sample's partitions hold
        # leaves many of them empty and makes the others wide.
        "min_partition_size": max(1, sample // (4 * partitions)),
    }


def hashing_settings(dimensions_per_block: int) -> dict[str, float]:
    """Arguments of ScaNN's `score_ah`."""
    return {
        "dimensions_per_block": dimensions_per_block,
        "anisotropic_quantization_threshold": _ANISOTROPIC_THRESHOLD,
        "training_sample_size": _CODE_SAMPLE,
        "training_iterations": _CODE_ROUNDS,
    }
