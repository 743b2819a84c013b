"""Which network interface the ranks of a job meet on."""

from __future__ import annotations

import os
from typing import Any

from ray.train.torch import TorchConfig

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


class MeetOnNodeAddress(TorchConfig):
    """Ray's process group, with gloo on the interface that carries the node's Ray address, unless the user named one.

    Left alone, gloo takes the address that the host's own name resolves to. On Debian and Ubuntu that is a loopback address, and ranks on
    two machines then wait for each other for ever. NCCL leaves loopback out by itself.
    """

    @property
    def backend_cls(self) -> type[Any]:
        """Ray's backend, one step longer."""

        class Backend(super().backend_cls):  # type: ignore[misc]
            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
                worker_group.execute(choose_interface)
                super().on_start(worker_group, backend_config)

        return Backend


def choose_interface() -> None:
    """Name the interface of this node's Ray address in the environment of this worker, unless one is named there already."""
    import ray.util

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO_INTERFACE, name)


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has an address; None where none has (behind address translation, say)."""
    import psutil

    for name, found in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == address for entry in found):
            return name
    return None
