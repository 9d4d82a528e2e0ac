"""How tests start processes of their own: each is forked from a server that has imported what most
of them need, where the system can do so, and else begins anew.
"""

import multiprocessing
from typing import Any

_SERVED = "forkserver" in multiprocessing.get_all_start_methods()
METHOD = "forkserver" if _SERVED else "spawn"
PROCESSES: Any = multiprocessing.get_context(METHOD)
if _SERVED:
    PROCESSES.set_forkserver_preload(["tests.preloaded"])
