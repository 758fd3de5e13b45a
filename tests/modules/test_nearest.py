"""What somebody has meant who wrote another name."""

from modules.nearest import meant, nearest


def test_the_most_alike_name_and_none_that_is_not():
    known = ["epochs", "epoch_steps", "batch_size", "Seed"]
    assert nearest("epoch", known) == "epochs"
    assert nearest("batchsize", known) == "batch_size"
    assert nearest("SEED", known) == "Seed"
    assert nearest("colour", known) == nearest("", known) == nearest("x", []) == ""


def test_a_number_is_not_guessed():
    assert nearest("1234", ["1235", "1243"]) == ""
    assert nearest("B1234", ["B1235"]) == "B1235"


def test_among_too_many_names_nobody_looks():
    assert nearest("item-1", [f"item-{n}" for n in range(100_000)]) == ""


def test_the_end_of_a_message():
    assert meant("epoch", ["epochs"], "remove it") == "; did you mean 'epochs'?"
    assert meant("colour", ["epochs"], "remove it") == "; remove it"
    assert meant("colour", ["epochs"]) == ""
