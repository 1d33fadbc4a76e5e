"""Several processes that train as one: starting them, and agreeing on things."""

import hashlib
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from fsb_jax.errors import UserError

# A process that has not been heard of for so long is taken for dead, and the others end.
_HEARTBEAT_SECONDS = 30
_LOOPBACK = ("127.", "localhost:", "[::1]:")


def initialise(
  coordinator: str | None = None,
  process_count: int | None = None,
  process_index: int | None = None,
  automatic: bool = False,
  start_seconds: int = 300,
) -> None:
  """Joins this process to the others of its run; before anything else touches a device.

  What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Where nothing is given
  at all the process stays alone.

  Args:
    coordinator: HOST:PORT of process 0.
    process_count: how many processes there are.
    process_index: which one this is, from 0.
    automatic: let JAX find all three: on TPU pods, Slurm, Open MPI and Kubernetes.
    start_seconds: how long to wait for the others.

  Raises:
    UserError: only a part is given, or the others do not come.
  """
  coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
  process_count = _number("JAX_NUM_PROCESSES", process_count)
  process_index = _number("JAX_PROCESS_ID", process_index)
  given = (coordinator, process_count, process_index)
  if given == (None, None, None) and not automatic:
    return
  if not automatic:
    if None in given:
      raise UserError("--coordinator HOST:PORT, --process-count and --process-index go together; give all three")
    if ":" not in coordinator or not coordinator.rpartition(":")[2].isdecimal():
      raise UserError(f"--coordinator {coordinator} must be HOST:PORT")
    if not 0 <= process_index < process_count:
      raise UserError(f"--process-index {process_index} must be from 0 to {process_count - 1}")
  try:
    jax.distributed.initialize(
      coordinator, process_count, process_index,
      initialization_timeout=start_seconds,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
      # JAX would listen on every address of the host.
      coordinator_bind_address=coordinator if coordinator and coordinator.startswith(_LOOPBACK) else None,
    )
  except (ValueError, RuntimeError) as error:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UserError(f"the processes of this run did not find each other: {first}") from error


def require_equal(
  what: str, value: str, advice: str = "give all processes the same command and the same files"
) -> None:
  """UserError where `value` is not the same in all processes; every process must call this at the same place."""
  if jax.process_count() == 1:
    return
  every = multihost_utils.process_allgather(digest_of(value))
  other = np.flatnonzero((every != every[0]).any(axis=1))
  if len(other):
    raise UserError(f"process {other[0]} has other {what} than process 0; {advice}")


def digest_of(value: str) -> np.ndarray:
  """sha256 of a text, uint8 `[32]`: what processes compare."""
  return np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)


def barrier(name: str) -> None:
  """Returns when all processes are here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _number(variable: str, value: int | None) -> int | None:
  text = os.environ.get(variable)
  if value is not None or text is None:
    return value
  if not text.isdecimal():
    raise UserError(f"{variable}={text} must be a whole number")
  return int(text)
