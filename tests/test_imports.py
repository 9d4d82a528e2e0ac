"""What an import brings and what it must do without, in one process that imports one thing after
the other.
"""

import subprocess
import sys

SCRIPT = '''
import importlib, os, pkgutil, random, sys

def loaded(*names):
    return [name for name in names if name in sys.modules]

# as on Windows, from the first import to the last
sys.modules["fcntl"] = None
for name in ("O_NOFOLLOW", "O_NONBLOCK", "geteuid", "pread", "pwrite", "setsid", "killpg"):
    delattr(os, name)

def brought(before):
    """The packages that were imported since, but for the standard library."""
    packages = {name.split(".")[0] for name in set(sys.modules) - before}
    return packages - set(sys.stdlib_module_names)

import bhfl
assert {"load_run", "load_model"} <= set(bhfl.__all__)
assert loaded("torch", "lightning", "numpy", "yaml") == []

import torch
before, threads = set(sys.modules), torch.get_num_threads()
drawn, python = torch.get_rng_state(), random.getstate()
import bhfl.quant
assert brought(before) <= {"bhfl", "torch"}, brought(before)
ours = [name for name in set(sys.modules) - before if name.startswith("bhfl.")]
assert all(name.startswith("bhfl.quant") for name in ours), ours
assert torch.get_num_threads() == threads
assert torch.equal(torch.get_rng_state(), drawn) and random.getstate() == python
assert not torch.cuda.is_initialized()
assert all(hasattr(bhfl.quant, name) for name in bhfl.quant.__all__)

import bhfl.models
bhfl.models.build("cnn", 10, (1, 8, 8))
assert loaded("lightning", "torchmetrics", "torchvision") == []

import lightning
before = set(loaded("torchvision", "sklearn", "PIL", "datasets"))
import bhfl.data
assert set(loaded("torchvision", "sklearn", "PIL", "datasets")) == before

for module in pkgutil.walk_packages(bhfl.__path__, "bhfl."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
'''


def test_each_import_brings_what_it_needs_and_all_do_without_what_windows_lacks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
