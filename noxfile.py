"""The default tests with each Python that is promised: ``nox``, or ``nox -s tests-3.13``.

What follows ``--`` goes to pytest: ``nox -s tests-3.12 -- tests/quant``. Python 3.14 is not
excluded, and untested.
"""

import nox

PYTHONS = ["3.11", "3.12", "3.13"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """What ``make test`` runs, without ruff and mypy, whose outcome is the same everywhere."""
    session.install("-e", ".[dev]")
    marks = "not slow and not gpu and not network and not wheel"
    session.run("python", "-m", "pytest", "-n", "2", "-m", marks, *session.posargs)
