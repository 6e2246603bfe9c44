"""``synthgrad plan``: networks with and without batches, files in and out, and what is refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from synthgrad.lab.cli import planning
from synthgrad.lab.cli.plan_command import CODECS, RULES, SCHEDULES
from synthgrad.lab.report.plan_page import PlanPage
from synthgrad.lab.training.methods import METHODS
from synthgrad.planner import StageCost
from synthgrad.planner.menu import KINDS
from synthgrad.planner.programs import CODECS as ALL_CODECS
from synthgrad.planner.table import CostTable, ModuleCost
from tests.lab.cli.helpers import call, write_module

LINK = ("--link", "rtt_ms=5,mbit_s=1000")
#: What is planned in most tests: little, so that they take little time.
FEW = ("--stages", "2", *LINK, "--schedules", "gpipe,stages", "--microbatches", "2")
NETWORKS = """
import torch
from torch import nn

def net(features=3):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, features))

def alone(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))
def pair(): return net(), torch.randn(16, 4)
def labelled(): return net(), torch.randn(16, 4), torch.randint(3, (16,))
def numbers(): return net(), torch.randn(16, 4), torch.randn(16, 3)
def whole(): return net(), torch.randn(16, 4), torch.randn(16, 3), nn.L1Loss()
def images():
    from synthgrad.lab.tasks import convolutional
    return convolutional((3, 8, 8), 3, 3, 4), torch.randn(8, 3, 8, 8), torch.randint(3, (8,))
def tokens():
    from synthgrad.lab.tasks.gpt import gpt
    text = torch.randint(20, (4, 9))
    return gpt(20, width=16, blocks=2, heads=2, context=8), text[:, :-1], text[:, 1:]
def three(): return 3
def five(): return (net(), 1, 2, 3, 4)
def no_network(): return 3, torch.randn(16, 4)
def breaks(): raise RuntimeError("one\\ntwo")
def too_wide(): return net(), torch.randn(16, 5)
def uncut(): return nn.Linear(4, 3), torch.randn(16, 4), torch.randint(3, (16,))
def no_criterion(): return net(), torch.randn(16, 4), torch.randn(16, 3), "mse"
def short(): return net(), torch.randn(16, 4), torch.randint(3, (9,))
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of networks in the working directory."""
    yield write_module("planned_networks", NETWORKS, tmp_path, monkeypatch)
    sys.modules.pop("planned_networks", None)


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    """A table of six layers, of 3 ms each."""
    layer = StageCost(
        0.001,
        0.002,
        output_bytes=4096.0,
        credit_s=1e-4,
        observe_s=2e-4,
        held_bytes=8192.0,
        parameter_bytes=4096.0,
    )
    CostTable(tuple(ModuleCost(f"layer{k}", layer) for k in range(6)), 64, "six").write(
        tmp_path / "costs.json"
    )
    return tmp_path / "costs.json"


def words(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


# -- what is planned ------------------------------------------------------------------------------------------


def test_a_table_and_sentences_are_printed(costs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", "--costs", costs, "--stages", "3", *LINK) == 0
    out = words(capsys)
    head = next(line for line in out.splitlines() if "schedule" in line)
    assert [cell.strip() for cell in head.strip("┃").split("┃")] == [
        "schedule", "setting", "step", "examples/s", "idle", "sent/step", "memory", "age",
    ]  # fmt: skip
    shown = {line.strip("│").split()[0] for line in out.splitlines() if line.startswith("│")}
    assert shown == set(SCHEDULES) - {"local_loss"}
    assert (
        "six on 3 machines, cut after layer1, layer3; a round trip of 5 ms, 1,000 Mbit/s; batches of 64."
        in out
    )
    assert "Decoupling pays: stages (all messages, window 3) takes 6.3 ms a step" in out
    assert "local_loss is left out: the costs of a local loss are not known." in out


@pytest.mark.parametrize("factory", ["pair", "labelled", "numbers", "whole", "images", "tokens"])
def test_a_factory_may_return_its_batch_target_and_criterion(
    factory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("plan", "--model", f"planned_networks:{factory}", *FEW, "--threads", "1") == 0
    done = capsys.readouterr()
    assert "Sequential on 2 machines, cut after " in done.out
    assert done.err.startswith("profiling Sequential on ")
    assert ", 1 threads, batches of " in done.err


@pytest.mark.parametrize("rule", [name for name in RULES if name not in ("none", "local_loss")])
def test_stages_have_the_rule_that_is_named(
    rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (
        "--model",
        "planned_networks:labelled",
        "--rule",
        rule,
        "--save-costs",
        tmp_path / "c" / "costs.json",
    )
    assert call("plan", *given, *FEW) == 0
    first = CostTable.read(tmp_path / "c" / "costs.json").modules[0].cost
    assert first.credit_s + first.observe_s > 0
    assert "stages (" in words(capsys)


def test_a_local_loss_learns_from_no_messages(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--model", "planned_networks:labelled", "--rule", "local_loss", "--stages", "2", *LINK)
    assert call("plan", *asked, "--schedules", "stages,local_loss", "--share", "1") == 0
    out = words(capsys)
    assert "local_loss" in out
    assert "stages is left out: the rule of the table learns from no messages." in out


def test_without_labels_the_rule_needs_none(tmp_path: Path) -> None:
    given = ("--model", "planned_networks:pair", "--save-costs", tmp_path / "costs.json")
    assert call("plan", *given, *FEW) == 0
    assert CostTable.read(tmp_path / "costs.json").modules[0].cost.observe_s > 0


def test_no_rule_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = (
        "--model",
        "planned_networks:labelled",
        "--rule",
        "none",
        "--save-costs",
        tmp_path / "costs.json",
    )
    assert call("plan", *given, *FEW) == 0
    first = CostTable.read(tmp_path / "costs.json").modules[0].cost
    assert (first.credit_s, first.observe_s, first.local_s) == (0.0, 0.0, 0.0)
    assert "The table has no costs of a rule" in words(capsys)


def test_a_network_without_a_batch_takes_one_of_a_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--model", "planned_networks:alone", "--data", "mnist-10k", "--batch-size", "32")
    assert call("plan", *given, *FEW) == 0
    assert "batches of 32." in words(capsys)


def test_threads_are_as_before_afterwards(costs: Path) -> None:
    before = torch.get_num_threads()
    assert call("plan", "--model", "planned_networks:labelled", *FEW, "--threads", before + 1) == 0
    assert torch.get_num_threads() == before


def test_options_reach_the_plan(costs: Path, tmp_path: Path) -> None:
    options = (
        *("--devices", "2,1", "--share", "0.5", "--codec", "int8", "--accumulate", "3", "--window", "7"),
        *("--rendezvous", "--out", tmp_path / "out"),
    )
    assert call("plan", "--costs", costs, *FEW, *options, "--round-trips", "1,40") == 0
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["speeds"] == [2.0, 1.0]
    assert plan["network"]["rendezvous"] is True
    assert plan["window"] == 7
    assert {r["schedule"] for r in plan["rows"]} == {"gpipe", "stages"}
    assert {(r["share"], r["codec"]) for r in plan["rows"] if r["schedule"] == "stages"} == {(0.5, "int8")}
    assert plan["settings"]["accumulate"] == 3
    assert plan["settings"]["microbatches"] == [2]
    assert plan["cuts"] == ["layer3"]
    assert plan["curve"]["round_trips_ms"] == [1.0, 40.0]
    assert call("plan", "--costs", costs, *FEW, "--round-trips", "none", "--out", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["curve"]["round_trips_ms"] == []


# -- files ----------------------------------------------------------------------------------------------------


def test_a_folder_holds_plan_page_costs_and_traces(
    costs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert call("plan", "--costs", costs, "--stages", "2", *LINK, "--out", out) == 0
    names = {p.name for p in out.iterdir()}
    traces = {name for name in names if name.startswith("trace-")}
    assert names - traces == {"plan.json", "plan.html", "costs.json"}
    assert {"trace-stages.json", "trace-delayed.json"} < traces
    assert len(traces) == 3
    for name in traces:
        events = json.loads((out / name).read_text())["traceEvents"]
        assert {"X", "M", "b", "e"} == {e["ph"] for e in events}
        assert {e["pid"] for e in events} == {0, 1}
    page = (out / "plan.html").read_text(encoding="utf-8")
    assert page.count('<svg class="timeline"') == 3
    assert "<h1>Plan: six on 2 machines</h1>" in page
    assert ">this link</text>" in page
    assert CostTable.read(out / "costs.json") == CostTable.read(costs)
    assert str(out) in words(capsys)


def test_costs_that_were_saved_give_the_same_plan(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert call("plan", "--model", "planned_networks:labelled", *FEW, "--out", first) == 0
    assert call("plan", "--costs", first / "costs.json", *FEW, "--out", second) == 0
    assert (first / "plan.json").read_text() == (second / "plan.json").read_text()


def test_data_parallel_traces_show_what_is_sent(costs: Path, tmp_path: Path) -> None:
    few = ("--stages", "2", *LINK, "--schedules", "backprop,data_parallel")
    assert call("plan", "--costs", costs, *few, "--out", tmp_path / "out") == 0
    events = json.loads((tmp_path / "out" / "trace-data_parallel.json").read_text())["traceEvents"]
    assert {e["pid"] for e in events} == {0, 1}
    assert {e["name"] for e in events if e["ph"] == "b"} == {
        "part of a sum to process 0",
        "part of a sum to process 1",
    }
    assert "copy 0" in (tmp_path / "out" / "plan.html").read_text(encoding="utf-8")


def test_the_page_has_the_figures_of_the_plan(
    costs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[PlanPage] = []
    monkeypatch.setattr(planning, "write_plan_page", lambda path, page: pages.append(page))
    few = ("--stages", "2", *LINK, "--schedules", "gpipe,stages,delayed", "--microbatches", "4")
    assert call("plan", "--costs", costs, *few, "--out", tmp_path) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    (page,) = pages
    assert list(page.round_trips_ms) == plan["curve"]["round_trips_ms"]
    assert list(page.curves) == ["stages", "pipelines"]
    rates = [64e3 / ms for ms in plan["curve"]["step_ms"]["pipelines"]]
    assert list(page.curves["pipelines"]) == pytest.approx(rates)
    assert page.here_ms == 5.0
    lines = {line.title.partition(" ")[0]: line for line in page.timelines}
    assert set(lines) == {"gpipe", "stages", "delayed"}
    # One axis for all; numbers of microbatches, and none of an update of all of them.
    assert len({round(line.end_s - line.start_s, 9) for line in page.timelines}) == 1
    passes = [bar for bar in lines["gpipe"].bars if bar.kind == "forward"]
    assert {bar.batch for bar in passes} == {0, 1, 2, 3}
    assert {bar.batch for bar in lines["gpipe"].bars if bar.kind == "update"} <= {None}
    # Of a step of GPipe: four activations up, four gradients down.
    assert len(lines["gpipe"].flights) == 8
    assert min(bar.batch for bar in lines["stages"].bars if bar.batch is not None) == 0
    assert lines["stages"].rows == ("stage 0", "stage 1")


# -- what is refused ------------------------------------------------------------------------------------------

RETURNS = (
    "expected package.module:factory, an importable factory that takes no arguments and returns a network"
)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--costs", "costs.json", *LINK], "--stages is missing: expected the number of processes"),
        (["--costs", "costs.json", "--stages", "2"], "--link is missing: expected the link between machines"),
        (["--stages", "2", *LINK], "neither --model nor --costs is given"),
        (["--model", "a:b", "--costs", "c.json", "--stages", "2", *LINK], "--model and --costs are both given"),
        (["--costs", "costs.json", "--stages", "1", *LINK], "--stages 1: expected 2 or more processes"),
        (["--costs", "costs.json", "--stages", "7", *LINK], "7 stages of a model that can be cut into 6 at most"),
        (["--costs", "costs.json", "--stages", "2", "--link", "rtt_ms=1,mbit_s=0"], "mbit_s=0: expected a rate over 0"),
        (["--costs", "costs.json", "--stages", "2", "--link", "50ms"], "'50ms' is not key=value"),
        (["--costs", "costs.json", *FEW, "--schedules", "1f2b"], "--schedules '1f2b' is unknown (did you mean '1f1b'?)"),
        (["--costs", "costs.json", *FEW, "--rule", "bp"], "--rule 'bp' is unknown; accepted: cdni, dni"),
        (["--costs", "costs.json", *FEW, "--codec", "fp8"], "--codec 'fp8' is unknown; accepted: float32"),
        (["--costs", "costs.json", *FEW, "--devices", "1"], "--devices 1: 1 speeds for 2 stages"),
        (["--costs", "costs.json", *FEW, "--devices", "1,0"], "--devices 1,0: expected speeds over 0"),
        (["--costs", "costs.json", *FEW, "--devices", "1,fast"], "--devices 1,fast: expected numbers from 0"),
        (["--costs", "costs.json", *FEW, "--share", "1.5"], "--share 1.5: expected numbers from 0 to 1"),
        (["--costs", "costs.json", *FEW, "--share", "nan"], "--share nan: expected numbers from 0 to 1"),
        (["--costs", "costs.json", *FEW, "--round-trips", "0"], "--round-trips 0: expected numbers from 1e-06"),
        (["--costs", "costs.json", *FEW, "--microbatches", "65"], "65 microbatches of a batch of 64"),
        (["--costs", "none.json", *FEW], "none.json: cannot be read (No such file or directory)"),
        (["--costs", "planned_networks.py", *FEW], "planned_networks.py is no JSON"),
        (["--costs", "costs.json", *FEW, "--out", "costs.json/out"], "costs.json/out: cannot be made (Not a directory)"),
        (["--model", "nowhere:make", *FEW], "--model nowhere:make: ModuleNotFoundError"),
        (["--model", "planned_networks:gone", *FEW], "has no attribute 'gone'"),
        (["--model", "planned_networks:three", *FEW], f"--model planned_networks:three: returned 3; {RETURNS}"),
        (["--model", "planned_networks:five", *FEW], f"returned a tuple; {RETURNS}"),
        (["--model", "planned_networks:no_network", *FEW], f"returned 3 as network; {RETURNS}"),
        (["--model", "planned_networks:breaks", *FEW], f"RuntimeError: one two; {RETURNS}"),
        (["--model", "planned_networks:too_wide", *FEW], "the network cannot be run on its batch (RuntimeError: mat1"),
        (["--model", "planned_networks:no_criterion", *FEW], "returned 'mse' as criterion"),
        (["--model", "planned_networks:alone", *FEW], "the factory returns the network alone; let it return"),
        (["--model", "planned_networks:uncut", *FEW], "Linear cannot be cut into stages"),
        (["--model", "planned_networks:short", *FEW], "the criterion got labels of shape (9,)"),
        (["--model", "planned_networks:pair", *FEW, "--rule", "cdni"], "--rule cdni needs labels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line(
    arguments: list[str], error: str, costs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("plan", *arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("profiling ")]
    assert len(said) == 1
    assert said[0].startswith("synthgrad: error: ")
    assert error in said[0]


def test_names_are_those_of_what_plans() -> None:
    assert tuple(KINDS) == SCHEDULES
    assert set(CODECS) == set(ALL_CODECS)
    for name in set(RULES) - {"none"}:
        assert METHODS[name].rule is not None
        assert not METHODS[name].engines


def test_help_does_not_load_pytorch() -> None:
    code = (
        "import sys; from synthgrad.lab.cli.main import main\n"
        "try: main(['plan', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, encoding="utf-8"
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert "synthgrad plan --model my_module:make --stages 4 --link rtt_ms=50,mbit_s=1000" in done.stdout
