"""``python -m bhfl`` is ``bhfl``."""

from bhfl.cli import main

if __name__ == "__main__":
    main()
