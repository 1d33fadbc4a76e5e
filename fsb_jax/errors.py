"""What ends a command with a sentence instead of a traceback."""

import signal


class UserError(Exception):
  """A mistake the user can mend; its text is one clear sentence that says how.

  The command line prints the sentence alone and exits with status 2; `--debug` shows the traceback.
  """


class MissingDataError(UserError):
  """A published file that is not in the data directory."""


class Stopped(Exception):
  """A run that a signal asked to end, and that saved what it had.

  Attributes:
    signal: SIGTERM or SIGINT.
  """

  def __init__(self, number: int):
    super().__init__(f"stopped by {signal.Signals(number).name}")
    self.signal = number
