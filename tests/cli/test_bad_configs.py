"""Configurations that must be refused: exit code 2, a message that names the key and the rule,
nothing written.
"""

import sys
from pathlib import Path

import pytest

from bhfl.comm.network import SimulatedNetwork
from tests.cli.conftest import Command


class Streets(SimulatedNetwork):
    """A class of a user's own, beside which messages are the same."""


FILES = {
    # ---- YAML itself
    "empty": ("", ["must hold a mapping", "is empty"]),
    "comment": ("# nothing\n", ["must hold a mapping", "is empty"]),
    "list": ("- algorithm: FedAvg\n", ["must hold a mapping", "holds list"]),
    "scalar": ("FedAvg\n", ["must hold a mapping", "holds str"]),
    "tab": ("trainer:\n\tmax_rounds: 3\n", ["bad.yaml:2", "indent with spaces"]),
    "unclosed": ("trainer: {max_rounds: 3\n", ["not valid YAML"]),
    "unknown-alias": ("trainer: *base\n", ["bad.yaml:1", "undefined alias"]),
    "two-documents": ("algorithm: FedAvg\n---\nalgorithm: FedProx\n", ["another document"]),
    "control-character": ("algorithm: \x01\n", ["not valid YAML"]),
    "python-tag": (
        "algorithm: !!python/object/apply:os.system [touch pwned]\n",
        ["tag", "os.system", "not allowed"],
    ),
    "merge-key": (
        "a: &a {x: 1}\ntrainer: {<<: *a}\n",
        ["bad.yaml:2: trainer: the YAML tag", "merge is not allowed"],
    ),
    "duplicate": (
        "algorithm: FedAvg\nalgorithm: FedProx\n",
        ["bad.yaml:2", "algorithm is given twice"],
    ),
    "duplicate-nested": (
        "trainer: {max_rounds: 3, max_rounds: 4}\n",
        ["trainer.max_rounds is given twice"],
    ),
    "too-long": ("# " + "x" * (1 << 20) + "\n", ["at most 1,048,576 bytes"]),
    "alias-bomb": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
            for a, b in zip("abcdefg", "bcdefgh", strict=True)
        ),
        ["at most 50,000 values"],
    ),
    "endless-alias": ("trainer: &a {x: *a}\n", ["nested at most 50 deep"]),
    "deep": ("algorithm: " + "[" * 500_000 + "\n", ["nested at most 50 deep"]),
    # ---- unknown keys
    "key": (
        "algoritm: FedProx\n",
        ["bad.yaml:1: algoritm is an unknown option", "did you mean 'algorithm'?"],
    ),
    "key-far": ("zzz: 1\n", ["zzz is an unknown option", "known: algorithm"]),
    "key-command": ("fit: {trainer: {max_rounds: 3}}\n", ["fit is an unknown option"]),
    "key-number": ("1: 2\n", ["1 is an unknown option"]),
    "key-dotted": (
        "model.optimizer.lr: 1\n",
        [
            "bad.yaml:1: model.optimizer.lr is an unknown option; in a file it is written "
            "model: {optimizer: {lr: ...}}"
        ],
    ),
    "no-space": (
        "clients: {8:2,32:2}\n",
        ["8:2 is read in different ways: write a space after a colon, decimal digits alone"],
    ),
    "trainer-key": (
        "trainer: {max_ronds: 3}\n",
        ["trainer.max_ronds is an unknown option", "'max_rounds'"],
    ),
    "trainer-switch": (
        "trainer: {evaluate_clients: true}\n",
        ["trainer.evaluate_clients must be one of none, after, both, got true"],
    ),
    "trainer-seed": ("trainer: {seed: 3}\n", ["trainer.seed is given as seed_everything"]),
    "trainer-clients": ("trainer: {clients: {8: 3}}\n", ["trainer.clients is given as clients"]),
    "trainer-algorithm": (
        "trainer: {algorithm: FedAvg}\n",
        ["trainer.algorithm is given as algorithm"],
    ),
    "init-arg": (
        "algorithm: {class_path: FedProx, init_args: {muu: 1}}\n",
        ["algorithm.muu is an unknown option of FedProx", "did you mean 'mu'?"],
    ),
    "init-arg-inherited": (
        "data: {init_args: {bach_size: 8}}\n",
        ["data.bach_size", "FakeImages", "'batch_size'"],
    ),
    "init-arg-short": (
        "data: {bach_size: 8}\n",
        ["data.bach_size is an unknown option of FakeImages", "'batch_size'"],
    ),
    "init-arg-nested": (
        "data: {init_args: {partition: {class_path: Dirichlet, init_args: {aplha: 1}}}}\n",
        ["data.partition.aplha is an unknown option of Dirichlet", "'alpha'"],
    ),
    "init-arg-of-none": (
        "algorithm: {class_path: FedAvg, init_args: {mu: 1}}\n",
        ["algorithm.mu is an unknown option of FedAvg"],
    ),
    "init-args-list": (
        "algorithm: {class_path: FedProx, init_args: []}\n",
        ["bad.yaml:1: algorithm must be a mapping, got []"],
    ),
    "init-args-null": (
        "trainer: {callbacks: [{class_path: Progress, init_args: null}]}\n",
        ["trainer.callbacks[0] must be a mapping, got null"],
    ),
    "init-arg-outside": (
        "data: {class_path: Digits, batch_size: 8}\n",
        ["data.batch_size must stand under init_args"],
    ),
    "network-key": (
        "trainer: {network: {profile: wifi}}\n",
        ["trainer.network.profile is an unknown option", "'profiles'"],
    ),
    "network-value": (
        "trainer: {network: {seed: soon}}\n",
        ["trainer.network.seed must be an integer, got 'soon'"],
    ),
    "network-profile": (
        "trainer: {network: {profiles: wify}}\n",
        ["profiles must be one of iot, phone-4g", "got 'wify'; did you mean 'wifi'?"],
    ),
    "network-deadline": (
        "trainer: {network: {deadline_seconds: 0}}\n",
        ["deadline_seconds must be positive and finite"],
    ),
    "candidates": (
        "algorithm: {class_path: FedLQ, init_args: {candidates: []}}\n",
        ["candidates must name at least one bit-width, got none"],
    ),
    "budget": (
        "algorithm: {class_path: FedLQ, init_args: {budget: {average_bits: -1}}}\n",
        ["FedLQ.budget.average_bits must be in (0, 1e9], got -1"],
    ),
    "optimizer-key": (
        "model: {init_args: {optimizer: {init_args: {momntum: 1}}}}\n",
        ["momntum", "SGD", "'momentum'"],
    ),
    "linked": (
        "model: {init_args: {num_classes: 7}}\n",
        ["model.num_classes is taken from the data"],
    ),
    # ---- classes
    "class": (
        "algorithm: FedPorx\n",
        ["algorithm must name an Algorithm, got 'FedPorx'", "did you mean 'FedProx'?"],
    ),
    "class-case": ("algorithm: fedprox\n", ["got 'fedprox'", "did you mean 'FedProx'?"]),
    "class-data": (
        "data: Didgits\n",
        ["data must name a FederatedDataModule, got 'Didgits'", "'Digits'"],
    ),
    "class-nested": (
        "data: {partition: Dirichelt}\n",
        ["data.partition must name a Partitioner", "'Dirichlet'"],
    ),
    "class-callable": (
        "model: {optimizer: SDG}\n",
        ["model.optimizer must name an Optimizer", "'SGD'"],
    ),
    "class-union": (
        "trainer: {logger: TensorBordLogger}\n",
        ["trainer.logger must name a Logger", "'TensorBoardLogger'"],
    ),
    "class-list": (
        "trainer: {callbacks: [WeightHistogram]}\n",
        ["trainer.callbacks[0]", "'WeightHistograms'"],
    ),
    "class-path": (
        "algorithm: bhfl.algorithms.FedPorx\n",
        ["'bhfl.algorithms.FedPorx'", "did you mean 'FedProx'?"],
    ),
    "class-module": ("algorithm: no_such_module.Mine\n", ["No module named 'no_such_module'"]),
    "class-relative": ("algorithm: ..Mine\n", ["algorithm must name an Algorithm, got '..Mine'"]),
    "class-stdlib": ("algorithm: os.system\n", ["'os.system' of the standard library"]),
    "class-popen": (
        "data: {class_path: subprocess.Popen, init_args: {args: [touch, pwned]}}\n",
        [
            "data.class_path must name a FederatedDataModule",
            "'subprocess.Popen' of the standard library",
        ],
    ),
    "class-popen-callback": (
        "trainer: {callbacks: [{class_path: subprocess.Popen, init_args: {args: [touch, "
        "pwned]}}]}\n",
        ["trainer.callbacks[0].class_path must name a Callback", "'subprocess.Popen'"],
    ),
    "class-wrong": (
        "algorithm: torch.nn.Linear\n",
        ["algorithm must name an Algorithm, got 'torch.nn.Linear'"],
    ),
    "class-function": (
        "algorithm: torch.save\n",
        ["algorithm must name an Algorithm, got 'torch.save'"],
    ),
    "class-callback": (
        "trainer: {callbacks: [torch.nn.Linear]}\n",
        ["must name a Callback, got 'torch.nn.Linear'"],
    ),
    "class-abstract": (
        "data: bhfl.data.FederatedDataModule\n",
        ["'bhfl.data.FederatedDataModule', which is abstract"],
    ),
    "class-number": (
        "algorithm: {class_path: 3}\n",
        ["algorithm.class_path must name an Algorithm, got 3"],
    ),
    "class-null": ("algorithm: null\n", ["algorithm must be an Algorithm", "got null"]),
    "class-items": (
        "model: [Classifier]\n",
        ["model must be a LightningModule", "got ['Classifier']"],
    ),
    # ---- the fleet
    "clients-null": (
        "clients: null\n",
        ["clients must be a mapping such as {8: 5, 32: 5}", "got None"],
    ),
    "clients-number": ("clients: 8\n", ["clients must be a mapping", "got 8"]),
    "clients-none": ("clients: []\n", ["clients must hold at least one group"]),
    "bits-0": ("clients: {0: 5}\n", ["bad.yaml:1: clients[0]: bits must be 2..16 or 32, got 0"]),
    "bits-1": ("clients: {1: 5}\n", ["clients[0]: bits must be 2..16 or 32, got 1"]),
    "bits-33": ("clients: {8: 2, 33: 5}\n", ["clients[1]: bits must be 2..16 or 32, got 33"]),
    "bits-fraction": ("clients: {8.5: 5}\n", ["bits must be 2..16 or 32, got 8.5"]),
    "bits-float": ("clients: {8.0: 5}\n", ["bits must be 2..16 or 32, got 8.0"]),
    "bits-bool": ("clients: [{bits: true, count: 5}]\n", ["bits must be 2..16 or 32, got True"]),
    "bits-name": ("clients: {ternray: 5}\n", ["'ternray'", "did you mean 'ternary'?"]),
    "bits-twice": ("clients: {8: 5, int8: 3}\n", ["int8 is given more than once"]),
    "count-0": ("clients: {8: 0}\n", ["count must be an integer from 1 to 10,000,000, got 0"]),
    "count-huge": (
        "clients: {8: 100000000000000000000000000}\n",
        ["count must be an integer from 1 to 10,000,000"],
    ),
    "count-float": ("clients: {8: 5.0}\n", ["count must be an integer", "got 5.0"]),
    "count-bool": ("clients: {8: true}\n", ["count must be an integer", "got True"]),
    "count-missing": ("clients: [{bits: 8}]\n", ["needs either count or fraction"]),
    "count-and-fraction": (
        "clients: [{bits: 8, count: 2, fraction: 1.0}]\n",
        ["needs either count or fraction"],
    ),
    "group-key": (
        "clients: [{bits: 8, cuont: 2}]\n",
        ["unknown key 'cuont'", "did you mean 'count'?"],
    ),
    "fraction-high": (
        "clients: [{bits: 8, fraction: 1.5}]\n",
        ["fraction must be in (0, 1], got 1.5"],
    ),
    "fraction-low": (
        "clients: [{bits: 8, fraction: -0.1}]\n",
        ["fraction must be in (0, 1], got -0.1"],
    ),
    "fraction-percent": (
        "clients: [{bits: 8, fraction: 50%}]\n",
        ["fraction must be in (0, 1], got '50%'"],
    ),
    "fractions-sum": (
        "clients: [{bits: 8, fraction: 0.5}, {bits: 32, fraction: 0.4}]\n",
        ["clients: fractions must sum to 1, got 0.9"],
    ),
    "fraction-of-what": (
        "clients: [{bits: 8, fraction: 1.0}]\n",
        ["num_clients must say how many there are"],
    ),
    # ---- values
    "int-0": (
        "trainer: {max_rounds: 0}\n",
        ["bad.yaml:1: trainer.max_rounds must be an integer from 1", "got 0"],
    ),
    "int-negative": (
        "trainer: {max_rounds: -1}\n",
        ["trainer.max_rounds must be an integer from 1", "got -1"],
    ),
    "int-huge": (
        "trainer: {max_rounds: 99999999999999999999999999}\n",
        ["trainer.max_rounds must be an integer from 1"],
    ),
    "int-null": (
        "trainer: {max_rounds: null}\n",
        ["trainer.max_rounds must be an integer, got null"],
    ),
    "int-bool": (
        "trainer: {max_rounds: true}\n",
        ["trainer.max_rounds must be an integer, got true"],
    ),
    "int-text": (
        "trainer: {max_rounds: '10'}\n",
        ["trainer.max_rounds must be an integer, got '10'"],
    ),
    "int-float": (
        "trainer: {max_rounds: 10.0}\n",
        ["trainer.max_rounds must be an integer, got 10.0"],
    ),
    "int-exponent": (
        "trainer: {max_rounds: 1e3}\n",
        ["trainer.max_rounds must be an integer, got 1000.0"],
    ),
    "int-underscore": (
        "trainer: {max_rounds: 1_000}\n",
        ["trainer.max_rounds: 1_000 is read in different ways", "decimal digits"],
    ),
    "int-octal": ("trainer: {max_rounds: 010}\n", ["010 is read in different ways"]),
    "int-sexagesimal": ("trainer: {max_rounds: 1:30}\n", ["1:30 is read in different ways"]),
    "int-list": (
        "trainer: {max_rounds: [3]}\n",
        ["trainer.max_rounds must be an integer, got [3]"],
    ),
    "seed-negative": (
        "seed_everything: -1\n",
        ["seed_everything must be an integer from 0", "got -1"],
    ),
    "seed-bool": ("seed_everything: true\n", ["seed_everything must be an integer, got true"]),
    "bool-yes": (
        "trainer: {channels_last: yes}\n",
        ["bad.yaml:1: trainer.channels_last: yes is read in different ways: write true or false"],
    ),
    "bool-text": (
        "trainer: {save_in_int8: 'on'}\n",
        ["trainer.save_in_int8 must be true or false, got 'on'"],
    ),
    "bool-int": (
        "trainer: {save_in_int8: 1}\n",
        ["trainer.save_in_int8 must be true or false, got 1"],
    ),
    "bool-or-word": (
        "trainer: {channels_last: 'on'}\n",
        ["trainer.channels_last must be true or false or one of auto, got 'on'"],
    ),
    "bool-or-word-int": (
        "trainer: {channels_last: 1}\n",
        ["trainer.channels_last must be true or false or one of auto, got 1"],
    ),
    "float-inf": (
        "trainer: {gradient_clip_val: .inf}\n",
        ["trainer.gradient_clip_val: numbers must be finite, got .inf"],
    ),
    "float-nan": (
        "algorithm: {class_path: FedProx, init_args: {mu: .nan}}\n",
        ["algorithm.mu: numbers must be finite, got .nan"],
    ),
    "float-overflow": (
        "model: {optimizer: {class_path: SGD, init_args: {lr: 1e999}}}\n",
        ["finite, got 1e999"],
    ),
    "float-list": (
        "model: {optimizer: {class_path: SGD, init_args: {lr: [0.1, 0.01]}}}\n",
        ["model.optimizer.lr must be a number, got [0.1, 0.01]"],
    ),
    "float-zero": (
        "trainer: {gradient_clip_val: 0.0}\n",
        ["trainer.gradient_clip_val must be positive and finite"],
    ),
    "choice": (
        "trainer: {sampling: stratifed}\n",
        ["one of stratified, uniform, poisson, got 'stratifed'", "'stratified'"],
    ),
    "precision": ("trainer: {precision: 8}\n", ["trainer.precision must be one of 32", "got 8"]),
    "text-empty": ("trainer: {name: ''}\n", ["trainer.name must not be empty"]),
    "text-nul": (
        'trainer: {name: "a\\0b"}\n',
        ["bad.yaml:1: trainer.name: must not hold the character NUL"],
    ),
    "root-nul": (
        'trainer: {default_root_dir: "a\\0b"}\n',
        ["bad.yaml:1: trainer.default_root_dir: must not hold"],
    ),
    "text-number": (
        "trainer: {default_root_dir: 123}\n",
        ["trainer.default_root_dir must be text, got 123"],
    ),
    "section-null": ("trainer: null\n", ["trainer must be a mapping, got null"]),
    "section-list": ("trainer: [max_rounds]\n", ["trainer must be a mapping, got ['max_rounds']"]),
    "list-item": ("trainer: {devices: [a]}\n", ["trainer.devices[0] must be an integer, got 'a'"]),
    "list-empty": (
        "trainer: {devices: []}\n",
        ["accelerator 'cpu' with devices [] cannot be used here"],
    ),
    "size-null": ("data: {batch_size: null}\n", ["data.batch_size must be an integer, got null"]),
    "shape-text": ("data: {shape: 8x8}\n", ["data.shape must be a list, got '8x8'"]),
    # ---- values that only the constructors know
    "cohort": (
        "trainer: {clients_per_round: 5}\n",
        ["trainer.clients_per_round must be at most 4", "got 5"],
    ),
    "cohort-fraction": (
        "trainer: {clients_per_round: 1.5}\n",
        ["trainer.clients_per_round must be a count, or a fraction"],
    ),
    "min-clients": (
        "trainer: {min_clients: 9}\n",
        ["trainer.min_clients must be at most 4", "got 9"],
    ),
    "num-clients": (
        "trainer: {num_clients: 9}\n",
        ["trainer.num_clients must be 4, the sum of the counts", "got 9"],
    ),
    "batch-size": (
        "data: {batch_size: 0}\n",
        ["data.batch_size must be an integer from 1 to 2,147,483,648, got 0"],
    ),
    "val-fraction": (
        "data: {val_fraction: 1.0}\n",
        ["data.val_fraction must be in [0, 1), got 1.0"],
    ),
    "alpha": (
        "data: {partition: {class_path: Dirichlet, init_args: {alpha: 0}}}\n",
        ["Dirichlet.alpha must be positive and finite, got 0"],
    ),
    "mu": (
        "algorithm: {class_path: FedProx, init_args: {mu: -1.0}}\n",
        ["FedProx.mu must be finite and at least 0, got -1"],
    ),
    "net": ("model: {net: cnnn}\n", ["net must be one of mlp", "did you mean 'cnn'"]),
    "column": (
        "data: {partition: {class_path: ByColumn, init_args: {column: nope.npy}}}\n",
        ["nope.npy"],
    ),
    "accelerator": ("trainer: {accelerator: warp}\n", ["accelerator='warp'"]),
    "strategy": ("trainer: {strategy: fsdp}\n", ["strategy must be", "got 'fsdp'"]),
}

OPTIONS = {
    "key": (
        ["--algoritm", "FedProx"],
        ["--algoritm is an unknown option", "did you mean 'algorithm'?"],
    ),
    "config-misspelt": (["--confg", "a.yaml"], ["--confg is", "did you mean 'config'?"]),
    "nested": (
        ["--trainer.max_ronds=3"],
        ["--trainer.max_ronds is an unknown option", "did you mean 'max_rounds'?"],
    ),
    "group-abbreviated": (
        ["--train.max_rounds", "3"],
        ["--train is an unknown option", "did you mean 'trainer'?"],
    ),
    "abbreviated": (
        ["--trainer.max_r", "3"],
        ["--trainer.max_r is an unknown option", "did you mean 'max_rounds'?"],
    ),
    "init-arg": (
        ["--data.bach_size", "8"],
        ["--data.bach_size is an unknown option of FakeImages", "'batch_size'"],
    ),
    "init-arg-long": (
        ["--data.init_args.bach_size", "8"],
        ["--data.bach_size is an unknown option", "'batch_size'"],
    ),
    "init-arg-of-new": (
        ["--data", "Digits", "--data.shape", "[1]"],
        ["--data.shape is an unknown option of Digits"],
    ),
    "option-of-another": (
        ["--data.partition=IID", "--data.partition.alpha", "0.3"],
        ["--data.partition.alpha is an unknown option of IID; name a class that has it: Dirichlet"],
    ),
    "option-of-a-default": (
        ["--data=Digits", "--data.partition.alpha", "0.3"],
        ["--data.partition.alpha is an unknown option of IID; name a class that has it: Dirichlet"],
    ),
    "class": (["--algorithm=FedPorx"], ["--algorithm must name an Algorithm", "'FedProx'"]),
    "callback-of-none": (
        ["--trainer.callbacks.every_n_rounds", "3"],
        ["--trainer.callbacks must be a list or null, got {'every_n_rounds': '3'}"],
    ),
    "callback": (
        ["--trainer.callbacks+=os.system"],
        ["must name a Callback, got 'os.system' of the standard library"],
    ),
    "positional": (["foo"], ["unexpected argument 'foo'; options start with --"]),
    "short": (["-x"], ["unexpected argument '-x'"]),
    "dashes": (["--"], ["unexpected argument '--'; options start with --"]),
    "valueless": (["--trainer.max_rounds"], ["--trainer.max_rounds", "expected one argument"]),
    "config-missing": (
        ["--config", "nope.yaml"],
        ["--config must be a YAML file", "no file 'nope.yaml'"],
    ),
    "config-folder": (["--config", "."], ["--config must be a YAML file", "no file '.'"]),
    "config-inline": (["--config", "{trainer: {max_rounds: 3}}"], ["--config must be a YAML file"]),
    "config-nothing": (["--config"], ["--config must be a YAML file"]),
    "int-float": (
        ["--trainer.max_rounds", "10.0"],
        ["--trainer.max_rounds must be an integer, got 10.0"],
    ),
    "int-quoted": (
        ["--trainer.max_rounds", "'10'"],
        ["--trainer.max_rounds must be an integer, got '10'"],
    ),
    "int-null": (
        ["--trainer.max_rounds", "null"],
        ["--trainer.max_rounds must be an integer, got null"],
    ),
    "seed": (["--seed_everything", "1.5"], ["--seed_everything must be an integer, got 1.5"]),
    "float-text": (
        ["--model.optimizer.lr", "inf"],
        ["--model.optimizer.lr must be a number, got 'inf'"],
    ),
    "float-inf": (
        ["--model.optimizer.lr", ".inf"],
        ["--model.optimizer.lr", "numbers must be finite"],
    ),
    "bool": (
        ["--trainer.channels_last", "yes"],
        ["--trainer.channels_last", "write true or false"],
    ),
    "yaml": (["--clients", "{8: 5"], ["--clients cannot be used: not valid YAML"]),
    "duplicate": (["--clients", "{8: 5, 8: 3}"], ["--clients cannot be used: 8 is given twice"]),
    "fleet": (["--clients", "{1: 5}"], ["clients[0]: bits must be 2..16 or 32, got 1"]),
    "section": (["--trainer", "tiny.yaml"], ["--trainer must be a mapping, got 'tiny.yaml'"]),
    "server-lr": (
        ["--trainer.server_optimizer", "torch.optim.Adam", "--trainer.server_optimizer.lr", "-1"],
        ["server_optimizer cannot be used", "Invalid learning rate: -1.0"],
    ),
    "server-betas": (
        [
            "--trainer.server_optimizer",
            "torch.optim.Adam",
            "--trainer.server_optimizer.betas",
            "[2, 2]",
        ],
        ["server_optimizer cannot be used", "Invalid beta parameter"],
    ),
    "server-closure": (
        ["--trainer.server_optimizer", "torch.optim.LBFGS"],
        ["server_optimizer cannot be used", "'closure'"],
    ),
    "server-sparse": (
        ["--trainer.server_optimizer", "torch.optim.SparseAdam"],
        ["does not support dense gradients"],
    ),
    "optimizer-lr": (
        ["--model.optimizer.lr", "-0.1"],
        ["Classifier.configure_optimizers", "learning rate: -0.1"],
    ),
    "optimizer-momentum": (["--model.optimizer.momentum", "-1"], ["Invalid momentum value: -1.0"]),
    "optimizer-betas": (
        ["--model.optimizer", "Adam", "--model.optimizer.betas", "[2, 2]"],
        ["Invalid beta"],
    ),
    "scheduler": (
        [
            "--model.lr_scheduler",
            "torch.optim.lr_scheduler.StepLR",
            "--model.lr_scheduler.step_size",
            "0",
        ],
        ["Classifier.configure_optimizers asks for what torch refuses", "modulo by zero"],
    ),
    "batch-size-huge": (
        ["--data.batch_size", "9" * 20],
        ["data.batch_size must be an integer from 1 to 2,147,483,648"],
    ),
    "num-train-huge": (
        ["--data.num_train", "100000000000"],
        ["FakeImages.num_train must be an integer from 1 to 2,147,483,648"],
    ),
    "data-seed-huge": (
        ["--data.seed", "1" + "0" * 23],
        ["FakeImages.seed must be an integer from 0 to 4,6"],
    ),
    "workers-huge": (
        ["--data.num_workers", "100000"],
        ["data.num_workers must be an integer from 0 to 1,024, got 100000"],
    ),
    "shape-huge": (
        ["--data.shape", "[100000, 100000, 100000]"],
        ["FakeImages must take at most half", "memory"],
    ),
    "shape-product": (
        ["--data.shape", "[1, 2000000000, 2000000000]"],
        ["FakeImages must take at most half"],
    ),
    "num-train-too": (
        ["--data.num_train", "2000000000"],
        ["give smaller num_train, num_test, num_classes or shape"],
    ),
    "num-classes-huge": (
        ["--data.num_classes", "2000000000"],
        ["FakeImages must take at most half"],
    ),
    "hidden-huge": (
        ["--model.net_kwargs", "{hidden: [2000000000, 2000000000]}"],
        ["need less memory"],
    ),
    "monitor": (
        ["--trainer.monitor", "val/nonsense"],
        ["must be a logged metric, got 'val/nonsense'"],
    ),
    "monitor-bare": (
        ["--trainer.monitor", "acc"],
        ["must be a logged metric, got 'acc'; did you mean 'val/acc'?"],
    ),
    "monitor-group": (
        ["--trainer.monitor", "val/acc_int4"],
        ["got 'val/acc_int4'; did you mean 'val/acc_int8'?"],
    ),
    "name-long": (
        ["--trainer.name", "n" * 300],
        ["--trainer.name must have at most", "255 between two slashes"],
    ),
    "name-long-utf8": (
        ["--trainer.name", "é" * 200],
        ["--trainer.name must have at most", "got 400 bytes"],
    ),
    "name-deep": (
        ["--trainer.name", "/".join(["a" * 200] * 25)],
        ["--trainer.name must have at most 3000 bytes"],
    ),
    "root-long": (
        ["--trainer.default_root_dir", "n" * 300],
        ["--trainer.default_root_dir must have at most"],
    ),
    "name-no-utf8": (
        ["--trainer.name", "\udcff"],
        ["--trainer.name must be valid UTF-8, got '\\udcff'"],
    ),
    "group-name-long": (
        ["--clients", f"[{{bits: {{weights: 4, name: {'n' * 101}}}, count: 2}}]"],
        ["clients[0]: BitSpec.name must have at most 100 bytes"],
    ),
    "threads": (
        ["--trainer.threads", "100000"],
        ["--trainer.threads must be at most", "got 100000"],
    ),
    "devices": (
        ["--trainer.devices", "100000"],
        ["--trainer.devices must be at most", "got 100000"],
    ),
    # several problems of one algorithm are lines of their own
    "private": (
        ["--algorithm", "DPFedAvg", "--trainer.clients_per_round", "2"],
        ["error: DPFedAvg counts each client once: trainer.weights must be uniform"],
    ),
    "ambiguous": (
        ["--trainer.logger", "CSVLogger"],
        ["trainer.logger", "Multiple subclasses with name CSVLogger"],
    ),
    "required": (
        ["--trainer.logger", "lightning.fabric.loggers.CSVLogger"],
        ["trainer.logger", "root_dir", "required"],
    ),
}


def check(code: int, err: str, expected: list[str], folder: Path, before: set[Path]) -> None:
    assert code == 2
    assert "Traceback" not in err
    for text in expected:
        assert text in err
    assert all(line.startswith("error: ") and len(line) <= 407 for line in err.splitlines())
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize(("text", "expected"), FILES.values(), ids=FILES.keys())
def test_a_bad_file_is_refused(
    bhfl: Command, tmp_path: Path, text: str, expected: list[str]
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    before = set(tmp_path.rglob("*"))
    code, _, err = bhfl("fit", "--config", "tiny.yaml", "--config", "bad.yaml")
    check(code, err, expected, tmp_path, before)


@pytest.mark.parametrize(("args", "expected"), OPTIONS.values(), ids=OPTIONS.keys())
def test_a_bad_option_is_refused(
    bhfl: Command, tmp_path: Path, args: list[str], expected: list[str]
) -> None:
    before = set(tmp_path.rglob("*"))
    code, _, err = bhfl("fit", "--config", "tiny.yaml", *args)
    check(code, err, expected, tmp_path, before)


@pytest.mark.parametrize(
    "name",
    ["tab", "alias-bomb", pytest.param("class-popen-callback", marks=pytest.mark.slow)],
)
def test_a_bad_file_is_refused_by_the_real_command(
    real_bhfl: Command, tmp_path: Path, name: str
) -> None:
    text, expected = FILES[name]
    (tmp_path / "bad.yaml").write_text(text)
    before = set(tmp_path.rglob("*"))
    code, _, err = real_bhfl("fit", "--config", "tiny.yaml", "--config", "bad.yaml")
    check(code, err, expected, tmp_path, before)


def test_a_module_of_the_standard_library_is_not_even_imported(bhfl: Command) -> None:
    sys.modules.pop("this", None)
    assert bhfl("fit", "--config", "tiny.yaml", "--algorithm", "this.s").code == 2
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(0)", "importing MODULE ends the process"),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("raise RuntimeError('not here')", "RuntimeError: not here"),
    ],
)
@pytest.mark.parametrize("option", ["--algorithm", "--trainer.callbacks+", "--model.optimizer"])
def test_a_module_that_cannot_be_imported(
    bhfl: Command, tmp_path: Path, source: str, why: str, option: str
) -> None:
    module = f"own_broken_{abs(hash((source, option)))}"
    (tmp_path / f"{module}.py").write_text(source)
    code, _, err = bhfl("fit", "--config", "tiny.yaml", f"{option}={module}.Mine")
    assert code == 2
    assert why.replace("MODULE", module) in err
    assert f"{module}.py, line 1" in err or "No module" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_all_problems_come_at_once(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "algorithm: FedPorx\ntrainer: {max_ronds: 3, min_clients: '1'}\nclients: {1: 3}\n"
    )
    problems = bhfl("fit", "--config", "bad.yaml", "--data.batch_size", "x").problems
    assert [p.split(" ")[1] for p in problems[:4]] == [
        "algorithm",
        "trainer.max_ronds",
        "trainer.min_clients",
        "clients[0]:",
    ]
    assert problems[4].startswith("--data.batch_size must be an integer")
    assert len(problems) == 5


def test_problems_of_the_trainer_come_at_once(bhfl: Command) -> None:
    problems = bhfl(
        "fit", "--config", "tiny.yaml", "--trainer.max_rounds=0", "--trainer.patience=0"
    ).problems
    assert [problem.split(" must ")[0] for problem in problems] == [
        "--trainer.max_rounds",
        "--trainer.patience",
    ]


def test_very_many_problems_are_counted(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("".join(f"zzz{i}: 1\n" for i in range(30)))
    problems = bhfl("fit", "--config", "tiny.yaml", "--config", "bad.yaml").problems
    assert len(problems) == 21
    assert problems[-1] == "and 10 more"


def test_the_fleet_must_be_given(bhfl: Command) -> None:
    assert "clients is missing" in bhfl("fit").problems[0]


def test_an_unknown_command_is_refused(bhfl: Command) -> None:
    assert bhfl("fti").problems == ["unknown command 'fti'; did you mean 'fit'?"]
    assert bhfl("reprot").problems == ["unknown command 'reprot'; did you mean 'report'?"]


def test_other_processes_of_a_run_stay_silent(
    bhfl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert bhfl("fit", "--config", "nope.yaml") == (2, "", "")
    # a process without others speaks, whatever is left in its environment
    for size in ("1", None):
        if size is None:
            monkeypatch.delenv("WORLD_SIZE")
        else:
            monkeypatch.setenv("WORLD_SIZE", size)
        assert bhfl("fit", "--config", "nope.yaml").problems
