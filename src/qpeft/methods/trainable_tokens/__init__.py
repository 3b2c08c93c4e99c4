"""Trainable tokens of PEFT: a few rows of the input embedding are trained, and everything else is frozen."""

from qpeft.methods.method import Method

METHOD = Method(
    key="trainable_tokens",
    title="trainable tokens",
    config="qpeft.methods.trainable_tokens.config:TokensConfig",
    learning_rate=0.04,
    check="qpeft.methods.trainable_tokens.config:check_has_tokens",
    calibrate="qpeft.methods.trainable_tokens.config:choose_for",
)
