"""The command line: the console script ``synthgrad``, and ``python -m synthgrad``.

The commands are the laboratory's, which needs more than the library does. Whoever has installed the library alone is
told what to install.
"""

import sys
from importlib.util import find_spec

__all__ = ["LAB_PACKAGES", "main"]

#: What ``synthgrad.lab`` imports beside PyTorch: the packages of the extra ``lab``.
LAB_PACKAGES = ("click", "jinja2", "matplotlib", "numpy", "pandas", "pooch", "rich", "tokenizers", "tqdm")


def main() -> None:
    """Run the command line; without the extra ``lab`` say in one line what to install, and exit with status 2."""
    missing = [name for name in LAB_PACKAGES if find_spec(name) is None]
    if missing:
        print(
            f"Error: the command line needs {', '.join(missing)}, which the library alone does not install; run: "
            "pip install 'synthgrad[lab]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
    from .lab.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
