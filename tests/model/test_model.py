"""The protocol's model holds in every configuration, and notices each rule that is taken out of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("dtq_model_run", Path(__file__).with_name("run.py"))
assert _spec and _spec.loader
model = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = model
_spec.loader.exec_module(model)

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(model.tools()), reason=f"needs {', '.join(model.tools())}"),
]


@pytest.mark.parametrize("name", model.CONFIGURATIONS)
def test_the_protocol_holds(name: str) -> None:
    result = model.check(name)
    assert result.broken is None, "\n".join(result.story)
    assert result.complete, "the state space was not exhausted"


@pytest.mark.parametrize("name", model.MUTATIONS)
def test_a_rule_taken_out_is_noticed(name: str) -> None:
    assert model.mutate(name).broken == model.MUTATIONS[name].property


def test_every_switch_of_the_model_is_a_mutation() -> None:
    assert {name.upper() for name in model.MUTATIONS} == model.switches()
