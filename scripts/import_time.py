"""Measure what the library adds to the start of a program: import, network, engine and first step, beside PyTorch alone.

Usage: python scripts/import_time.py [--rounds N] [--out FILE]

Run it in an environment in which the library stands alone to see what a user of the library waits for. In every round
a program that trains a small network in a loop of its own and one that trains it with `InProcess` run in turn, each in a
new process; the difference of their times is the library's. With ``--out`` a line for each program is appended to FILE
in the form of the results' records.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from statistics import median

SHARED = """
import time, warnings; warnings.simplefilter("ignore")
start = time.perf_counter()
import torch
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
"""
PROGRAMS = {
    "torch": SHARED
    + """
optimizer = torch.optim.Adam(model.parameters(), 3e-4)
torch.nn.functional.cross_entropy(model(x), y).backward()
optimizer.step()
optimizer.zero_grad()
print(0.0, time.perf_counter() - start)
""",
    "synthgrad": SHARED
    + """
before = time.perf_counter()
import synthgrad as sg
import_s = time.perf_counter() - before
net = sg.decouple(model, at=["1"], rule=sg.SyntheticGradient(context=3), example=x)
trainer = sg.engines.InProcess(net, torch.nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, 3e-4))
trainer.step(x, y)
print(import_s, time.perf_counter() - start)
""",
}


def run(program: str) -> tuple[float, float]:
    """Run a program in a new process; return the seconds of ``import synthgrad``, and those until its first step is done."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    import_s, whole_s = (float(word) for word in done.stdout.split())
    return import_s, whole_s


def main() -> None:
    """Run the rounds, print the medians, append the lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for _ in range(given.rounds + 1):
        for name, program in PROGRAMS.items():
            found[name].append(run(program))
    whole_ms = {
        name: median(w for _, w in runs[1:]) * 1e3 for name, runs in found.items()
    }  # the first reads the disk
    import_ms = median(i for i, _ in found["synthgrad"][1:]) * 1e3
    added_ms = (
        median(b - a for (_, a), (_, b) in zip(*(runs[1:] for runs in found.values()), strict=True)) * 1e3
    )
    installed = sorted({str(d.name) for d in metadata.distributions()})
    print(
        f"PyTorch alone {whole_ms['torch']:.0f} ms, with synthgrad {whole_ms['synthgrad']:.0f} ms: {added_ms:.0f} ms more "
        f"({import_ms:.1f} ms of it for `import synthgrad`)"
    )
    print(f"installed: {', '.join(installed)}")
    if given.out is None:
        return
    given.out.parent.mkdir(parents=True, exist_ok=True)
    env = {
        "synthgrad": metadata.version("synthgrad"),
        "torch": metadata.version("torch"),
        "python": platform.python_version(),
        "threads": 1,
        "installed": installed,
    }
    with given.out.open("a", encoding="utf-8") as file:
        for name in PROGRAMS:
            metrics = {"first_step_ms_median": whole_ms[name]}
            if name == "synthgrad":
                metrics |= {"import_ms_median": import_ms, "added_ms_median": added_ms}
            line = {
                "schema": 1,
                "experiment": "import_time",
                "method": name,
                "cell": {"rounds": given.rounds},
            }
            file.write(
                json.dumps({**line, "metrics": metrics, "status": "ok", "error": None, "env": env}) + "\n"
            )


if __name__ == "__main__":
    main()
