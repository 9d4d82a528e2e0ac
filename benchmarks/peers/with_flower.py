"""Flower 1.42: rounds of its simulation over Ray, run by the environment that has it.

Clients compute in processes of Ray, one thread each; the CPU time of all processes counts.
"""

import os
import sys
from pathlib import Path

MARK = f"BHFL_PEER_{os.getpid()}"
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", MARK: "1"}

import torch  # noqa: E402
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402

from benchmarks.peers.work import CNN, Turns, images, norm, test, test_images, train  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
_images = {}


def cpu() -> float:
    """The CPU seconds of this process and of all that it has started, Ray's daemons too."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = (
                int(folder.name) == os.getpid()
                or MARK.encode() in (folder / "environ").read_bytes()
            )
            if ours:
                # after the name, which may hold anything, and its closing bracket
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return ticks / TICKS


client = ClientApp()


@client.train()
def _train(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    clients = int(context.node_config["num-partitions"])
    if not _images:
        _images[0] = images(clients)
    pixels, labels = (values[int(context.node_config["partition-id"])] for values in _images[0])
    model = CNN()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train(model, pixels, labels)
    told = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(labels)}),
    }
    return Message(content=RecordDict(told), reply_to=message)


server = ServerApp()


@server.main()
def _serve(grid: Grid, context: Context) -> None:
    torch.set_num_threads(1)
    held_out = test_images()
    turns = Turns(cpu)
    model = CNN()

    def over(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if number:
            model.load_state_dict(arrays.to_torch_state_dict())
            test(model, *held_out)
            if not turns.over(norm(model.state_dict())):
                os._exit(0)
        return None

    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0)
    strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=1 << 30, evaluate_fn=over)


if __name__ == "__main__":
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, int(sys.argv[1]), backend_config=resources)
