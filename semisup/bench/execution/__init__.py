"""How it is run: jobs on a Dask cluster, their progress, and the record in MLflow."""
