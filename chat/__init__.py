"""The service that talks to the model."""
