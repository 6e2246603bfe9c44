"""``python -m synthgrad`` does what ``synthgrad`` does."""

from .cli.main import main

if __name__ == "__main__":
    main()
