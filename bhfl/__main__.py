"""``python -m bhfl`` is ``bhfl``."""

from bhfl.cli.current_folder import forget_start_folder
from bhfl.main import main

if __name__ == "__main__":
    forget_start_folder()
    main()
