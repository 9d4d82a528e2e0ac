"""All rounds of one run: its folder is opened, its rows and checkpoints are written, its end is
tested.
"""

import shlex
import time
import warnings
from contextlib import suppress
from pathlib import Path

from bhfl.comm import encoded_bytes
from bhfl.engine.checkpoint import State, check_storable
from bhfl.engine.client.store import ClientStore
from bhfl.engine.downlink import as_sent
from bhfl.engine.ending import STANDING
from bhfl.engine.failures import failed_in_a_row
from bhfl.engine.folder import new_run
from bhfl.engine.forewarn import forewarn
from bhfl.engine.formats import with_format
from bhfl.engine.frozen import without_lost
from bhfl.engine.monitor import check_first, check_logged, doubt, unseen
from bhfl.engine.per_client import spread, test_rows, training_rows
from bhfl.engine.private import is_public
from bhfl.engine.processes import check_common_folder, check_same_options, gather
from bhfl.engine.records import ClientRecord, problems, round_metrics, with_updates
from bhfl.engine.references import References
from bhfl.engine.result import FitResult, result_of
from bhfl.engine.resume import check_told, fitting
from bhfl.engine.roster import group_sizes, one_of_each
from bhfl.engine.rounds import run_round
from bhfl.engine.run import Run
from bhfl.engine.session import Session
from bhfl.engine.types import Row
from bhfl.engine.written import configuration
from bhfl.files import write_text
from bhfl.settings import Role
from bhfl.told import SETTINGS, differences


def fit(session: Session, ckpt_path: str | Path | None) -> FitResult:
    """All rounds and the test; what the run came to.

    Args:
        session: Opened for a fit and its test.
        ckpt_path: Where the run goes on from; None for a new one.
    """
    _foresee(session, fresh=ckpt_path is None)
    run = open_run(session, ckpt_path)
    try:
        if why := _over(session, run):
            _warn(session, f"nothing is left to train: {why}")
        session.call("on_fit_start")
        _hear_callbacks(session, run)
        if ckpt_path is None and not run.stopped and session.settings.output.validate_first:
            first = session.evaluate("val")
            run.log_first(first)
            check_first(session.monitors, session.settings, first)
        while not _over(session, run):
            _round(session, run)
        session.load_global()
        session.module.on_fit_end()
        metrics = session.evaluate("test")
        run.log_clients(test_rows(session.server.round, session.evaluator.own, session.fleet))
        run.log_correct(session.evaluator.correct)
        session.tear_down()
        run.loggers.end(metrics, session.server.round)
        session.call("on_test_end", metrics=metrics)
        run.loggers.close()
        # last of the files, and while nobody else may write here: who finds a summary takes the
        # run for done
        run.finish(metrics)
    # an interrupt is no failure: the run can go on from its checkpoint
    except Exception as error:
        # where that fails too, `error` says more
        with suppress(OSError):
            run.finish({}, error)
        raise
    finally:
        run.close()
    session.call("on_fit_end", metrics=metrics)
    return result_of(session, run, metrics)


def _over(session: Session, run: Run) -> str:
    """Why no more rounds are trained; empty where they are."""
    done = session.server.round
    stopping = session.settings.stopping
    if done >= stopping.max_rounds:
        return f"{done} rounds are done, max_rounds is {stopping.max_rounds}"
    if run.stopped:
        return (
            f"a callback stopped the run after round {done}; it goes on with another max_rounds, "
            "patience or min_delta"
        )
    if run.out_of_patience:
        return f"its patience of {stopping.patience} ended after round {done}; a larger one goes on"
    return ""


def _foresee(session: Session, fresh: bool) -> None:
    """Say and decide what can be known before the first round."""
    data = session.data
    settings = session.settings
    fleet = session.fleet
    if session.fabric.is_global_zero:
        forewarn(session.module, fleet, data, settings, fresh=fresh)
    if session.timing:
        STANDING.at("counting the operations of a step")
        session.timing.measure_(session.worker, data)
        session.timing.check_deadline(_least_downlink(session), data)
    # a resumed run keeps to what it was begun with
    if fresh:
        STANDING.at("trying channels_last")
        session.server = with_format(session.server, settings, session.worker, fleet, data)


def _least_downlink(session: Session) -> int:
    """Bytes of the first model as the client is sent it that receives the least."""
    if not session.algorithm.communicates:
        return 0
    model = session.server.params
    return min(
        encoded_bytes(as_sent(model, client, session.server))
        for client in one_of_each(session.fleet.at(0))
    )


def open_run(session: Session, ckpt_path: str | Path | None) -> Run:
    """Find or make the run folder, take up a checkpoint's state, open the logs."""
    STANDING.at("opening the run folder")
    fabric = session.fabric
    settings = session.settings
    partition = session.data.partition_record()
    files = {"partition": partition, SETTINGS: session.told}
    # a digest of the split among the options: a run goes on with the same samples or not at all
    of_split = {**session.told[Role.RESULT.value], "partition": partition.get("sha256")}
    session.told = {**session.told, Role.RESULT.value: of_split}
    # before a folder is made: what is refused leaves nothing behind
    check_same_options(fabric, session.told)
    check_storable(vars(session.server), "ServerState")
    _warn(session, doubt(settings.choice.monitor, settings.choice.mode))
    # once, because each process would make a folder of its own
    found = _folder(session, ckpt_path) if fabric.is_global_zero else (Path(), None)
    folder, state = fabric.broadcast(found)
    check_common_folder(fabric, folder)
    run = Run(settings, folder, fabric.is_global_zero, session.bests)
    session.trainer.run = run
    if state is not None:
        session.take_up(fitting(state, session.server))
        session.use_backends(state["config"])
        run.restore(state)
        # with other options of its length it is the same run made longer
        run.stopped &= not differences(state["config"], session.told, [Role.LENGTH])
    session.trainer.should_stop = run.stopped
    session.store, session.references = run.store, run.references
    session.server = without_lost(session.server, session.frozen, session.clients, fabric)
    try:
        run.begin(session.server, files)
        # the command line writes its own
        if fabric.is_global_zero and not session.trainer.config:
            write_text(folder / "config.yaml", configuration(session))
        session.place.open(run.folder, run.loggers.active)
        # rank 0 has dropped what came after the restored round before another process reads any
        fabric.barrier()
    except BaseException:
        # the folder is left to others
        run.close()
        raise
    return run


def _folder(session: Session, ckpt_path: str | Path | None) -> tuple[Path, State | None]:
    trainer = session.trainer
    if ckpt_path is None:
        return new_run(trainer.root), None
    folder, state = trainer.find_checkpoint(ckpt_path)
    session.use_backends(state["config"])
    check_told(ckpt_path, state["config"], session.told)
    # it raises where what clients keep is not all there
    ClientStore.listed(folder, state["clients"])
    References.listed(folder, state["references"])
    return folder or new_run(trainer.root), state


def _round(session: Session, run: Run) -> None:
    """One round with all that is measured, written and told of it."""
    start = time.perf_counter()
    settings = session.settings
    STANDING.at(f"beginning round {session.server.round + 1}")
    session.server, records = run_round(session, session.server, run.history)
    round = session.server.round
    tell = session.fabric.is_global_zero
    run.failed_rounds = failed_in_a_row(records, run.failed_rounds, round, settings, tell=tell)
    row = _row(session, run, records)
    last = round >= settings.stopping.max_rounds
    every = settings.output.check_val_every_n_rounds
    measured = session.evaluate("val") if last or round % every == 0 else {}
    row |= measured
    if round == min(every, settings.stopping.max_rounds):
        _warn(session, unseen(settings.choice.monitor, row, measured))
    # the clock of rank 0 on all: the history must be equal, for schedules and patience read it
    seconds = session.fabric.broadcast(time.perf_counter() - start)
    run.seconds += seconds
    row |= {**run.ledger.metrics(), "time/round_s": seconds}
    row["problems"] = problems(records)
    STANDING.at(f"saving round {round}")
    # before the checkpoint, which holds the rows of its rounds; one that a kill leaves beyond it is
    # dropped when the run goes on
    run.log(row)
    told = settings.fleet.availability is not None
    run.log_clients(training_rows(round, records, session.fleet, availability=told))
    if present := {record.group for record in with_updates(records)}:
        # clients' own metrics are there where the group has an update
        later = tuple(f"_{label}" for label in group_sizes(session.fleet).keys() - present)

        def waits(monitor: str) -> bool:
            return monitor.endswith(later) or (not measured and monitor.startswith("val/"))

        check_logged(session.monitors, run.history, waits)
    # who has asked for the end by now has asked for it in the checkpoint too
    _hear_callbacks(session, run)
    best = run.improved(row)
    due = last or run.out_of_patience or round % settings.output.checkpoint_every_n_rounds == 0
    _save(session, run, best, due, records)
    session.call("on_round_end", metrics=row)
    _hear_callbacks(session, run)
    if run.stopped:
        # where a resumed run finds that it has come to its end
        _save(session, run, [], True, records)


def _hear_callbacks(session: Session, run: Run) -> None:
    """Find out whether a callback of any process has asked for the end, on all processes alike."""
    trainer = session.trainer
    run.stopped = any(gather(session.fabric, [trainer.should_stop]))
    trainer.should_stop = run.stopped


def _row(session: Session, run: Run, records: list[ClientRecord]) -> Row:
    """What training a round came to, by tag."""
    server = session.server
    metrics = round_metrics(records, availability=session.settings.fleet.availability is not None)
    if session.algorithm.private:
        # what clients call so would pass for a metric of the server's, which all may follow
        groups = group_sizes(session.fleet)
        metrics = {tag: metrics[tag] for tag in metrics if not is_public(tag, groups)}
    row = {"round": server.round, **metrics, **server.metrics}
    measured = {record.client: record.measured for record in with_updates(records)}
    row |= spread("val", measured, session.fleet)
    row |= run.ledger.add(records)
    if session.timing:
        before = run.history[-1]["time/simulated_s"] if run.history else 0.0
        row |= session.timing.metrics(server.round - 1, records, before)
    return row | session.hooks.summarize(server, row)


def _warn(session: Session, text: str) -> None:
    """Say something once, where there is anything to say."""
    if text and session.fabric.is_global_zero:
        warnings.warn(text, stacklevel=3)


def _save(
    session: Session, run: Run, best: list[str], due: bool, records: list[ClientRecord]
) -> None:
    """Write the checkpoints that are due, and drop what none of them can ask for."""
    run.save(session.server, session.told, best, due, [record.client for record in records])
    if due:
        STANDING.saved = (
            f"--ckpt_path {shlex.quote(str(run.folder))} goes on from round {session.server.round}"
        )
    session.fabric.barrier()
