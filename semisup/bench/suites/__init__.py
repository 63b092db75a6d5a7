"""What is run: suites, their runs and the baselines beside them."""
