"""``python -m bhfl`` is ``bhfl``."""

from bhfl.cli import main
from bhfl.cli.current_folder import forget_start_folder

if __name__ == "__main__":
    forget_start_folder()
    main()
