"""Options of a recipe: what is accepted arrives exactly, what is not is named together with what would be."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import InputError
from training.options import option, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    epochs: int = option(10, at_least=1, at_most=100)
    rate: float = option(0.5, at_least=0.0)
    data: str = option("")


@given(epochs=st.integers(1, 100), rate=st.floats(0, allow_nan=False, allow_infinity=False), data=st.text())
def test_accepted_values_arrive_exactly(epochs: int, rate: float, data: str) -> None:
    words = [f"data={data}", f"rate={rate}", f"epochs={epochs}"]
    assert parse(Options, words) == Options(epochs=epochs, rate=rate, data=data)


def test_what_is_left_out_keeps_its_default() -> None:
    assert parse(Options, []) == Options(epochs=10, rate=0.5, data="")
    assert parse(Options, ["rate=2"]) == Options(epochs=10, rate=2.0, data="")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["epoch=3"], "option 'epoch' is not known; did you mean epochs? accepted: epochs, rate, data"),
        (["zzz=3"], "option 'zzz' is not known; accepted: epochs, rate, data"),
        (["=3"], "option '' is not known; accepted: epochs, rate, data"),
        (["epochs"], "'epochs' is not an option; options look like key=value"),
        (["epochs=3", "epochs=3"], "option 'epochs' is given twice"),
        (["epochs="], "option epochs='': expected a whole number, at least 1, at most 100"),
        (["epochs=2.0"], "option epochs='2.0': expected a whole number, at least 1, at most 100"),
        (["epochs=0"], "option epochs='0': expected a whole number, at least 1, at most 100"),
        (["epochs=101"], "option epochs='101': expected a whole number, at least 1, at most 100"),
        (["rate=fast"], "option rate='fast': expected a number, at least 0.0"),
        (["rate=-0.1"], "option rate='-0.1': expected a number, at least 0.0"),
        (["rate=nan"], "option rate='nan': expected a number, at least 0.0"),
        (["rate=inf"], "option rate='inf': expected a number, at least 0.0"),
    ],
)
def test_what_is_not_accepted_is_named(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        parse(Options, words)
    assert str(refused.value) == message
