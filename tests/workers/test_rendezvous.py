"""Ports and addresses where a gang meets."""

import socket

import pytest

from workers.rendezvous import (
    FIRST_PORT,
    LAST_PORT,
    NoFreePort,
    address_on,
    choose_port,
    interface_of,
    join_address,
    local_address_towards,
    split_address,
)


def test_the_port_follows_from_the_attempt_and_lies_below_the_ephemeral_range():
    ports = [choose_port(f"attempt-{number}", ()) for number in range(50)]
    assert ports == [choose_port(f"attempt-{number}", ()) for number in range(50)]
    assert all(FIRST_PORT <= port <= LAST_PORT for port in ports)
    assert len(set(ports)) > 45, "two attempts rarely start at the same port"


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_port_somebody_listens_on_is_passed_over(address):
    port = choose_port("a1", ())
    with socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET):
        assert choose_port("a1", ()) != port


def test_a_promised_port_is_passed_over():
    port = choose_port("a1", ())
    assert choose_port("a1", {port}) == FIRST_PORT + (port + 1 - FIRST_PORT) % (LAST_PORT - FIRST_PORT + 1)


def test_no_port_is_left():
    with pytest.raises(NoFreePort, match="20000 to 32767"):
        choose_port("a1", range(FIRST_PORT, LAST_PORT + 1))


@pytest.mark.parametrize(
    ("address", "interface"), [("127.0.0.1", "lo"), ("localhost", "lo"), ("192.0.2.1", None), ("no such host", None)]
)
def test_the_interface_that_carries_an_address(address, interface):
    assert interface_of(address) == interface


def test_the_address_on_an_interface():
    assert address_on("lo") == "127.0.0.1"
    with pytest.raises(ValueError, match=r"no interface 'nowhere0' with an address here; there are .*\blo\b"):
        address_on("nowhere0")


def test_the_address_towards_a_loopback_service_is_loopback():
    assert local_address_towards("127.0.0.1", 8765) == "127.0.0.1"


@pytest.mark.parametrize("address", ["10.0.0.1", "node-7", "fd00::1"])
def test_addresses_are_joined_and_split(address):
    assert split_address(join_address(address, 20_000)) == (address, 20_000)
