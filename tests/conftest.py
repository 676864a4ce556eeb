"""What holds for all tests: how they share the cores, and that each JAX program is compiled once, in less time."""

import fcntl
import gc
import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Set before anything computes, hence here: what is compiled here runs once, so it need not run fast.
# Without its emitters of fused operations, XLA compiles such small programs in half the time.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
# JAX 0.11 does not know it, and ends the process.
if find_spec("jaxlib") and tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
# Processes side by side that have a thread for each core wait for one another; those that tests start inherit this.
if "PYTEST_XDIST_WORKER" in os.environ:
    FLAGS += " --xla_cpu_multi_thread_eigen=false"
    os.environ |= dict.fromkeys(["OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"], "1")
os.environ.setdefault("XLA_FLAGS", FLAGS)
# While three frameworks are imported there is nothing to collect.
gc.disable()

CHROMIUM = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
CHROMIUM += " --disable-component-update --disable-sync"
# A camera that shows a test picture, and whose use is granted.
CHROMIUM += " --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"

# They take longest, in this order, some of them though they hold few tests: begun last, they would be waited for.
LONG = (
    "test_jax_programs.py",
    "test_engines.py",
    "test_export_sizes.py",
    "test_jax.py",
    "test_tensorflow_programs.py",
    "test_weighed.py",
    "test_keras_backends.py",
    "test_export_frameworks.py",
    "test_tensorflow.py",
    "test_kernels.py",
    "test_export_spellings.py",
    "test_tutorials.py",
    "test_export_spellings_xla.py",
    "test_properties.py",
    "test_jax_spelled.py",
    "test_extras.py",
    "test_app.py",
    "test_keras_layers.py",
    "test_examples.py",
    "test_out_of_memory.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let one process import everything before the others do: it leaves the bytecode, which takes most of the time."""
    with Path(__file__).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            return (yield)
        finally:
            # Closing it would not be enough if a process that was forked meanwhile is still there.
            fcntl.flock(lock, fcntl.LOCK_UN)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest. A file is handed out whole: what it builds it builds once."""
    sizes, places = Counter(item.path for item in items), {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: (places.get(item.path.name, len(LONG)), -sizes[item.path]))


def pytest_collection_finish() -> None:
    """Look through all that was imported once: the collector takes a second for it, and each test adds little."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 5, 5)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _graphs_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is compiled in tests is not kept among what the user has."""
    os.environ["GUIDED_BACKPROP_CACHE"] = str(tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests that build the same network anew share its compiled program, by JAX's own cache, for this run alone."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium, without a screen, and asking nothing of a network by itself."""
    # Few tests need it, and it takes long to import.
    from playwright.sync_api import expect, sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "The tests need Chromium. Run: make browser."
    # A machine that does much else may take long.
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM.split())
        yield running
        running.close()
