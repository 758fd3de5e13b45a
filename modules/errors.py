"""The one exception for a person's mistake: it says what is wrong, where, and what to do."""


class UserError(Exception):
    """A mistake in a table, a configuration key or an argument.

    The message is one line that names the thing and the fix. The command line prints it without a traceback and exits
    with code 2.
    """
