"""The Flower app: all that runs of bhfl in Flower's own processes. It carries bytes, and imports
nothing heavy.
"""
