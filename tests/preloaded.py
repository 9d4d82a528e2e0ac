"""What the server of `tests.processes` imports once, so that the processes which it forks begin at
once.
"""

import gc

import tests.engine.lost_ranks
import tests.engine.test_exchange
import tests.engine.test_processes
import tests.engine.test_resume  # noqa: F401

# a process that looked for garbage among them would copy all memory that it shares
gc.collect()
gc.freeze()
