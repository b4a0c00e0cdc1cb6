"""The exceptions that a user sees as a line instead of a traceback, and their exit codes."""


class UserError(Exception):
    """A mistake that the user can mend: `lrtrain` prints it as one line on stderr and exits with code 2.

    The message says what is wrong, where (file, key, value) and what to do, in one line without a full stop at its
    end. `LRTRAIN_DEBUG=1` shows the traceback too.
    """

    exit_code = 2

    on_all_ranks = False
    """Whether every process of the run raises it at the same place, so that they may still save together."""


class TemporaryError(UserError):
    """What the same command may get past when it is started again: storage that does not answer, a host that is gone.

    Exit code 75, EX_TEMPFAIL of sysexits.h: a scheduler restarts a job that ended so, and none that ended with 2.
    """

    exit_code = 75
