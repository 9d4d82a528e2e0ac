"""The report of a sweep, tried on its runs as they will be: what no report of them could tell is
refused before hours of work.
"""

from bhfl.checks import suggestion
from bhfl.cli.reading import ConfigError
from bhfl.engine.fleet import Fleet
from bhfl.engine.monitor import validation_tags
from bhfl.recorded import class_at
from bhfl.report.command import compared
from bhfl.report.reading import Run
from bhfl.settings import Role
from bhfl.sweep.survey import Survey
from bhfl.told import Told


def rehearse(survey: Survey) -> None:
    """Refuse metrics that no run will log, and what else a report of all runs would refuse.

    Raises:
        ConfigError: Naming the key of the matrix.
    """
    tune = survey.plan.matrix.tune
    for job in survey.trials:
        tags = _tags(survey.configs(job))
        if tune and tags and tune.metric not in tags:
            raise ConfigError(
                f"tune.metric must be a logged metric, got {tune.metric!r}"
                f"{suggestion(tune.metric, tags, others=False)}"
            )
    asked = survey.plan.report
    runs = []
    for cell in survey.plan.cells:
        job = survey.job(cell)
        told = survey.configs(job)
        tags = _tags(told)
        metric = asked["metric"] or told[Role.CHOICE.value]["trainer.monitor"]
        # of other metrics, and of models of others, nothing is known before
        if not tags or metric[:4] not in ("val/", "test"):
            tags.append(metric)
        row = {"round": 1, **dict.fromkeys(tags, 0.0)}
        runs.append(Run(job.folder, told, [row], {"rounds": 1, "metrics": row}, name=cell.method))
    try:
        compared(runs, **asked)
    except ValueError as error:
        raise ConfigError(str(error).replace("--", "report.")) from error


def _tags(told: Told) -> list[str]:
    """The tags of validation and test, where the class of the model tells them."""
    task = told[Role.TASK.value]
    fleet = Fleet(task["clients"])
    return validation_tags(class_at(task["model"]), [group.label for group in fleet.groups])
