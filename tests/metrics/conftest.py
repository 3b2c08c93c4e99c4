from tiny_models import tiny_encoder  # noqa: F401
