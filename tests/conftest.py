"""Settings that must be in place before JAX is imported."""

import os

# The CPU as eight devices, so that meshes are tested where there is one machine and no accelerator.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
