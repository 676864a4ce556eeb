"""From a method to one program of its own framework, with the weights in it: made, compared, and timed."""

import copy
from dataclasses import replace
from importlib import import_module
from typing import Any, Final

from guided_backprop.arrays import Inputs
from guided_backprop.errors import ModelError
from guided_backprop.export.program import Program
from guided_backprop.methods.compiled import Compilable, Compiled, InEngine, Uncompiled
from guided_backprop.methods.recording import require_alike, require_gradient
from guided_backprop.methods.timing import timed
from guided_backprop.methods.trial import Shown, Trial, one_by_one

_PROGRAMS: Final = {
    "jax": ("guided_backprop.backends.jax.fixed", "JaxProgram"),
    "tensorflow": ("guided_backprop.backends.tensorflow.fixed", "TensorFlowProgram"),
}

# What the program is called beside the framework, where both are timed.
_COMPILED: Final = "compiled"


def in_program(method: Compilable, inputs: Inputs) -> Compiled:
    """Return what computes a method's explanations by a program of the model's own framework, if that is faster.

    Raises:
        OptionError: the method is none of one pass at the images.
        ModelError: there is no such program, or it explains otherwise than the method.
    """
    backend = method.subject.backend(inputs)
    plan = replace(method.plan, labels="both")
    require_gradient(method, [plan], backend.framework)
    # All that explain() refuses is refused first, in its words.
    explained = method.explain(inputs.images, progress=False)
    module, name = _PROGRAMS[backend.framework]
    kind: Any = getattr(import_module(module), name)
    program: Program = kind(backend, inputs, plan)
    require_alike(program.coverage, explained.coverage)
    trial = Trial(method, Shown([method], one_by_one), None, 0, inputs, explained, plan, may_round=True)
    if program.compiles_each_count:
        batches = [trial.batch(inputs.count, is_of_top=is_of_top) for is_of_top in (True, False)]
    else:
        batches = trial.batches(())
    trial.compare(program, program, batches)
    if not program.are_the_same():
        raise ModelError(
            "model must stay as it is when it is run, to be compiled; received one whose weights or options "
            "change. Take out what counts or remembers, or explain by the method as it is."
        )
    said = {
        "coverage": list(explained.coverage), "head": explained.head, "shape": explained.outputs.shape[1:],
        "inputs": program.inputs, "outputs": program.outputs,
    }  # fmt: skip
    return _faster(method, inputs, InEngine(program, said, program, inputs))


def _faster(method: Compilable, inputs: Inputs, compiled: InEngine) -> Compiled:
    """Return what is compiled, or the method as it is, whichever call is the shorter one on these images."""
    framework = method.subject.backend(inputs).framework
    other = copy.copy(method)
    other.compiled = compiled
    times = timed({_COMPILED: other, framework: method}, inputs.images)
    fastest = compiled if times[_COMPILED] < times[framework] else Uncompiled(framework)
    fastest.times = times
    return fastest
