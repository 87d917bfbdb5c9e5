"""What goes wrong and can be acted on: one sentence, one exit code.

Every message says what was found, where (file:line, tensor name, config key), what was
expected and what to change. A verb prints it without a traceback (`command.run`).
"""

import errno


class JaxsftError(Exception):
  """The run cannot go on; the message is a sentence for the user."""

  exit_code = 1


class UsageError(JaxsftError):
  """The command line or the config is wrong; nothing was started."""

  exit_code = 2


class Preempted(JaxsftError):
  """The process was asked to stop (SIGTERM) and saved its state first."""

  exit_code = 3


def is_full(error: Exception) -> bool:
  """Whether an error says that there is no room: on the disk, in a quota, or in one file."""
  return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
