"""A SuperNode that ends when it has nothing left to do: it is run by its path.

Flower's own program goes on without its main loop, and never speaks to the server again, where a
connection broke in a way that it does not try again, such as a handshake that was cut: one of its
threads keeps it from ending.
"""

import os
import traceback


def main() -> None:
    """Run Flower's program, and end with it."""
    from flwr.supernode.cli import flower_supernode

    try:
        flower_supernode()
    except Exception:
        traceback.print_exc()
    # without waiting for the thread
    os._exit(1)


if __name__ == "__main__":
    main()
