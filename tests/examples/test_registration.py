"""Names that are taken or invalid, and modules that are executed again: a user's ansatz, generator
and PEFT method.
"""

import importlib

import pytest
from peft import LoraConfig, mapping

from qpeft import methods
from qpeft.circuits import ansatz, register_ansatz
from qpeft.errors import ConfigError
from qpeft.generator_config import generator_config

REGISTERED = {  # what the module defines, and what is found by its name
    "own_ansatz": lambda own: (own.layers, ansatz._families["cz_ring"].__wrapped__),
    "own_generator": lambda own: (own.RingConfig, generator_config("ring")),
    "own_method": lambda own: (own.NolaConfig, mapping.PEFT_TYPE_TO_CONFIG_MAPPING["NOLA"]),
}


def of_type(own, name):
    return type(
        "Other", (own.NolaConfig,), {"peft_type": property(lambda _: name, lambda *_: None)}
    )


def register_method(own, **changes):
    fields = {"key": "other", "title": "other", "config": own.NolaConfig, "tuner": own.NolaModel}
    methods.register(methods.Method(**{**fields, **changes}))


REFUSED = {
    "own_ansatz": [
        lambda own, name=name: register_ansatz(name, own.angle_shape, lambda *_: [])
        for name in ("cz_ring", "ry_ladder", "", "a:b", 5)
    ],
    "own_generator": [
        lambda own, name=name: type("Other", (own.RingConfig,), {}, name=name)
        for name in ("qpa", "ring")
    ],
    "own_method": [
        *(lambda own, key=key: register_method(own, key=key) for key in ("", "a:b", "lora")),
        *(
            lambda own, name=name: register_method(own, config=of_type(own, name))
            for name in ("LORA", "QPEFT_QPA", "NOLA")
        ),
        lambda own: register_method(own, config=dict),
        lambda own: register_method(own, config=LoraConfig, tuner=int),
    ],
}


@pytest.mark.parametrize("name", REGISTERED)
def test_only_a_module_that_is_executed_again_replaces_a_registration(example, monkeypatch, name):
    own = example(name)
    monkeypatch.syspath_prepend(own.__file__.rpartition("/")[0])
    first = REGISTERED[name](own)[0]
    importlib.reload(own)
    defined, found = REGISTERED[name](own)

    assert first is not defined is found

    before = methods.keys()
    for register in REFUSED[name]:
        with pytest.raises(ConfigError):
            register(own)
    assert REGISTERED[name](own) == (defined, found)
    assert methods.keys() == before
