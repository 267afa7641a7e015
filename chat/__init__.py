"""The service that talks to the model."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # says it in a line, where the code itself would not even load
    sys.exit("chat: needs Python 3.11 or newer")
