"""What all processes of a run must have in common: its options, and its folder."""

import secrets
from contextlib import suppress
from pathlib import Path

from lightning.fabric import Fabric

from bhfl.engine.processes import gather
from bhfl.settings import MAKE_THE_RUN, Role, Told, differences


def check_same_options(fabric: Fabric, told: Told) -> None:
    """Compare what this process was told with what rank 0 was.

    Raises:
        ValueError: Those of a process differ; on all processes, with the first differences.
    """
    if fabric.world_size == 1:
        return
    # numerics too: with other threads, one process would come to other bits than the next
    different = differences(fabric.broadcast(told), told, (*MAKE_THE_RUN, Role.NUMERICS))
    for rank, found in enumerate(gather(fabric, [different])):
        if found:
            listed = ", ".join(found[:5])
            raise ValueError(
                f"all processes must be started with the same options, got others in rank {rank} "
                f"(rank 0 -> rank {rank}): {listed}"
            )


def check_common_folder(fabric: Fabric, folder: Path) -> None:
    """Prove that all processes see one and the same run folder, because each keeps its clients'
    state there.

    Args:
        fabric: The fabric of all processes.
        folder: The run folder, which rank 0 has made or found.

    Raises:
        ValueError: Some do not; on all processes.
    """
    if fabric.world_size == 1:
        return
    token: str = fabric.broadcast(secrets.token_hex(16))
    # a random name, which no other folder has by chance; as of a temporary file, so that the next
    # run removes one that a kill leaves behind
    mark = folder / f".{token}.tmp"
    try:
        if fabric.is_global_zero:
            mark.touch(exist_ok=False)
        # nobody looks for the mark before it is there
        fabric.barrier()
        blind = [rank for rank, sees in enumerate(gather(fabric, [mark.exists()])) if not sees]
    finally:
        if fabric.is_global_zero:
            mark.unlink(missing_ok=True)
    if not blind:
        return
    if fabric.is_global_zero:
        for made in (folder / "checkpoints", folder):
            # it holds something where it is of an earlier run
            with suppress(OSError):
                made.rmdir()
    raise ValueError(
        f"all processes must share the run folder {folder}, got ranks {', '.join(map(str, blind))} "
        "that do not see what rank 0 writes there: set trainer.default_root_dir to a folder that "
        "all nodes have in common"
    )
