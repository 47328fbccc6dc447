"""This machine as a device: what its Python has, and the way to it by SSH."""

import shutil

import pytest
from remote_devices import SSHD, Sshd, device_python


@pytest.fixture(autouse=True)
def lock(tmp_path, monkeypatch):
    """Another run of these tests, or a measurement, may have this machine's own."""
    monkeypatch.setenv("KDC_DEVICE_LOCK", str(tmp_path / "lock"))


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    return device_python(tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="session")
def sshd_(tmp_path_factory):
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("there is no sshd and ssh here (packages openssh-server and openssh-client)")
    sshd = Sshd(tmp_path_factory.mktemp("sshd"))
    try:
        trouble = sshd.wait()
        if trouble is not None:
            pytest.skip(f"sshd does not run here: {trouble}")
        yield sshd
    finally:
        sshd.process.terminate()
        sshd.process.wait()


@pytest.fixture
def sshd(sshd_, monkeypatch):
    monkeypatch.setenv("KDC_SSH", f"ssh -F {sshd_.config}")
    shutil.rmtree(sshd_.cache, ignore_errors=True)  # what an agent that a test killed could not remove
    return sshd_


@pytest.fixture
def there(device, sshd, python):
    """This machine by way of SSH."""
    return device.model_copy(update={"address": sshd.address(python)})
