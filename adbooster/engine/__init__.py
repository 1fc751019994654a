"""Ray under the stages: pools of actors, staging, progress, metrics, the budget of a night, the cluster itself.

Enters: tables of rows and a stage, any class with `__call__(pa.Table) -> pa.Table`. Leaves: rows with exactly the given
schema, staged as Parquet parts below the run's folder. The only room that knows Ray Data; stage authors never see Ray.
"""

__all__ = [
    "budget",
    "cluster",
    "host_limits",
    "isolation",
    "language_model",
    "metrics",
    "permits",
    "pools",
    "progress",
    "stage_process",
    "stage_records",
    "stage_times",
    "staging",
]
