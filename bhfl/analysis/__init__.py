"""What quantising a trained model costs, layer by layer."""

from bhfl.analysis.analyze import Analysis, analyze

__all__ = ["Analysis", "analyze"]
