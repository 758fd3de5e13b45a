"""What settings of the training come to for a catalogue and an epoch."""

from __future__ import annotations

import pytest

from modules.settings import Training


def test_a_long_epoch_decays_as_much_as_one_of_so_many_steps():
    training = Training(weight_decay=5.0, decay_steps=64)
    assert [training.weight_decay_of(steps) for steps in (1, 34, 64)] == [5.0, 5.0, 5.0]
    assert training.weight_decay_of(640) * 640 == pytest.approx(5.0 * 64)


@pytest.mark.parametrize(
    ("negatives", "items", "expected"),
    [
        ("auto", 100, "catalogue"),
        ("auto", 101, "sampled"),
        ("catalogue", 101, "catalogue"),
        ("in_batch", 1, "in_batch"),
    ],
)
def test_auto_samples_negatives_above_the_limit(negatives, items, expected):
    assert Training(negatives=negatives, catalogue_limit=100).negatives_of(items) == expected


@pytest.mark.parametrize(("steps", "epochs"), [(35.0, 8), (0.3, 8), (400.0, 4), (500.0, 3), (90_000.0, 3)])
def test_long_epochs_have_less_patience(steps: float, epochs: int):
    """8 epochs, or 1,500 steps to the end of an epoch, which has 500 at most."""
    assert Training().patience_of(steps) == epochs


@pytest.mark.parametrize(("epochs", "steps", "anew"), [(18, 35.0, True), (8, 90_000.0, True), (9, 500.0, False)])
def test_a_refit_of_more_than_4000_steps_goes_on(epochs: int, steps: float, anew: bool):
    assert Training().refits_anew(epochs, steps) == anew


def test_a_transformer_has_its_own_decay_and_samples_sooner():
    training = Training(weight_decay=5.0, encoder_weight_decay=0.5, decay_steps=64)
    assert training.weight_decay_of(128, all_places=True) == 0.25
    assert [training.negatives_of(items, all_places=True) for items in (5_000, 5_001)] == ["catalogue", "sampled"]
    assert Training(catalogue_limit=10).negatives_of(11, all_places=True) == "sampled"
