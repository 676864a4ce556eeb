"""The programs of docs/upstream.md print what the page says, and this library what is right."""

import contextlib
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from guided_backprop import GuidedBackprop, Saliency

PAGE = (Path(__file__).parents[1] / "docs/upstream.md").read_text()
FAULTS = {
    title: (code, printed, right)
    for title, code, printed, right in re.findall(
        r"## (.*?)\n.*?```python\n(.*?)```\n\nIt prints `(.*?)`; right is `(.*?)`\.", PAGE, re.DOTALL
    )
}
# The others need what is not installed beside all else here.
RUN = [title for title in FAULTS if title.startswith(("PyTorch", "Captum"))]


def test_all_faults_are_found():
    assert len(FAULTS) == PAGE.count("\n## ") == 5
    assert len(RUN) == 3


@pytest.mark.parametrize("title", RUN)
def test_a_program_prints_what_the_page_says(title):
    code, printed, right = FAULTS[title]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "upstream.md", "exec"), {"__name__": "upstream"})
    assert said.getvalue().strip() == printed != right


def test_here_they_are_right():
    norm = torch.nn.BatchNorm2d(2).double().eval()
    norm.weight.data = torch.tensor([1.0, 2.0]).double()
    weights = np.array([[[1.0, 10.0], [100.0, 1000.0]]])
    found = Saliency(lambda x: norm(x).flatten(2).transpose(1, 2)).explain(torch.zeros(1, 2, 1, 2).double(), weights)
    right = np.array(eval(FAULTS[RUN[0]][2]))
    np.testing.assert_allclose(np.ravel(found) * (1 + norm.eps) ** 0.5, right, rtol=1e-9)
    model = lambda x: -3 * x + torch.relu(x) * torch.tensor([1.0, -1.0])  # noqa: E731
    found = [GuidedBackprop(model).explain(torch.ones(1, 2), target).attribution.tolist() for target in (0, 1)]
    assert found == [[[-2.0, 0.0]], [[0.0, -3.0]]]
