"""The report of a sweep, tried on its runs as they will be: what no report of them could tell is
refused before hours of work.
"""

from bhfl.cli.reading import ConfigError
from bhfl.engine.fleet import Fleet
from bhfl.engine.monitor import validation_tags
from bhfl.report.command import compared
from bhfl.report.reading import Run
from bhfl.settings import Role
from bhfl.sweep.defaults import imported
from bhfl.sweep.survey import Survey


def rehearse(survey: Survey) -> None:
    """Refuse a metric that no run will log, and what else a report of all runs would refuse.

    Raises:
        ConfigError: Naming the key of the matrix.
    """
    asked = survey.plan.report
    runs = []
    for cell in survey.plan.cells:
        job = survey.job(cell)
        told = survey.configs(job)
        task = told[Role.TASK.value]
        fleet = Fleet(task["clients"])
        tags = validation_tags(imported(task["model"]), [group.label for group in fleet.groups])
        metric = asked["metric"] or told[Role.CHOICE.value]["trainer.monitor"]
        # of other metrics, and of models of others, nothing is known before
        if not tags or metric[:4] not in ("val/", "test"):
            tags.append(metric)
        row = {"round": 1, **dict.fromkeys(tags, 0.0)}
        runs.append(Run(job.folder, told, [row], {"rounds": 1, "metrics": row}, name=cell.method))
    try:
        compared(runs, **asked)
    except ValueError as error:
        raise ConfigError([str(error).replace("--", "report.")]) from error
