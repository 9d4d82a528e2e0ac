"""The frozen tensors that clients keep: once in memory, and once on disk under their digest."""

from pathlib import Path

from bhfl.comm import PayloadError, decode, float_tensors
from bhfl.engine import checkpoint
from bhfl.engine.checkpoint import CheckpointError, digest
from bhfl.engine.client.plain import PlainWorker
from bhfl.engine.exchange import Task
from bhfl.files import durable


class FrozenCopy:
    """The copy of the clients that this process is; see `bhfl.engine.frozen`.

    Args:
        worker: It is given the tensors, and loads them with whatever else it loads.
        folder: Where they are kept; made when they are.
    """

    def __init__(self, worker: PlainWorker, folder: Path) -> None:
        self.worker = worker
        self.folder = folder
        self.sha256 = ""
        """The digest of what the worker was given."""
        self._on_disk = ""

    def take(self, task: Task) -> bool | None:
        """Give the module the frozen tensors that a task means.

        Args:
            task: What a client is asked to do.

        Returns:
            Whether the client has them; None where the task means none.

        Raises:
            PayloadError: It was sent others.
        """
        if not task.frozen:
            return None
        if task.body and task.frozen != self.sha256:
            self._receive(task)
        # what is measured leaves nothing behind
        if task.body and task.stage == "train" and task.frozen != self._on_disk:
            self._write()
        return self.find(task.frozen)

    def find(self, sha256: str) -> bool:
        """Whether the tensors of a digest are here; what is gone or damaged is not."""
        if sha256 != self.sha256:
            try:
                tensors = checkpoint.load(self._path(sha256), sha256)
            except CheckpointError:
                return False
            self.worker.untrained = self.worker.to_device(tensors)
            self.sha256 = self._on_disk = sha256
        return True

    def _receive(self, task: Task) -> None:
        sent = float_tensors(decode(task.body))
        if digest(sent) != task.frozen:
            raise PayloadError("the frozen tensors that were sent are not those of the task")
        self.worker.untrained = self.worker.to_device(sent)
        self.sha256 = task.frozen

    def _write(self) -> None:
        # but not the run folder: one that has vanished is an error
        self.folder.mkdir(exist_ok=True)
        tensors = {name: tensor.cpu() for name, tensor in self.worker.untrained.items()}
        with durable(self._path(self.sha256)) as file, checkpoint.without_crc():
            checkpoint.write(file, tensors, self.sha256)
        self._on_disk = self.sha256

    def _path(self, sha256: str) -> Path:
        return self.folder / f"frozen-{sha256[:16]}.pt"
