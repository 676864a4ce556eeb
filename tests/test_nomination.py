"""What may hide a ReLU is nominated, by the argument alone: programs in words, which no framework runs."""

import pytest

from guided_backprop.backends.nomination import Step
from guided_backprop.backends.notes import MOST_SOURCES, Note, Operand, Ranks
from guided_backprop.backends.operations import Kind, Operation

KINDS = {
    **dict.fromkeys("add conv cumsum matmul mean mul neg sub".split(), Kind.LINEAR),
    **dict.fromkeys("stack transpose".split(), Kind.MOVES),
    **dict.fromkeys("clamp maximum minimum".split(), Kind.CLIP),
    **dict.fromkeys("exp gelu hardswish log prod softmax sqrt tanh xlogy".split(), Kind.SMOOTH),
    **dict.fromkeys("abs max max_pool".split(), Kind.CHOOSES),
    **dict.fromkeys("leaky_relu relu".split(), Kind.RELU),
    "argmax": Kind.COMPARES,
    "equal": Kind.COMPARES,
    "greater": Kind.COMPARES,
    "loop": Kind.HOLDS,
    "stop_gradient": Kind.COMPARES,
    "unheard_of": Kind.UNKNOWN,
    "where": Kind.MASKS,
}
#: Constants: one number, 0 itself, and what is 0 in places.
CONSTANTS = {"2": False, "0": True, "mask": True}
# What comes in: x, and another value that depends on the images.
IMAGES = ("x", "z")
#: How many numbers a result has, if not as many as x.
SIZES = {"stack": 16, "mean": 1, "row": 1, "half": 4}


class Seeing(Step):
    """A step whose derivatives tell what is added to a written ReLU, as those of PyTorch do."""

    SEES_SUMS = True


class Followed:
    """A program that is followed: lines as "y = word operand operand".

    Args:
        lines: the program.
        hole: a result of which the taint is forgotten.
    """

    def __init__(self, *lines: str, hole: str = "") -> None:
        self.notes: dict[str, Note[str]] = {name: Note() for name in IMAGES}
        self.active = set(IMAGES)
        self.nominated: dict[str, bool | None] = {}
        self.candidates: dict[str, set[str]] = {}
        self.by_rank: dict[str, bool] = {}
        self.ranks: dict[str, dict[str, Ranks]] = {}
        for line in lines:
            name, _, word, *operands = line.split()
            self._follow(name, word, operands, is_hole=name == hole)

    def _operand(self, name: str) -> Operand[str]:
        is_active = name in self.active
        size = next((size for key, size in SIZES.items() if name.startswith(key)), 8)
        is_number = not name.startswith("is")
        zeros = CONSTANTS.get(name, False)
        ref = name if is_active else None
        return Operand(
            self.notes.get(name), ref, is_active, is_number, size, has_zeros=lambda: zeros, is_sparse=lambda: zeros
        )

    def _follow(self, name: str, word: str, operands: list[str], *, is_hole: bool) -> None:
        row = Operation(KINDS[word], word)
        given = [self._operand(operand) for operand in operands]
        passes = row.kind is not Kind.COMPARES and any(operand.is_active for operand in given)
        held = [self.notes[operand] for operand in operands if operand.startswith("inside")]
        step = Seeing(row, given, passes, is_relu=word == "relu", held=held, place=name)
        size = self._operand(name).size
        self.nominated[name] = step.nominates(size)
        self.candidates[name] = {candidate.ref for candidate in step.candidates() if candidate.size == size}
        self.by_rank[name] = step.is_by_rank
        self.ranks[name] = {one.ref: step.ranks(one, size) for one in step.candidates(size)}
        note = step.note(size, is_falling=self.nominated[name] is not None)
        self.notes[name] = Note() if is_hole else note
        if passes or is_hole:
            self.active.add(name)


#: Each ends in a ReLU of x.
HIDDEN = {
    "a mask": ["is = greater x 0", "y = mul x is"],
    "a mask that is moved": ["is = greater x 0", "is2 = transpose is", "y = mul x is2"],
    "where": ["is = greater x 0", "y = where is x 0"],
    "a magnitude": ["a = abs x", "y = add x a"],
    "a magnitude that is scaled": ["a = abs x", "b = mul a 2", "c = mul x 2", "y = add c b"],
    "a root of a square": ["a = mul x x", "b = sqrt a", "y = add x b"],
    "a logarithm": ["a = mul x x", "b = log a", "c = exp b", "y = add x c"],
    "a leaky ReLU less its leak": ["a = leaky_relu x", "b = mul x 2", "y = sub a b"],
    "the part below 0": ["a = minimum x 0", "y = sub x a"],
    "the negative of a minimum": ["a = minimum x 0", "y = neg a"],
    "a stack": ["stack = stack x 0", "y = max stack"],
    "a stack that is scaled": ["stack = stack x 0", "stack2 = mul stack 2", "y = max stack2"],
    "a product with zeros": ["stack = stack x z", "stack2 = mul stack mask", "y = max stack2"],
    "weights with zeros": ["stack = matmul x mask", "y = max stack"],
    "weights of what was put together": ["stack = stack x x", "stack2 = matmul stack mask", "y = max stack2"],
    "a sum with zeros": ["stack = stack x 0", "stack2 = cumsum stack", "y = max stack2"],
    "straight through": ["a = relu x", "b = sub a x", "c = stop_gradient b", "y = add x c"],
    "a bound that is shifted": ["a = maximum x 2", "y = sub a 2"],
    "a bound behind weights": ["a = maximum x 2", "b = matmul a 2", "y = add b 2"],
    "of a magnitude": ["a = maximum x z", "b = relu a", "y = add x b"],
    "a mask as a power": ["is = greater x 0", "y = xlogy is x"],
    "a product of a row": ["is = greater x 0", "stack = stack x is", "y = prod stack"],
    "a root that is squared": ["is = greater x 0", "a = where is x 0", "b = sqrt a", "y = exp b"],
    "a loop": ["inside = abs x", "a = loop x inside", "y = add x a"],
    "a curve that a loop undoes": ["is = greater z 0", "inside = mul z is", "a = exp x", "y = loop a inside"],
    "a curve that nobody knows who undoes": ["a = exp x", "b = neg a", "y = unheard_of b"],
    "a ReLU of the opposite that is added": ["a = neg x", "b = relu a", "y = add x b"],
    "the negative rest, turned": ["a = relu x", "b = sub x a", "y = neg b"],
    "nobody has heard of it": ["y = unheard_of x"],
}

#: Nothing in these can be one.
FINE = {
    "layers": ["a = conv x 2", "b = relu a", "c = add b x", "y = matmul c 2"],
    "curves": ["a = gelu x", "b = tanh a", "y = softmax b"],
    "a curve of straight pieces and a gate": ["a = hardswish x", "b = mean a", "c = gelu b", "y = mul a c"],
    "pooling in front of a layer": ["a = max_pool x", "y = conv a 2"],
    "the largest of two": ["stack = stack x z", "y = max stack"],
    "the largest of what weights make": ["stack = matmul x 2", "y = max stack"],
    "a bound": ["a = clamp x 2 2", "y = mul a 2"],
    "a mask that no image tells": ["y = mul x mask"],
    "a ReLU beside that of the opposite": ["a = relu x", "b = neg x", "c = relu b", "y = add a c"],
    "a ReLU behind a curve": ["a = tanh x", "b = relu a", "y = add x b"],
    "a copy of a mask's product": ["is = greater x 0", "a = mul x is", "y = transpose a"],
}


@pytest.mark.parametrize("program", HIDDEN)
def test_what_hides_a_relu_is_nominated(program):
    followed = Followed(*HIDDEN[program])
    assert followed.nominated["y"] is not None
    assert followed.candidates["y"] & {"x", "c"}


@pytest.mark.parametrize("program", FINE)
def test_what_cannot_is_not(program):
    assert Followed(*FINE[program]).nominated["y"] is None


def test_a_multiple_is_no_gate_of_what_it_is_a_multiple_of():
    followed = Followed("a = minimum x 0", "y = mul a mask")
    assert followed.candidates["y"] == {"x"}
    # A product with what depends on the images may be.
    assert "a" in Followed("a = minimum x 0", "is = greater a 0", "y = mul a is").candidates["y"]


HOLES = [
    (program, name)
    for program, lines in HIDDEN.items()
    for name, note in Followed(*lines).notes.items()
    if name != "y" and (note.is_tainted or note.has_constants)
    # Where a gradient stops taint starts again.
    if (program, name) != ("straight through", "b")
]


@pytest.mark.parametrize(("program", "hole"), HOLES)
def test_planted_fault_a_taint_that_stops_at_one_operation_is_seen(program, hole):
    holed = Followed(*HIDDEN[program], hole=hole)
    assert holed.nominated["y"] is None or "x" not in holed.candidates["y"]


RANKED = {
    "the largest are kept": (["row = max x", "is = greater x row", "y = mul x is"], True),
    "more than the mean": (["mean = mean x", "is = greater x mean", "y = mul x is"], True),
    "the place of the largest": (["is_place = argmax x", "is = equal is_place 2", "y = mul x is"], True),
    "compared with a number": (["row = max x", "is = greater row 0", "y = mul x is"], False),
    "the largest of what was padded": (["a = mul x mask", "row = max a", "is = greater x row", "y = mul x is"], False),
    "x and -x": (["a = neg x", "is = greater x a", "y = mul x is"], False),
}


@pytest.mark.parametrize("program", RANKED)
def test_what_was_chosen_by_rank(program):
    lines, is_by_rank = RANKED[program]
    assert Followed(*lines).by_rank["y"] is is_by_rank


SUMS = {
    "a sum is compared": (["mean = mean x", "is = greater x mean", "a = mul x is", "y = matmul a 2"], Ranks.ALL),
    "less a sum": (["mean = mean x", "a = sub x mean", "is = greater a 0", "y = mul x is"], Ranks.SOME),
    "a magnitude less a sum": (["mean = mean x", "a = sub x mean", "b = abs a", "y = add x b"], Ranks.SOME),
    "a sum afterwards": (["a = abs x", "mean = mean a", "b = mul a mean", "y = add x b"], Ranks.NONE),
    "a sum of masked values": (["is = greater x 0", "a = mul x is", "mean = mean a", "y = sub a mean"], Ranks.NONE),
    "a sum of places": (["is = greater x 0", "is_mean = mean is", "a = mul x is", "y = mul a is_mean"], Ranks.NONE),
    "the largest of places": (["is = greater x 0", "is_row = max is", "a = mul x is", "y = mul a is_row"], Ranks.NONE),
    "a pool of what was chosen": (["a = maximum x z", "half = max_pool a", "y = matmul half 2"], Ranks.SOME),
    "a pool behind a ReLU": (["a = relu x", "half = max_pool a", "b = abs x", "y = mul b half"], Ranks.NONE),
    "a sum before": (["mean = mean z", "x2 = sub x mean", "is = greater x2 0", "y = mul x2 is"], Ranks.NONE),
}


@pytest.mark.parametrize("program", SUMS)
def test_a_sum_compares_values_where_something_is_chosen_by_it(program):
    lines, ranks = SUMS[program]
    followed = Followed(*lines)
    assert followed.ranks["y"].get("x2", followed.ranks["y"].get("x")) is ranks


def test_what_is_known_does_not_grow_with_each_turn():
    # As a bisection halves an interval, whose ends were put together of several values.
    lines = ["stack_low = stack x z", "stack_high = stack z x"]
    for turn in range(8):
        lines += [f"stack{turn} = add stack_low stack_high", f"is = greater stack{turn} 0"]
        lines += [f"stack_low = where is stack{turn} stack_low", f"stack_high = where is stack_high stack{turn}"]
    note = Followed(*lines).notes["stack_low"]
    assert {part.ref for part in note.parts} >= {"x", "z"}
    assert all(len(known) <= MOST_SOURCES for known in vars(note).values() if isinstance(known, tuple))


def test_what_is_joined_is_the_less_certain():
    ranked, tainted = Note(is_tainted=True), Note(is_tainted=True, is_by_rank=False)
    assert Note().joined(ranked) == ranked
    assert ranked.joined(tainted) == tainted == tainted.joined(ranked)
    assert tainted.inside("x", 8).sources[0].ref == "x"
    assert Note().inside("x", 8).sources == ()
