"""The service that owns the messages."""
