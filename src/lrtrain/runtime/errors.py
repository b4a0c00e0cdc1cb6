"""The one exception a user sees as a line instead of a traceback."""


class UserError(Exception):
    """A mistake that the user can mend: `lrtrain` prints it as one line on stderr and exits with code 2.

    The message says what is wrong, where (file, key, value) and what to do, in one line without a full stop at its
    end. `LRTRAIN_DEBUG=1` shows the traceback too.
    """
