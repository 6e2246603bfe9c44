"""TensorBoard event files of a run: losses and errors, quality of interfaces, graph. Needs the extra ``tensorboard``."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core import ConfigError, Decoupled, recouple
from ..records import Record

__all__ = ["EventWriter", "check_installed"]


def check_installed() -> None:
    """Check that the package tensorboard is installed.

    Raises:
        ConfigError: if it is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "--tensorboard: the package tensorboard is not installed; run pip install 'synthgrad[tensorboard]'"
        )


class EventWriter:
    """Writes the event files of one run. It flushes them at every evaluation, so that TensorBoard can show a run live.

    Args:
        folder: folder of the run.
        record: record of the run, for its settings.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        with _quiet():
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))
            settings = {
                "cell": dict(record.cell),
                "steps": record.steps,
                "batch_size": record.batch_size,
                "config": dict(record.config),
                "env": dict(record.env),
            }
            self._writer.add_text("settings", f"```json\n{json.dumps(settings, indent=2)}\n```")

    def graph(self, net: nn.Module, example: Tensor, described: Mapping[str, Any]) -> None:
        """Write the plain network as a TensorBoard graph, and the decoupled graph as a table.

        Args:
            net: plain or decoupled network; a copy of it is traced.
            example: inputs, ``(B, ...)``.
            described: modules and interfaces, as in the record.
        """
        self._writer.add_text("decoupled graph", _as_table(described))
        try:
            plain = recouple(net) if isinstance(net, Decoupled) else copy.deepcopy(net)
            with _quiet(), torch.random.fork_rng():
                self._writer.add_graph(plain.eval(), example[:2])
        except Exception as error:  # a network that cannot be traced can still be trained
            self._writer.add_text("graph", f"could not be traced: {type(error).__name__}: {error}")

    def point(self, point: Mapping[str, Any]) -> None:
        """Write the figures of one evaluation."""
        step = point["step"]
        for key, value in point.items():
            part, _, quantity = key.partition("_")
            if part in ("train", "test", "val") and value is not None:
                self._writer.add_scalar(f"{quantity}/{part}", value, step)
        self._writer.add_scalar("elapsed_s", point["elapsed_s"], step)
        for name, measured in point.get("quality", {}).items():
            for quantity, value in measured.items():
                self._writer.add_scalar(f"quality {quantity}/{name}", value, step)
        self._writer.flush()

    def close(self, record: Record) -> None:
        """Write the status and error of the ended run, and close the file."""
        status = record.status + (f": {record.error}" if record.error else "")
        self._writer.add_text("status", status)
        self._writer.close()


def _as_table(described: Mapping[str, Any]) -> str:
    lines = [f"engine: {described['engine']}", "", "| module | parameters | fed by | ends in | rule there |"]
    lines += ["|---|---|---|---|---|"]
    rules = {i["name"]: f"{i['rule']}, {i['num_parameters']:,} parameters" for i in described["interfaces"]}
    for module in described["modules"]:
        ends = [rules.get(end, "the true gradient") for end in module["ends"]]
        fed = ", ".join(module["inputs"]) or "the input"
        lines.append(
            f"| {', '.join(module['parts'])} | {module['num_parameters']:,} | {fed} | "
            f"{', '.join(module['ends'])} | {'; '.join(ends)} |"
        )
    return "\n".join(lines)


@contextmanager
def _quiet() -> Generator[None]:
    """Silence the warnings of tracing and of TensorBoard's imports, which users cannot act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
