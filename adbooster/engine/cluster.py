"""The Ray cluster a job runs on: the one that RAY_ADDRESS names, or one of this machine alone."""

import logging
import os
import tempfile
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def start() -> None:
    """Connect to the cluster of RAY_ADDRESS (a submitted job has it), or start one here; a second call does nothing."""
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # this machine alone; otherwise Ray leaves a token in the home
    cpus = int(os.environ.get("ADBOOSTER_LOCAL_CPUS", 0)) or max(8, os.cpu_count() or 1)
    ray.init(
        address="local",
        num_cpus=cpus,  # logical: actors wait on files and each other more than they compute
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _temp_dir=tempfile.mkdtemp(prefix="adb-", dir="/tmp"),
    )


def beside_driver(kind: type, *args: Any, **options: Any) -> Any:
    """A Ray actor of `kind(*args)` on the driver's node, lost only with it; it takes no CPU and is started again if it ends."""
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(
        num_cpus=0,
        max_restarts=-1,
        scheduling_strategy=this_node,  # pyright: ignore[reportArgumentType]  # Ray's stub leaves this strategy out
        **options,
    )(kind)
    return actor.remote(*args)


def stop() -> None:
    """Disconnect, and end a cluster that `start` started."""
    ray.shutdown()


def address() -> str:
    """Where another process finds this cluster, as RAY_ADDRESS."""
    return os.environ.get("RAY_ADDRESS") or ray.get_runtime_context().gcs_address
