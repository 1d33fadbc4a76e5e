"""The one error a user's mistake raises."""


class UserError(Exception):
  """A mistake the user can mend; its text is one clear sentence that says how.

  The command line prints the sentence alone and exits with status 2; `--debug` shows the traceback.
  """
