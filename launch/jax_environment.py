"""Settings of JAX in the environment: removes those that would change results, and keeps libtpu and plugins quiet."""

import logging
import os
import sys

# They change random numbers, types or precision, so that a seed gives other music, or refuse what sound programs do.
# Settings of devices, caches, logs and debugging stay.
PUT_ASIDE = (
    "JAX_ARRAY_GARBAGE_COLLECTION_GUARD",
    "JAX_CHECK_TRACER_LEAKS",
    "JAX_DEBUG_KEY_REUSE",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_DEFAULT_PRNG_IMPL",
    "JAX_DISABLE_JIT",
    "JAX_DISALLOW_MESH_CONTEXT_MANAGER",
    "JAX_ENABLE_CUSTOM_PRNG",
    "JAX_ENABLE_X64",
    "JAX_EXPLICIT_X64_DTYPES",
    "JAX_HIGH_DYNAMIC_RANGE_GUMBEL",
    "JAX_LEGACY_PRNG_KEY",
    "JAX_NO_EXECUTION",
    "JAX_NO_TRACING",
    "JAX_NUMPY_DTYPE_PROMOTION",
    "JAX_RANDOM_SEED_OFFSET",
    "JAX_SOFTMAX_CUSTOM_JVP",
    "JAX_THREAD_GUARD",
    "JAX_THREEFRY_GPU_KERNEL_LOWERING",
    "JAX_THREEFRY_PARTITIONABLE",
    "JAX_TRANSFER_GUARD",
    "JAX_TRANSFER_GUARD_DEVICE_TO_DEVICE",
    "JAX_TRANSFER_GUARD_DEVICE_TO_HOST",
    "JAX_TRANSFER_GUARD_HOST_TO_DEVICE",
)


def put_aside() -> None:
    """Removes these settings from the environment, for this process and those that it starts. Call it before JAX."""
    found = [f"{name}={os.environ.pop(name)}" for name in PUT_ASIDE if name in os.environ]
    if found:
        print(f"musiclm: {', '.join(found)} in the environment is ignored: it would change results", file=sys.stderr)


def quiet_libtpu() -> None:
    """Silences libtpu's messages about a missing TPU, where it is installed only for `musiclm plan`.

    Call it before JAX looks for devices. On machines with a TPU it does nothing.
    """
    from jax._src import hardware_utils  # what JAX itself asks; importing JAX takes a second

    if hardware_utils.num_available_tpu_chips_and_device_id()[0] == 0:
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


unusable_plugins: list[str] = []  # why JAX's plugins for accelerators could not start, one line each


def shorten_plugin_errors() -> None:
    """Makes one line of the stack trace that JAX logs if its CUDA plugin cannot start, and keeps the reason.

    JAX then goes on without the GPU. Call it before JAX looks for devices.
    """
    logger = logging.getLogger("jax._src.xla_bridge")
    if _one_line not in logger.filters:
        logger.addFilter(_one_line)


def _one_line(record: logging.LogRecord) -> bool:
    """Returns whether to log a record; shortens those about plugins."""
    if record.exc_info is None or "plugin configuration error" not in str(record.msg):
        return True
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else sys.exception()
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    unusable_plugins.append(lines[0])
    record.exc_info = record.exc_text = None
    record.msg, record.args = f"musiclm: no GPU can be used ({lines[0]}): the CPU computes. {GPU_ADVICE}", ()
    # With a platform that the user chose, there is nothing to say, or what uses the devices fails.
    return getattr(getattr(sys.modules.get("jax"), "config", None), "jax_platforms", None) in (None, "")


# The drivers are those of JAX's installation guide.
GPU_ADVICE = (
    "nvidia-smi shows the driver and the GPUs; the extra 'cuda12' needs driver 525 or newer, 'cuda13' 580 or newer"
)
