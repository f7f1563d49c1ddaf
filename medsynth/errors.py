"""The user's mistakes, named. Each message says what, where, which value, and the way out; none quotes a patient's data.

A program error of ours stays an ``assert`` or an ordinary exception, with its traceback.
"""


class MedsynthError(Exception):
    """Something the user can mend. The command line prints the message alone, without a traceback, and exits with 2."""

    exit_code = 2


class SettingsError(MedsynthError):
    """A setting that is misspelt, missing or out of its range."""


class UnreadableImage(MedsynthError):
    """A file or series that cannot be read as an image with a right geometry.

    ``code`` is a short reason for the table of rejected series, such as ``missing-slice``. The message itself never holds a header's value
    or a file's name: ``rejected.jsonl`` keeps it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self):
        # Exceptions cross process borders in prepare: without this only the message would.
        return type(self), (self.code, str(self))


class StageConflict(MedsynthError):
    """A stage's folder holds something made with other settings or inputs, or another process is writing it."""


class TrainingDiverged(MedsynthError):
    """A loss or a weight that is not finite."""


class Interrupted(MedsynthError):
    """A stage that was asked to stop by a signal, and saved its work: the same command goes on."""

    exit_code = 75  # EX_TEMPFAIL: a scheduler may try again


class Refused(MedsynthError):
    """The release is refused: the evidence does not allow it."""

    exit_code = 3
