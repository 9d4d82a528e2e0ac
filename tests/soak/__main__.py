"""Kills, mutations, lost processes, signals and full disks, by chance: ``python -m tests.soak
--minutes 20``.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import warnings

from tests.interrupts import hear_interrupts
from tests.soak import endings, kills, mutated
from tests.soak.schedule import Campaign, soak

CAMPAIGNS = {**mutated.CAMPAIGNS, **kills.CAMPAIGNS, **endings.CAMPAIGNS}


def main() -> int:
    """Read the options, say what will be done, and do it."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=20, help="no attempt begins after these (default 20)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="of the first attempt of each campaign; drawn where it is not given",
    )
    parser.add_argument(
        "--only", default=",".join(CAMPAIGNS), help="campaigns, separated by commas"
    )
    parser.add_argument("--once", action="store_true", help="one attempt of each campaign")
    options = parser.parse_args()
    unknown = set(options.only.split(",")) - set(CAMPAIGNS)
    if unknown:
        parser.error(f"no campaign {', '.join(sorted(unknown))}; there are {', '.join(CAMPAIGNS)}")
    seed = secrets.randbelow(10**6) * 1000 if options.seed is None else options.seed
    print(f"seed {seed}, {options.minutes:g} minutes: {options.only}", flush=True)
    hear_interrupts()
    warnings.simplefilter("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"  # of the runs too, which warn at every resume
    campaigns = [Campaign(name, CAMPAIGNS[name]) for name in options.only.split(",")]
    return soak(campaigns, options.minutes, seed, once=options.once)


if __name__ == "__main__":
    sys.exit(main())
