"""The service that owns the messages."""

import sys

if sys.version_info < (3, 11):
    sys.exit("persistence: needs Python 3.11 or newer")
