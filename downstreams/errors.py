"""The error of heads and metrics. This module imports nothing, so that metrics need no torch."""


class HeadError(ValueError):
    """Labels, options or features that the user must change; the message is one sentence for the user."""
