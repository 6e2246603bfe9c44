"""What is loaded when: the library's names lead to as little as they need."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import synthgrad as sg
from synthgrad import engines, rules
from synthgrad.core import InputRule, Rule

#: What takes long to load and nobody has asked for: compilers, schedules for them, the laboratory.
SLOW = ("torch._dynamo", "torch._inductor", "torch.distributed.pipelining", "sympy", "synthgrad.lab")
#: Rooms of other engines.
OTHERS = ("stages", "layer_parallel", "clocked")


def loaded_by(code: str) -> set[str]:
    """Return the modules that a program loads beyond those of PyTorch itself."""
    program = (
        f"import sys, torch; before = set(sys.modules); {code}; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def of(modules: set[str], names: tuple[str, ...]) -> list[str]:
    return sorted(m for m in modules if any(m == name or m.startswith(name + ".") for name in names))


def test_an_engine_in_one_process_loads_no_compiler_and_no_other_engine() -> None:
    loaded = loaded_by(
        "import synthgrad as sg; sg.engines.InProcess, sg.engines.Locked, sg.engines.Recurrent"
    )
    assert "synthgrad.engines.in_process" in loaded
    assert not of(loaded, (*SLOW, *(f"synthgrad.engines.{name}" for name in OTHERS)))


def test_no_engine_loads_a_compiler() -> None:
    loaded = loaded_by("import synthgrad as sg; [getattr(sg.engines, name) for name in sg.engines.__all__]")
    assert "synthgrad.engines.stages.engine" in loaded
    assert not of(loaded, SLOW)


def test_rules_do_not_load_engines() -> None:
    loaded = loaded_by("import synthgrad as sg; sg.SyntheticGradient, sg.decouple, sg.Monitor")
    assert not of(loaded, ("synthgrad.engines", "synthgrad.testing", *SLOW))


@pytest.mark.parametrize("module", [sg, engines])
def test_names_are_found_and_listed(module: object) -> None:
    names = module.__all__  # type: ignore[attr-defined]
    assert set(names) <= set(dir(module))
    assert all(getattr(module, name) is not None for name in names)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_rooms_of_engines_are_found_by_name() -> None:
    assert engines.stages.join is not None
    assert engines.layer_parallel.LayerParallel is engines.LayerParallel


def test_all_rules_are_at_the_top_level() -> None:
    for name in rules.__all__:
        value = getattr(rules, name)
        if inspect.isclass(value) and issubclass(value, Rule | InputRule):
            assert getattr(sg, name) is value
            assert name in sg.__all__
