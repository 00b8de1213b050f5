"""A Ray cluster of two nodes on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

HOSTS = ("127.0.0.2", "127.0.0.3")  # Ray would replace 127.0.0.1
STORE_BYTES = 80 * 2**20  # the least that Ray takes


@contextmanager
def cluster() -> Iterator[None]:
    """Two raylets with a core each; this process is connected to them."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a proxy that starts slowly is killed
        "OMP_NUM_THREADS": "1",
    }
    import ray  # takes seconds
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    try:
        for host in HOSTS:
            nodes.add_node(
                num_cpus=1,
                node_ip_address=host,
                object_store_memory=STORE_BYTES,
                include_dashboard=False,
            )
        ray.init(
            nodes.address,
            _node_ip_address=HOSTS[0],
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()
