"""The memory of devices, as far as they tell."""

import jax

from sail_jax.sharding.device_memory import device_memory, peak_memory


def test_cpus_do_not_tell_their_memory():
    assert peak_memory() is None and device_memory(jax.devices("cpu")[0]) is None


def test_the_peak_is_that_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, **stats):
            self.memory_stats = lambda: stats

    devices = [Device(peak_bytes_in_use=3), Device(peak_bytes_in_use=5, bytes_limit=9), Device()]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert peak_memory() == 5 and device_memory(devices[1]) == 9
