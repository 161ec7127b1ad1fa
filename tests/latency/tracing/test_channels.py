"""Joining and cutting, against a union-find over single entries."""

from hypothesis import given, settings
from hypothesis import strategies as st

from latency.tracing.channels import Flow, Flows, Variables

SIZES = st.lists(st.sampled_from([2, 3, 4, 6]), min_size=2, max_size=5)


class Entries:
    """What is the same as what, entry by entry."""

    def __init__(self) -> None:
        self.same: dict[tuple[int, int], tuple[int, int]] = {}

    def of(self, tensor: list[tuple[int, int]]) -> list[tuple[int, int]]:
        found = []
        for entry in tensor:
            while entry in self.same:
                entry = self.same[entry]
            found.append(entry)
        return found

    def join(self, one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
        for place in range(len(one)):
            (a,), (b,) = self.of([one[place]]), self.of([other[place]])
            if a != b:
                self.same[max(a, b)] = min(a, b)


def located(variables: Variables, flows: Flows) -> list[tuple[int, int]]:
    """Every entry as (variable that stands for itself, place in it)."""
    return [(flow.variable, place) for flow in variables.roots(flows) for place in range(variables.entries(flow))]


@settings(max_examples=300)
@given(sizes=SIZES, data=st.data())
def test_entries_are_the_same_exactly_where_they_were_joined(sizes: list[int], data) -> None:
    variables, entries = Variables(), Entries()
    flows = [variables.new(size, f"layer{number}") for number, size in enumerate(sizes)]
    tensors: list[tuple[Flows, list[tuple[int, int]]]] = [
        ((flow,), [(flow.variable, place) for place in range(size)]) for flow, size in zip(flows, sizes, strict=True)
    ]
    for _ in range(data.draw(st.integers(1, 12))):
        (one, its), (other, others) = (tensors[data.draw(st.integers(0, len(tensors) - 1))] for _ in range(2))
        if data.draw(st.booleans()):
            tensors.append((one + other, its + others))
        elif len(its) == len(others):
            variables.join(one, other)
            entries.join(its, others)
        elif len(its) % 2 == 0:
            half = len(its) // 2
            part = variables.equal_parts(one, 2)
            entries.join(its[:half], its[half:])
            tensors.append((part, its[:half]))
    ours = [place for one, _ in tensors for place in located(variables, one)]
    theirs = [place for _, one in tensors for place in entries.of(one)]
    assert len(set(zip(ours, theirs, strict=True))) == len(set(ours)) == len(set(theirs))
    places = [variable.place for variable in variables.free().values()]
    assert places == sorted(places)


def test_what_is_fixed_or_grouped_stays_so_when_cut_and_joined() -> None:
    variables = Variables()
    a, b, image = variables.new(12, "a"), variables.new(4, "b"), variables.new(8, "image", fixed=True)
    variables.restrict((a,), 4)
    variables.join((a,), (b, image))
    assert [(one.maker, one.size, one.multiple) for one in variables.free().values()] == [("a", 4, 4)]
    grouped, six = variables.new(12, "grouped"), variables.new(6, "six")
    variables.restrict((grouped,), 4)
    variables.join((grouped,), (six, six))  # six channels are no whole groups
    assert variables.all_fixed((grouped, six))


def test_channels_of_several_entries_are_not_cut_through() -> None:
    variables = Variables()
    flat = Flow(variables.new(3, "flat").variable, 4)
    assert variables.equal_parts((flat,), 2) is None
    assert variables.equal_parts((flat,), 3) == variables.roots((Flow(flat.variable, 4),))[:1]
    single = variables.new(4, "single")
    variables.join((variables.new(4, "other"), flat), (single, variables.new(12, "long")))
    assert [one.maker for one in variables.free().values()] == ["single"]
