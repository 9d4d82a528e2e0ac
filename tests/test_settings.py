"""Each option of the trainer is one field, which says its role and its check."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from itertools import chain
from typing import get_type_hints

import pytest

from bhfl.engine.trainer import FederatedTrainer
from bhfl.settings import Role, Settings

SIGNATURE = inspect.signature(FederatedTrainer).parameters
GROUPS = get_type_hints(Settings).values()
FIELDS = {one.name: one for one in chain.from_iterable(map(fields, GROUPS))}
DOCUMENTED = re.findall(
    r"^    (\w+): ", (inspect.getdoc(FederatedTrainer) or "").partition("Raises:")[0], re.M
)


def test_an_option_is_a_field_a_parameter_and_a_line_of_help():
    assert sorted(FIELDS) == sorted(SIGNATURE), "of bhfl/settings.py and FederatedTrainer.__init__"
    assert list(SIGNATURE) == DOCUMENTED, "of the docstring of FederatedTrainer and its __init__"


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_role(name):
    assert isinstance(FIELDS[name].metadata["role"], Role)


@pytest.mark.parametrize(
    ("role", "names"),
    [
        (Role.TASK, "availability clients network num_clients"),
        (Role.LENGTH, "max_rounds min_delta patience"),
        (Role.CHOICE, "best_by_group mode monitor"),
        (Role.NUMERICS, "channels_last threads"),
        (
            Role.MACHINE,
            "accelerator devices max_failed_rounds num_nodes strategy timeout_seconds",
        ),
        (
            Role.OUTPUT,
            "callbacks check_val_every_n_rounds checkpoint_every_n_rounds default_root_dir "
            "enable_progress_bar evaluate_clients keep_checkpoints logger name "
            "validate_first",
        ),
    ],
)
def test_options_of_a_role(role, names):
    settings = FederatedTrainer({8: 1}, logger=False).settings
    found = [name for name, its, _ in settings.options() if its is role]
    assert sorted(found) == names.split()


def test_what_a_check_lets_through_by_default():
    """Defaults stand in the signature alone, so that nothing but this shows that they are good."""
    settings = FederatedTrainer({8: 1}, logger=False).settings
    assert settings.problems() == []
    with pytest.raises(FrozenInstanceError):
        settings.stopping.max_rounds = 5  # type: ignore[misc]


def test_settings_load_no_torch():
    script = (
        "import sys, bhfl.settings; assert not {'torch', 'lightning', 'numpy'} & {*sys.modules}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
