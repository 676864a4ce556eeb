"""One small residual network, written in many ways, explained by four libraries, checked against an oracle.

However its ReLUs are written, the network computes the same function, so its guided-backpropagation map is
the same. What lives here, from top to bottom:

    the network      the same weights in NumPy (the oracle in tests/reference.py) and in PyTorch
    the spellings    the rows of the table: ways to write its ReLUs, and ways to use the finished network
    the libraries    the columns: each called in the way its own documentation shows
    the verdicts     right, error or wrong; and the checks that make "right" mean something
    the table        Markdown, printed or written between two marker lines of a file
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import captum.attr
import numpy as np
import torch
import zennit.attribution
import zennit.composites
from pytorch_grad_cam import GuidedBackpropReLUModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import guided_backprop
import reference

Array = reference.Array

# The network: a convolution, a residual block, a strided convolution, an average and a linear layer.

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(1, 3, 9, 9)) / 2
STEM = reference.random_conv(RNG, 3, 4, padding=(1, 1))
BRANCH = [reference.random_conv(RNG, 4, 4, padding=(1, 1)) for _ in range(2)]
LAST = reference.random_conv(RNG, 4, 6, stride=(2, 2))
HEAD = reference.random_linear(RNG, 6, 5)
LABEL = 2
ONE_HOT = np.eye(5)[[LABEL]]
RELUS = range(4)


@dataclass(frozen=True)
class UnguidedReLU:
    """A planted fault: a ReLU that keeps its plain gradient whatever the rule."""

    def forward(self, x: Array) -> tuple[Array, reference.Backward]:
        y, backward = reference.ReLU().forward(x)
        return y, lambda g, rule: backward(g, "saliency")


def oracle(rule: reference.Rule, *, is_shared: bool, skipped: int | None = None) -> Array:
    """Return the map of the NumPy network; the ReLU number ``skipped``, if any, keeps its plain gradient."""
    relus = [UnguidedReLU() if index == skipped else reference.ReLU() for index in RELUS]
    inner = (BRANCH[0], relus[1], BRANCH[1])
    before, branch = ((), (relus[0], *inner)) if is_shared else ((relus[0],), inner)
    block = reference.Residual(reference.Sequential(branch))
    layers = (STEM, *before, block, relus[2], LAST, relus[3], reference.GlobalAveragePool(), HEAD)
    return reference.attribution(reference.Sequential(layers), IMAGE, ONE_HOT, rule)


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Checkpointed(Residual):
    """The same block, its branch computed anew in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return x + checkpoint(self.branch, x, use_reentrant=False)


class Spelled(nn.Module):
    """A ReLU written as a function or a tensor method in somebody's forward."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def network(
    relu: Callable[[], nn.Module] = nn.ReLU, block: type[Residual] = Residual, *, is_shared: bool = False
) -> nn.Module:
    """Return a fresh PyTorch network; ``is_shared``: the skip path and a ReLU read the same tensor."""
    branch = (nn.Conv2d(4, 4, 3, padding=1), relu(), nn.Conv2d(4, 4, 3, padding=1))
    trunk = (block(relu(), *branch),) if is_shared else (relu(), block(*branch))
    tail = (relu(), nn.Conv2d(4, 6, 3, stride=2), relu(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *trunk, *tail).double().eval()
    weights = [torch.tensor(array) for layer in (STEM, *BRANCH, LAST, HEAD) for array in (layer.weight, layer.bias)]
    for parameter, values in zip(model.parameters(), weights, strict=True):
        parameter.data.copy_(values)
    return model


# The spellings.


@dataclass(frozen=True)
class Spelling:
    """One row: how it is written, and how to build it afresh."""

    name: str
    build: Callable[[], nn.Module]
    is_shared: bool = False


def spelled(name: str, function: Callable[[Tensor], Tensor]) -> Spelling:
    return Spelling(name, lambda: network(lambda: Spelled(function)))


def relu_on_a_view(x: Tensor) -> Tensor:
    """Clip a view of x in place, and go on with x."""
    x.view(-1).relu_()
    return x


def put(x: Tensor) -> Tensor:
    """Put what is positive in its place among zeros."""
    place = torch.where(x > 0)
    return torch.zeros_like(x).index_put(place, x[place])


def masked_by_product(x: Tensor) -> Tensor:
    """Leave out what is negative by a matrix with zeros on its diagonal."""
    row = x.flatten(1)
    return torch.einsum("ni,nij->nj", row, torch.diag_embed((row > 0).to(x.dtype))).view_as(x)


def reused() -> nn.Module:
    """Return a network that calls one module for all its ReLUs."""
    relu = nn.ReLU()
    return network(lambda: relu)


def scripted() -> nn.Module:
    return torch.jit.script(network())


def compiled() -> nn.Module:
    """Return a compiled network; each starts with nothing cached."""
    torch.compiler.reset()
    return torch.compile(network(), backend="aot_eager")


def used(model: nn.Module, *, gradients: bool) -> nn.Module:
    """Use the model as in production, or as for a saliency map: whatever optimises itself has now done so."""
    for _ in range(3):
        with torch.no_grad():
            model(image())
        if gradients:
            plain_gradient(model)
    return model


SPELLINGS = [
    Spelling("`nn.ReLU()`", network),
    Spelling("`nn.ReLU(inplace=True)`", lambda: network(lambda: nn.ReLU(inplace=True))),
    Spelling("one `nn.ReLU()` called everywhere", reused),
    Spelling("`nn.ReLU()` in `x + f(relu(x))`", lambda: network(is_shared=True), is_shared=True),
    Spelling("`nn.ReLU()` in a checkpointed block", lambda: network(block=Checkpointed)),
    Spelling("`nn.ReLU6()`, values below 6", lambda: network(nn.ReLU6)),
    spelled("`F.relu(x)`", F.relu),
    spelled("`torch.relu(x)`", torch.relu),
    spelled("`x.relu()`", lambda x: x.relu()),
    spelled("`F.relu_(x)`", F.relu_),
    spelled("`x.relu_()`", lambda x: x.relu_()),
    spelled("`x.view(-1).relu_()`, then `x`", relu_on_a_view),
    spelled("`x.clamp(min=0)`", lambda x: x.clamp(min=0)),
    spelled("`torch.clamp_min(x, 0)`", lambda x: torch.clamp_min(x, 0)),
    spelled("`torch.maximum(x, zero)`", lambda x: torch.maximum(x, x.new_zeros(()))),
    spelled("`torch.fmax(x, zero)`", lambda x: torch.fmax(x, x.new_zeros(()))),
    spelled("`F.threshold(x, 0, 0)`", lambda x: F.threshold(x, 0, 0)),
    spelled("`F.hardtanh(x, 0, inf)`", lambda x: F.hardtanh(x, 0, float("inf"))),
    spelled("`F.relu6(x)`, values below 6", F.relu6),
    spelled("`F.leaky_relu(x, 0)`", lambda x: F.leaky_relu(x, 0)),
    spelled("`x * (x > 0)`", lambda x: x * (x > 0)),
    spelled("`torch.where(x > 0, x, 0)`", lambda x: torch.where(x > 0, x, 0)),
    spelled("`x.masked_fill(x < 0, 0)`", lambda x: x.masked_fill(x < 0, 0)),
    spelled("`(x + x.abs()) / 2`", lambda x: (x + x.abs()) / 2),
    spelled("`x - x.clamp(max=0)`", lambda x: x - x.clamp(max=0)),
    spelled("`-(-x).clamp(max=0)`", lambda x: -(-x).clamp(max=0)),
    spelled("`(x - 1).clamp(min=-1) + 1`", lambda x: (x - 1).clamp(min=-1) + 1),
    spelled("`torch.stack([x, zero]).amax(0)`", lambda x: torch.stack([x, torch.zeros_like(x)]).amax(0)),
    spelled(
        "`torch.stack([x, zero]).sort(0).values[1]`", lambda x: torch.stack([x, torch.zeros_like(x)]).sort(0)[0][1]
    ),
    spelled("zeros, and `x` where an index says", put),
    spelled("a mask in a matrix product", masked_by_product),
    Spelling("`torch.fx.symbolic_trace(model)`", lambda: torch.fx.symbolic_trace(network())),
    Spelling("`torch.export.export(model, ...).module()`", lambda: torch.export.export(network(), (image(),)).module()),
    Spelling("`torch.jit.script(model)`, after plain gradients", lambda: used(scripted(), gradients=True)),
    Spelling("`torch.compile(model)`, after predictions", lambda: used(compiled(), gradients=False)),
    Spelling("`torch.compile(model)`, after plain gradients", lambda: used(compiled(), gradients=True)),
]

# The libraries. Each gets a model and an image that nobody else has touched.


def image() -> Tensor:
    return torch.tensor(IMAGE)


def plain_gradient(model: nn.Module) -> Array:
    """Return the gradient that PyTorch itself gives."""
    images = image().requires_grad_()
    (gradient,) = torch.autograd.grad(model(images)[0, LABEL], images)
    return gradient.numpy()


def explain_ours(model: nn.Module) -> Array:
    return np.asarray(guided_backprop.GuidedBackprop(model).explain(image(), [LABEL]).attribution)


def explain_captum(model: nn.Module) -> Array:
    return captum.attr.GuidedBackprop(model).attribute(image(), target=LABEL).detach().numpy()


def explain_zennit(model: nn.Module) -> Array:
    composite = zennit.composites.GuidedBackprop()
    with zennit.attribution.Gradient(model=model, composite=composite) as attributor:
        _, attribution = attributor(image(), torch.tensor(ONE_HOT))
    return attribution.numpy()


def explain_grad_cam(model: nn.Module) -> Array:
    """Explain with pytorch-grad-cam, which returns one image, channels last."""
    attribution = GuidedBackpropReLUModel(model=model, device="cpu")(image(), target_category=LABEL)
    return attribution.transpose(2, 0, 1)[None]


OURS = f"guided-backprop {guided_backprop.__version__}"
LIBRARIES: dict[str, Callable[[nn.Module], Array]] = {
    OURS: explain_ours,
    f"Captum {version('captum')}": explain_captum,
    f"zennit {version('zennit')}": explain_zennit,
    f"pytorch-grad-cam {version('grad-cam')}": explain_grad_cam,
}

# The verdicts.


@dataclass(frozen=True)
class Verdict:
    """One cell; the note says which error, or which map."""

    word: Literal["right", "error", "**wrong**"]
    note: str = ""


def is_close(found: Array, wanted: Array) -> bool:
    """Return whether two arrays are the same but for rounding in float64."""
    return found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())


def judge(attribution: Array, *, is_shared: bool) -> Verdict:
    """Compare a map with the oracle's."""
    if is_close(attribution, oracle("guided", is_shared=is_shared)):
        return Verdict("right")
    is_plain = is_close(attribution, oracle("saliency", is_shared=is_shared))
    return Verdict("**wrong**", "it is the plain gradient" if is_plain else "it is neither guided nor plain")


def verdict(explain: Callable[[nn.Module], Array], spelling: Spelling) -> Verdict:
    """Explain a fresh model and judge the map; an error of whatever kind is an error, not a wrong map."""
    model = spelling.build()
    try:
        attribution = explain(model)
    except Exception as error:
        note = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return Verdict("error", note)
    return judge(attribution, is_shared=spelling.is_shared)


def relu_inputs(*, is_shared: bool) -> list[Tensor]:
    """Return what each ReLU reads."""
    values: list[Tensor] = []
    network(lambda: Spelled(lambda x: values.append(x) or x.relu()), is_shared=is_shared)(image())
    return values


def check_harness() -> None:
    """Check that no ReLU can be skipped unnoticed, that there are no ties, and that all rows are one function."""
    for is_shared in (False, True):
        wanted = oracle("guided", is_shared=is_shared)
        for skipped in RELUS:
            planted = oracle("guided", is_shared=is_shared, skipped=skipped)
            change = np.abs(planted - wanted).max() / np.abs(wanted).max()
            assert change > 1e-3, f"skipping ReLU {skipped} changes next to nothing"
            assert judge(planted, is_shared=is_shared).word == "**wrong**"
        assert judge(wanted, is_shared=is_shared).word == "right"
        values = relu_inputs(is_shared=is_shared)
        assert len(values) == len(RELUS), "a ReLU is called more than once, or never"
        assert all((x.abs() > 1e-6).all() and (x < 6).all() for x in values), "a tie, or a value above 6"
    for spelling in SPELLINGS:
        wanted = oracle("saliency", is_shared=spelling.is_shared)
        assert is_close(plain_gradient(spelling.build()), wanted), f"{spelling.name} is another function"


# The table.


def table(verdicts: dict[str, list[Verdict]]) -> str:
    """Return the Markdown table: a row a spelling, a column a library, and a last row with the count."""
    rows = [["A ReLU, written as", *verdicts], ["---"] * (len(verdicts) + 1)]
    for index, spelling in enumerate(SPELLINGS):
        rows.append([spelling.name, *(column[index].word for column in verdicts.values())])
    counts = [sum(cell.word == "right" for cell in column) for column in verdicts.values()]
    rows.append([f"right, of {len(SPELLINGS)}", *map(str, counts)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write(path: Path, text: str) -> None:
    """Replace what stands between the two marker lines of a file."""
    start, end = "<!-- spellings:start -->", "<!-- spellings:end -->"
    before, found_start, rest = path.read_text().partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        sys.exit(f"{path} must contain the lines {start} and {end}, in this order.")
    path.write_text(f"{before}{start}\n{text}\n{end}{after}")


def main() -> int:
    """Fill the table; return 1 unless this library is right, or refuses a ReLU spelled as arithmetic."""
    parser = argparse.ArgumentParser(description="Compare libraries on ways to write a ReLU.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table between the markers of FILE")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    check_harness()
    verdicts = {name: [verdict(explain, row) for row in SPELLINGS] for name, explain in LIBRARIES.items()}
    for name, column in verdicts.items():
        for spelling, cell in zip(SPELLINGS, column, strict=True):
            if cell.note:
                print(f"{name}, {spelling.name}: {cell.word}, {cell.note}", file=sys.stderr)
    print(table(verdicts))
    if arguments.write:
        write(arguments.write, table(verdicts))
    return 0 if all(cell.word == "right" for cell in verdicts[OURS]) else 1


if __name__ == "__main__":
    sys.exit(main())
