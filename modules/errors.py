"""The one exception for a person's mistake: it says what is wrong, where, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence


class UserError(Exception):
    """A mistake in a table, a configuration key or an argument.

    The message is one line that names the thing and the fix. The command line prints it without a traceback and exits
    with code 2.
    """


class UserErrors(UserError):
    """Several mistakes that one look has found: one line for all of them.

    Args:
        mistakes: What is wrong, each as a `UserError` says it.
        where: What all of them are about; begins the line.
        most: So many are named in the line, and how many more there are.
    """

    def __init__(self, mistakes: Sequence[str], where: str = "", most: int | None = None) -> None:
        self.mistakes = tuple(mistakes)
        named = mistakes[:most]
        more = len(mistakes) - len(named)
        super().__init__(where + "; ".join([*named, *([f"and {more} more"] if more else [])]))


class Mistakes:
    """Collects the mistakes of several checks, so that all are said at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Keeps the UserError of one check."""
        try:
            yield
        except UserErrors as errors:
            for mistake in errors.mistakes:
                self.add(mistake)
        except UserError as error:
            self.add(str(error))

    def add(self, mistake: str) -> None:
        """Keeps a mistake, unless another key of the configuration has led to the same one."""
        _, _, said = mistake.partition(": ")
        if all(said != other.partition(": ")[2] for other in self.found):
            self.found.append(mistake)

    def raise_found(self) -> None:
        """Raises `UserErrors` if there are any."""
        if self.found:
            raise UserErrors(self.found)
