"""What can be told besides a run: who has which samples, what quantising a model costs by layer,
and what a fleet costs before it trains.
"""

from bhfl.analysis.analyze import Analysis, analyze
from bhfl.analysis.clients import partition
from bhfl.analysis.profile import Profile, profile

__all__ = ["Analysis", "Profile", "analyze", "partition", "profile"]
