"""On which port a command serves."""

from __future__ import annotations

import pytest

from cifar_lab import dashboard
from cifar_lab.config import port as ports
from cifar_lab.config.port import HOST, listen, port_of
from cifar_lab.errors import InputError


def test_a_taken_port_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen(None, first=0) as taken:
        first = port_of(taken)
        assert taken.getsockname()[0] == HOST
        with listen(None, first=first) as other:
            assert first < port_of(other)
        monkeypatch.setattr(ports, "TRIED", 1)
        with listen(None, first=first) as other:
            assert port_of(other) not in (0, first)


def test_the_last_ports_are_ports() -> None:
    with listen(None, first=65530) as free:
        assert port_of(free) < 2**16


@pytest.mark.parametrize("port", [0, -1, 70000])
def test_what_is_no_port(port: int) -> None:
    with pytest.raises(InputError, match=f"--port={port}: must lie in 1..65535"):
        listen(port, first=8000)


def test_a_port_that_is_asked_for_and_taken_is_wrong_input(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with listen(None, first=0) as taken:
        assert dashboard.main([".", "--port", str(port_of(taken))]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "can't be listened on (Address already in use); give another" in err


def test_a_port_is_free_again_as_soon_as_it_is_closed() -> None:
    """Ctrl-C and the same command again: what the last one's connections left is no hindrance."""
    import socket

    with listen(None, first=0) as first:
        port = port_of(first)
        with socket.create_connection((HOST, port)), first.accept()[0] as accepted:
            accepted.close()
    with listen(port, first=0) as again:
        assert port_of(again) == port
