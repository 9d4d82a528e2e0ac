"""Which class a name means."""

import gc

import torch

from bhfl.cli.classes import resolve, unambiguous


def test_a_short_name_means_the_class_of_its_base_where_another_package_has_one_too() -> None:
    class SGD(torch.optim.SGD):
        """One as bitsandbytes has, once it is loaded."""

    assert resolve("SGD", torch.optim.Optimizer) is torch.optim.SGD
    assert unambiguous("SGD", torch.optim.Optimizer) == "torch.optim.SGD"
    assert unambiguous("Rprop", torch.optim.Optimizer) == "Rprop"
    # no later test is to meet it
    del SGD
    gc.collect()
