"""What quantising a trained model costs, and what a fleet costs before it trains, by layer."""

from bhfl.analysis.analyze import Analysis, analyze
from bhfl.analysis.profile import Profile, profile

__all__ = ["Analysis", "Profile", "analyze", "profile"]
