"""Addresses of devices, and the words for what ssh and adb say."""

import pytest

from kdc.core.errors import TargetError
from targets.remote import adb, ssh
from targets.remote.address import Address, parse
from targets.remote.line import Ended


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://pi@board", Address("ssh", "board", "pi")),
        ("ssh://board", Address("ssh", "board")),
        ("ssh://pi@10.0.0.7:2222", Address("ssh", "10.0.0.7", "pi", 2222)),
        ("ssh://pi@[fe80::1]:22", Address("ssh", "fe80::1", "pi", 22)),
        ("ssh://pi@board?python=/opt/venv/bin/python", Address("ssh", "board", "pi", None, "/opt/venv/bin/python")),
        ("ssh://board?emulated=yes", Address("ssh", "board", emulated=True)),
        ("adb://R58M123", Address("adb", "R58M123")),
        ("adb://192.168.1.5:5555", Address("adb", "192.168.1.5:5555")),
    ],
)
def test_an_address_is_read(text, address):
    assert parse(text) == address
    assert parse(str(address)).host == address.host


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pi@board", "begins with neither"),
        ("http://board", "begins with neither"),
        ("ssh://", "'' is no host"),
        ("ssh://pi:secret@board", "a password cannot be given"),
        ("ssh://pi@board:99999", "[Pp]ort"),
        ("ssh://pi@-oProxyCommand=evil", "is no host"),
        ("ssh://-lroot@board", "is no user"),
        ("adb://-x", "is no serial number"),
        ("ssh://board?emulated=perhaps", "neither yes nor no"),
        ("ssh://board/folder", "it has folder beside the place"),
        ("ssh://board?pyhton=x", "it has pyhton beside the place"),
    ],
)
def test_what_is_no_address_is_refused(text, found):
    with pytest.raises(TargetError, match=f"is no device's address: .*{found}[\\s\\S]*ssh://user@host"):
        parse(text)


BOARD = Address("ssh", "board", "pi", 2222)


@pytest.mark.parametrize(
    ("ended", "meaning"),
    [
        (Ended(255, "ssh: connect to host board port 2222: Connection refused", False), "nothing listens there"),
        (Ended(255, "ssh: connect to host board port 2222: Connection timed out", False), "it cannot be reached"),
        (Ended(255, "ssh: Could not resolve hostname board: Name or service not known", False), "its name is unknown"),
        (Ended(255, "pi@board: Permission denied (publickey).", False), "refuses to let you in"),
        (Ended(255, "Host key verification failed.", False), "host key is not the one"),
        (Ended(127, "bash: line 1: exec: python3: not found", False), "there is no python3 on the device"),
        (Ended(1, "no folder that can be written to", False), "ended with exit code 1\nno folder"),
        (Ended(255, "Timeout, server board not responding.", True), "the device is gone"),
    ],
)
def test_the_end_of_ssh_is_told_in_words(ended, meaning):
    assert meaning in str(ssh.explain(BOARD, ended))
    assert "ssh://pi@board:2222" in str(ssh.explain(BOARD, ended))


@pytest.mark.parametrize(
    ("ended", "meaning"),
    [
        (Ended(1, "adb: device unauthorized.", False), "does not trust this machine"),
        (Ended(1, "error: device offline", False), "it is offline"),
        (Ended(1, "adb: device 'X' not found", False), "knows no such device"),
        (Ended(127, "/system/bin/sh: python3: inaccessible or not found", False), "there is no python3 on the device"),
        (Ended(None, "", True), "the device is gone"),
    ],
)
def test_the_end_of_adb_is_told_in_words(ended, meaning):
    assert meaning in str(adb.explain(Address("adb", "X"), ended))
