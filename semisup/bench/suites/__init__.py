"""What is run: suites, their runs and the baselines next to them."""
