"""``import bhfl.quant`` brings torch and nothing else, and changes no global state."""

import subprocess
import sys

SCRIPT = """
import sys, random
import torch
before, threads, rng, python = set(sys.modules), torch.get_num_threads(), torch.get_rng_state(), random.getstate()
import bhfl.quant
new = {name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
assert new <= {"bhfl", "torch"}, new
ours = {name for name in sys.modules if name.startswith("bhfl.")}
assert all(name.startswith("bhfl.quant") for name in ours), ours
assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), rng) and random.getstate() == python
assert not torch.cuda.is_initialized()
assert all(hasattr(bhfl.quant, name) for name in bhfl.quant.__all__)
"""  # noqa: E501


def test_import() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
