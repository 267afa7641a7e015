"""The service that talks to the model."""

import sys

if sys.version_info < (3, 11):
    sys.exit("chat: needs Python 3.11 or newer")
