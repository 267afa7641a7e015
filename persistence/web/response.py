"""A whole response of JSON text."""

from typing import Any

import flask
from werkzeug.datastructures import Headers


class JsonResponse(flask.Response):
    """A response whose text and headers are as they are to be sent; werkzeug would go over its headers once more."""

    default_mimetype = "application/json"

    def get_wsgi_headers(self, environ: Any) -> Headers:
        """Give the headers as they are."""
        return self.headers
