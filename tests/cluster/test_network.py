"""Where ranks meet: on the interface of the node's Ray address. Two real hosts are in test_two_hosts.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from cluster import network


def test_the_interface_of_an_address() -> None:
    name = network.interface_of("127.0.0.1")
    assert name is not None
    assert "127.0.0.1" in [entry.address for entry in psutil.net_if_addrs()[name]]
    assert network.interface_of("192.0.2.1") is None  # kept free for examples


def test_what_the_user_names_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.util

    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv(network.GLOO_INTERFACE, "ib0")
    network.choose_interface()
    assert os.environ[network.GLOO_INTERFACE] == "ib0"
    monkeypatch.delenv(network.GLOO_INTERFACE)
    network.choose_interface()
    assert os.environ[network.GLOO_INTERFACE] == network.interface_of("127.0.0.1")
    monkeypatch.delenv(network.GLOO_INTERFACE)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "192.0.2.1")
    network.choose_interface()
    assert network.GLOO_INTERFACE not in os.environ


def test_workers_choose_before_they_meet() -> None:
    class Group:
        """The part of Ray's worker group that a start calls first."""

        def __init__(self) -> None:
            self.asked: list[Callable[..., Any]] = []

        def execute(self, function: Callable[..., Any], **arguments: Any) -> None:
            self.asked.append(function)

        def execute_single(self, rank: int, function: Callable[..., Any]) -> None:
            raise ConnectionError("here the ranks would meet")

    group, config = Group(), network.MeetOnNodeAddress(backend="gloo")
    with pytest.raises(ConnectionError, match="would meet"):
        config.backend_cls().on_start(group, config)
    assert group.asked == [network.choose_interface]
