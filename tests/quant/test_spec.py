"""BitSpec: presets, what configuration values mean, and what is refused."""

import dataclasses

import pytest

from bhfl.quant import PRESETS, BitSpec

WIDTHS = {  # weights, activations, errors, gradients, storage, range rule
    "float32": (32, 32, 32, 32, 32, "absmax"),
    "int16": (16, 16, 32, 32, 32, "absmax"),
    "int12": (12, 12, 32, 32, 32, "absmax"),
    "int8": (8, 8, 32, 32, 32, "absmax"),
    "int6": (6, 6, 32, 32, 32, "absmax"),
    "int4": (4, 8, 32, 32, 32, "mse"),
    "int3": (3, 8, 32, 32, 32, "mse"),
    "ternary": (2, 8, 32, 32, 32, "mse"),
    "wage2888": (2, 8, 8, 8, 8, "wage"),
    "wage2888-stored": (2, 8, 8, 8, 8, "wage"),
    "strict8": (8, 8, 8, 8, 8, "absmax"),
}


def test_presets() -> None:
    assert list(PRESETS) == list(WIDTHS)
    for name, preset in PRESETS.items():
        found = (
            preset.weights,
            preset.activations,
            preset.errors,
            preset.gradients,
            preset.storage,
            preset.range_rule,
        )
        assert found == WIDTHS[name]
        assert preset.name == preset.label == name
        assert preset.granularity == "tensor"
        assert preset.is_float == (name == "float32")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (8, "int8"),
        ("8", "int8"),
        ("int8", "int8"),
        (32, "float32"),
        ("32", "float32"),
        (2, "ternary"),
        ("int2", "ternary"),
        (5, "int5"),
        ("int7", "int7"),
        ({}, "float32"),
        ({"weights": 8, "activations": 8}, "int8"),
        ({"weights": 4, "activations": 8}, "int4"),
        ({"weights": 5, "activations": 8, "range_rule": "mse"}, "int5"),
        ({"weights": 5, "activations": 8, "range_rule": "absmax"}, "w5a8-absmax"),
        ({"weights": 6, "activations": 6, "range_rule": "auto"}, "int6"),
        ({"weights": 4, "granularity": "channel", "range_rule": "lsq"}, "w4a32-lsq-channel"),
        ({"weights": 4, "errors": 8, "gradients": 6, "storage": 5}, "w4a32e8g6s5"),
        ({"weights": 4, "name": "mine"}, "mine"),
        (BitSpec(weights=3), "w3a32"),
    ],
)
def test_parse(value: object, label: str) -> None:
    assert BitSpec.parse(value).label == label  # type: ignore[arg-type]


def test_parse_of_a_width_uses_the_preset_of_that_width() -> None:
    by_width = {
        2: "ternary",
        3: "int3",
        4: "int4",
        6: "int6",
        8: "int8",
        12: "int12",
        16: "int16",
        32: "float32",
    }
    for bits, name in by_width.items():
        assert BitSpec.parse(bits) is PRESETS[name] or BitSpec.parse(bits) == PRESETS[name]
    assert BitSpec.parse(5).range_rule == "mse"
    assert BitSpec.parse(7).range_rule == "absmax"


def test_labels_of_distinct_specs_differ() -> None:
    specs = {BitSpec.parse(bits) for bits in (*range(2, 17), 32)} | set(PRESETS.values())
    for spec in list(specs):
        for change in (
            {"errors": 8},
            {"gradients": 8},
            {"activations": 7},
            {"granularity": "channel"},
        ):
            if spec.weights < 32 and spec.range_rule != "wage":
                specs.add(dataclasses.replace(spec, **change, name=""))  # type: ignore[arg-type]
    assert len({spec.label for spec in specs}) == len(specs)


@pytest.mark.parametrize("rule", ["auto", "absmax", "mse", "pow2"])
@pytest.mark.parametrize("widths", [(2, 8), (5, 8), (5, 5), (6, 6), (8, 32)])
@pytest.mark.parametrize("storage", [6, 32])
def test_what_is_written_reads_back(rule: str, widths: tuple[int, int], storage: int) -> None:
    weights, activations = widths
    spec = BitSpec(
        weights=weights,
        activations=activations,
        storage=max(storage, weights),
        range_rule=rule,
        granularity="channel",
    )
    assert BitSpec.parse(spec.to_config()) == spec
    # where rules that clip would do so at each step, or have nothing to gain
    if rule == "auto":
        assert spec.range_rule == ("mse" if weights < 6 and storage == 32 else "absmax")


def test_the_name_is_not_the_identity() -> None:
    assert BitSpec(weights=8, activations=8, name="mine") == PRESETS["int8"]


@pytest.mark.parametrize("value", [1, 17, 31, 33, 0, -8, 8.5, 8.0, True, None, [8]])
def test_refused_widths(value: object) -> None:
    with pytest.raises(ValueError, match=r"^bits must be 2\.\.16 or 32, got "):
        BitSpec.parse(value)  # type: ignore[arg-type]
    for key in ("weights", "activations", "errors", "gradients", "storage"):
        with pytest.raises(ValueError, match=rf"^BitSpec\.{key} must be 2\.\.16 or 32, got "):
            BitSpec.parse({key: value})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("in8", "unknown preset 'in8' (did you mean 'int8'?); presets: float32, int16"),
        ("fp32", "unknown preset 'fp32' (did you mean 'float32'?)"),
        ("Ternary", "unknown preset 'Ternary' (did you mean 'ternary'?)"),
        ("int32", "unknown preset 'int32'"),
        ("int1", "unknown preset 'int1'"),
        ("xyz", "unknown preset 'xyz'; presets: float32"),
        ("33", "bits must be 2..16 or 32, got 33"),
        (
            {"weigths": 8},
            "BitSpec has no key 'weigths' (did you mean 'weights'?); keys: weights, activations",
        ),
        ({3: 8}, "BitSpec has no key 3; keys"),
        (
            {"weights": 8, "range_rule": "absmx"},
            "BitSpec.range_rule must be one of auto, absmax, mse, lsq, pow2, wage, got 'a",
        ),
        (
            {"weights": 8, "granularity": "row"},
            "BitSpec.granularity must be one of tensor, channel, got 'row'",
        ),
        ({"weights": 8, "storage": 4}, "BitSpec.storage must be at least weights=8, got 4"),
        ({"storage": 8}, "BitSpec.storage must be at least weights=32, got 8"),
        (
            {"weights": 4, "storage": 8, "range_rule": "lsq"},
            "BitSpec.storage must be 32 with range_rule='lsq'",
        ),
        (
            {"weights": 4, "granularity": "channel", "range_rule": "wage"},
            "BitSpec.granularity must be 'tensor' with ra",
        ),
        (
            {"range_rule": "mse"},
            "BitSpec.range_rule and granularity must be left out with weights=32",
        ),
        ({"name": "a/b"}, "BitSpec.name must be letters, digits, '_', '-' or '.', got 'a/b'"),
        ({"name": 3}, "BitSpec.name must be letters"),
    ],
)
def test_messages(value: object, message: str) -> None:
    with pytest.raises(ValueError) as error:
        BitSpec.parse(value)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)
