"""``bhfl sweep``: a matrix of runs, of which what is missing is run."""
