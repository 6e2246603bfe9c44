"""The user's own data: a file with arrays, or a factory that returns tensors or data sets."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import random
import sys
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core import ConfigError, DataError
from ..names import OWN_FILES, is_own_data
from .images import LabelledData, Split

__all__ = ["ARRAYS", "import_attribute", "load_own", "version_of"]

#: The arrays that a file must have.
ARRAYS = ("x_train", "y_train", "x_test", "y_test")

_EXPECTED = "expected x_train, y_train, x_test and y_test"


def load_own(name: str) -> LabelledData:
    """Load the user's own labelled examples.

    Inputs are ``(N, ...)``. Floats become float32; bytes (uint8) become float32 in [0, 1]; other integers become int64,
    for token ids. Labels are integers ``(N,)`` from 0 to the number of classes - 1.

    Args:
        name: a file ``.npz``, ``.pt`` or ``.safetensors`` with the arrays `ARRAYS`, or ``package.module:factory``. The
            factory takes no arguments. It returns the four tensors (or arrays) as a tuple in this order or as a
            dictionary with these names, or two map-style data sets ``(train, test)`` of pairs ``(x, y)``.

    Raises:
        ConfigError: if the factory does not exist, raises an error, or returns something else.
        DataError: if the file is missing or damaged, an array is missing, or shapes or labels do not fit.
    """
    return _to_labelled_data(name, _from_file(Path(name)) if _is_file(name) else _from_factory(name))


def version_of(name: str) -> Any:
    """Return a value that changes when the user's own data may have changed; None for a data set of the package."""
    if not is_own_data(name):
        return None
    try:
        if _is_file(name):
            status = Path(name).stat()
            return status.st_mtime_ns, status.st_size
        return import_attribute(name)
    except (Exception, SystemExit):
        return None  # `load_own` says what is wrong


def _is_file(name: str) -> bool:
    path = Path(name)
    return path.suffix in OWN_FILES and (":" not in name or path.exists())


def import_attribute(path: str) -> Any:
    """Import ``package.module:attribute``; modules in the working directory are found too.

    Raises:
        ImportError: if there is no such module.
        AttributeError: if the module has no such attribute.
    """
    module, _, attribute = path.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        return getattr(importlib.import_module(module), attribute)
    finally:
        if added:
            with suppress(ValueError):
                sys.path.remove(here)


def _from_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise DataError(f"--data {path}: no such file; name a file {', '.join(OWN_FILES)} that exists")
    readers: dict[str, Callable[[Path], Any]] = {
        ".npz": _read_npz,
        ".pt": _read_pt,
        ".safetensors": _read_safetensors,
    }
    try:
        found = readers[path.suffix](path)
    except (
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"--data {path}: cannot be read ({type(error).__name__}: {reason}); it must be a file {path.suffix} of "
            f"arrays without Python objects, {_EXPECTED}"
        ) from error
    if not isinstance(found, Mapping):
        raise DataError(f"--data {path}: holds a {type(found).__name__}, expected a dictionary; {_EXPECTED}")
    return found


def _read_npz(path: Path) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_pt(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ConfigError(
            f"--data {path}: needs the package safetensors; pip install safetensors, or save the arrays as .npz"
        ) from error
    try:
        return load_file(path)
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise ValueError(str(error)) from error
        raise


def _from_factory(name: str) -> Mapping[str, Any]:
    what = (
        "expected an importable factory that takes no arguments and returns (x_train, y_train, x_test, y_test), or two "
        "data sets of pairs (x, y)"
    )
    try:
        with _same_random_numbers():
            made = import_attribute(name)()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--data {name}: {type(error).__name__}: {error}; {what}") from error
    if isinstance(made, Mapping):
        return made
    if isinstance(made, Sequence) and not isinstance(made, str | bytes):
        if len(made) == len(ARRAYS):
            return dict(zip(ARRAYS, made, strict=True))
        if len(made) == 2:
            with_labels: dict[str, Any] = {}
            for part, examples in zip(("train", "test"), made, strict=True):
                with_labels[f"x_{part}"], with_labels[f"y_{part}"] = _stack_examples(name, part, examples)
            return with_labels
    raise ConfigError(f"--data {name}: returned {type(made).__name__}; {what}")


@contextmanager
def _same_random_numbers() -> Generator[None]:
    """Seed the global generators, and restore them at the end.

    Every process of a comparison calls the factory, and all methods must get the same data.
    """
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def _stack_examples(name: str, part: str, examples: Any) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of a map-style data set as tensors."""
    try:
        with _same_random_numbers():  # of transformations
            pairs = [examples[k] for k in range(len(examples))]
        x = torch.stack([torch.as_tensor(np.asarray(x)) for x, _ in pairs])
        return x, torch.as_tensor([int(y) for _, y in pairs])
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"--data {name}, {part} set: {type(error).__name__}: {error}; expected a data set with a length whose "
            "items are pairs (x, y), all x of one shape and y an integer"
        ) from error


def _to_labelled_data(name: str, arrays: Mapping[str, Any]) -> LabelledData:
    """Check the four arrays and convert them."""
    if missing := [key for key in ARRAYS if key not in arrays]:
        has = ", ".join(map(str, list(arrays)[:10])) or "nothing"
        raise DataError(f"--data {name}: has no {', '.join(missing)}; it has {has}, {_EXPECTED}")
    tensors = {key: _to_tensor(name, key, arrays[key]) for key in ARRAYS}
    train = _to_split(name, "train", tensors)
    test = _to_split(name, "test", tensors)
    if train.x.shape[1:] != test.x.shape[1:]:
        raise DataError(
            f"--data {name}: x_train has examples of shape {tuple(train.x.shape[1:])}, x_test of "
            f"{tuple(test.x.shape[1:])}; expected the same shape"
        )
    if train.x.dtype != test.x.dtype:
        raise DataError(
            f"--data {name}: x_train and x_test have dtypes {arrays['x_train'].dtype} and {arrays['x_test'].dtype}; "
            "expected the same dtype"
        )
    classes = int(train.y.max()) + 1
    if classes < 2:
        raise DataError(f"--data {name}: y_train has the label 0 only; expected two classes or more")
    if int(test.y.max()) >= classes:
        raise DataError(
            f"--data {name}: y_test has the label {int(test.y.max())}, expected 0 to {classes - 1}, the labels of "
            "y_train"
        )
    digest = hashlib.sha256()
    for key in ARRAYS:
        digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}\n".encode())
        digest.update(tensors[key].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return LabelledData(name, train, test, classes, digest.hexdigest())


def _to_tensor(name: str, key: str, value: Any) -> Tensor:
    try:
        found = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"--data {name}: {key} is a {type(value).__name__} that is no array of numbers; {_EXPECTED} as arrays"
        ) from error
    if found.ndim == 0 or len(found) == 0:
        raise DataError(f"--data {name}: {key} is empty; expected at least one example")
    if found.is_complex() or found.dtype == torch.bool:
        raise DataError(f"--data {name}: {key} has dtype {found.dtype}, expected floats or integers")
    return found


def _to_split(name: str, part: str, tensors: Mapping[str, Tensor]) -> Split:
    x, y = tensors[f"x_{part}"], tensors[f"y_{part}"]
    if y.ndim != 1 or y.is_floating_point():
        raise DataError(
            f"--data {name}: y_{part} has shape {tuple(y.shape)} and dtype {y.dtype}, expected integers (N,), the class "
            "of each example"
        )
    if x.ndim < 2:
        raise DataError(f"--data {name}: x_{part} has shape {tuple(x.shape)}, expected (N, ...)")
    if len(x) != len(y):
        raise DataError(
            f"--data {name}: x_{part} has {len(x)} examples, y_{part} {len(y)}; expected one label for each example"
        )
    if int(y.min()) < 0:
        raise DataError(f"--data {name}: y_{part} has the label {int(y.min())}, expected labels from 0 up")
    if x.is_floating_point():
        x = x.float()
        if not bool(torch.isfinite(x).all()):
            raise DataError(f"--data {name}: x_{part} has numbers that are not finite; expected finite ones")
    else:
        x = x.float().div_(255) if x.dtype == torch.uint8 else x.long()
    return Split(x, y.long())
