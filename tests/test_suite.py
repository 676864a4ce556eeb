"""The suite: its data are the oracle's, its cases are what they say, ours is right, and planted faults are seen."""

import importlib.metadata

import numpy as np
import pytest

import make_networks as made
from guided_backprop import Saliency
from guided_backprop_suite.adapters import LIBRARIES, ours
from guided_backprop_suite.cases import Asked, Verdict, check, is_close, judge
from guided_backprop_suite.command import failures, framework_of, main, table, write
from guided_backprop_suite.networks import networks

# A spelling as arithmetic, a tie, a cap, a gate, batch-norm of one image, threads, state, and what draws at random.
CASES = {
    "torch": [
        "`nn.ReLU()` in `x + f(relu(x))`",
        "`x * (x > 0)`",
        "at 0, `x.clamp(min=0)`",
        "`x.clamp(0, 6)`",
        "a branch where another is > 0, `nn.ReLU()`",
        "a variance that `clamp(min=0)` keeps from rounding, `nn.ReLU()`",
        "one image, channels to tokens, `nn.ReLU()`",
        "another thread's plain gradient meanwhile, `nn.ReLU()`",
        "all is left as it was, `nn.ReLU()`",
        "dropout that is on",
    ],
    "keras": ['layers with `activation="relu"`'],
    "jax": ["three rows of a table, `jax.nn.relu(x)`"],
}


def cases(name):
    framework = framework_of(name)
    return framework, [case for case in framework.cases if case.name in CASES[name]]


@pytest.fixture(autouse=True)
def _single_precision_stays_jax_default():
    import jax

    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("name", networks())
def test_the_data_are_the_oracles(name):
    network = networks()[name]
    outputs, _ = made.to_reference(network.layers).forward(network.images)
    np.testing.assert_allclose(network.outputs, outputs, rtol=1e-12)
    for rule, stored in (("guided", network.guided), ("saliency", network.plain)):
        found = made.explained(network.layers, network.images, network.labels, rule)
        np.testing.assert_allclose(stored, found, rtol=1e-12, atol=1e-14)
    assert made.faults(name, network.layers, network.images, network.labels) == []
    assert not is_close(network.guided * (1 + 1e-8), network.guided)
    # What is computed in double precision and given in single is not compared more loosely than that can be told.
    assert is_close(network.guided.astype(np.float32), network.guided)


@pytest.mark.parametrize("name", CASES)
def test_ours_is_right_or_refuses(name):
    framework, chosen = cases(name)
    assert len(chosen) == len(CASES[name])
    assert [check(case, framework) for case in chosen] == [""] * len(chosen)
    column = [judge(ours, case, framework) for case in chosen]
    assert failures(chosen, column) == []
    assert [cell.word for cell in column] == ["error" if case.asked is Asked.REFUSAL else "right" for case in chosen]


def plain(model, images, labels):
    return Saliency(model).explain(images, labels).attribution


def untidy(model, images, labels):
    model[0].weight.grad = model[0].weight.detach() * 1
    return ours(model, images, labels)


def hooked(model, images, labels):
    """What libraries do that put hooks on layers: whoever runs the model meanwhile meets them."""
    handles = [
        module.register_full_backward_hook(lambda module, into, out: tuple(g.clamp(min=0) for g in into))
        for module in model.modules()
        if type(module).__name__ == "ReLU"
    ]
    try:
        return ours(model, images, labels)
    finally:
        for handle in handles:
            handle.remove()


def test_planted_faults_are_seen():
    framework, chosen = cases("torch")
    by_name = {case.name: judge(plain, case, framework) for case in chosen}
    assert by_name["`x * (x > 0)`"] == Verdict("wrong", "it is the plain gradient")
    assert {cell.word for cell in by_name.values()} == {"wrong", "error"}
    tidy = next(case for case in chosen if case.asked is Asked.STATE)
    assert "changes the gradient of 0.weight" in judge(untidy, tidy, framework).note
    meanwhile = next(case for case in chosen if case.meanwhile)
    assert judge(hooked, meanwhile, framework) == Verdict("wrong", "another thread's plain gradient is changed")
    other = next(case for case in framework.cases if case.network == "odd")
    assert check(type(other)("", "", "rows", framework_of("torch").cases[0].build), framework) == ""
    assert check(type(other)("", "", "caps", other.build), framework) == "another function"


def test_the_table_is_written_between_its_marks(tmp_path):
    _, chosen = cases("torch")
    column = [Verdict("right"), Verdict("error", "why"), *[Verdict("wrong", "so")] * (len(chosen) - 2)]
    text = table(chosen, {"one": column})
    assert text.splitlines()[-1] == f"|  | right / error / wrong, of {len(chosen)} | 1 / 1 / {len(chosen) - 2} |"
    assert len(failures(chosen, column)) == len(chosen) - 1
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- suite:torch:start -->\nold\n<!-- suite:torch:end -->\nafter")
    write(path, "torch", text)
    assert path.read_text().splitlines()[1:3] == ["<!-- suite:torch:start -->", text.splitlines()[0]]
    with pytest.raises(SystemExit, match="must contain the lines"):
        write(path, "jax", text)
    with pytest.raises(SystemExit):
        main(["no framework"])


def test_a_library_that_is_not_there_has_no_column():
    titles = {library.name: library.title for library in LIBRARIES}
    assert titles["guided-backprop"] == f"guided-backprop {importlib.metadata.version('guided-backprop')}"
    assert titles["Captum"] is not None
    assert titles["zennit"] is None
